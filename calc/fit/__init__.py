"""What fits: memory, parallelism, inverse questions, sweeps."""
