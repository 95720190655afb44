"""What a model is: its sizes, layers, weights as stored and cache."""
