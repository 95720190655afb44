"""GGUF files: a model by its tensors and metadata, weights exact to the byte. Only headers are read.

The rules hold for every architecture: widths come from the matrices, heads and states from the metadata. What llama.cpp
has in its code (windows, shared caches) is in `windows` and `attention`.
"""

from __future__ import annotations

from calc.sources.gguf.header import parts_of, read_header
from calc.sources.gguf.model import encoder_note, read_gguf

__all__ = ["encoder_note", "parts_of", "read_gguf", "read_header"]
