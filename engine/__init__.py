"""The engine: runs decoder-only transformers with a KV cache, in a process of its own.

Deliberately empty: importing ``engine.process.events`` or ``engine.process.client`` must not import torch.
"""
