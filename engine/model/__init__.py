"""The decoder: configuration, layers, cache, sampling, generation."""
