"""The engine: runs decoder-only transformers with a KV cache, in a separate process.

Deliberately empty: importing ``engine.process.events`` or ``engine.process.client`` must not import torch.
"""
