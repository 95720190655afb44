"""The engine: runs decoder-only transformers with a KV cache, in a process of its own.

Deliberately empty: importing ``engine.events`` or ``engine.client`` must not import torch.
"""
