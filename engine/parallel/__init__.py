"""Tensor parallelism that runs: ranks as processes, each with its share of the weights and of the KV cache."""
