"""The supported servers, by their --policy names, and their proper spelling."""

from __future__ import annotations

SERVER_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "transformers": "transformers", "llamacpp": "llama.cpp"}
ENGINES = tuple(SERVER_NAMES)
