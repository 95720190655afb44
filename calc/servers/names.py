"""The servers whose memory is counted, by the names that --policy takes, and how they write themselves."""

from __future__ import annotations

SERVER_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "transformers": "transformers", "llamacpp": "llama.cpp"}
ENGINES = tuple(SERVER_NAMES)
