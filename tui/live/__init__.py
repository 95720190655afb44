"""What runs: the engine's events followed, predictions beside them."""
