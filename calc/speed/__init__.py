"""How fast? Times of passes and of loads, from operators and constants of a device family."""
