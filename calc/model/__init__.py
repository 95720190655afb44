"""What a model is: its sizes, layers, stored weights and cache."""
