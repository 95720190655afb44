"""FLOPs, bytes and arithmetic intensity of attention and of a decode step."""
