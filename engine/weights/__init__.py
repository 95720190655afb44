"""Weights, tokenizers and templates from files: safetensors, GGUF, `.pt`, Hugging Face folders."""
