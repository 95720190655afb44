"""How fast is it? Times of passes and loads, from operators and the constants of a device family."""
