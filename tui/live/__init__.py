"""What runs: follows the engine's events, with predictions beside them."""
