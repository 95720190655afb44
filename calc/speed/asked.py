"""The inputs of an estimate: engine, parallelism, prompt and output tokens, and the load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

from calc.errors import SpecError
from calc.speed.drafts import step_tokens

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec
    from calc.servers.records import ModelFacts

SERVERS = ("vllm", "sglang", "trtllm")
"""Engines that support expert parallelism, attention groups, and several batches in a pipeline."""
ENGINES = ("vllm", "sglang", "trtllm", "transformers", "llamacpp")
TITLES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "transformers": "transformers",
    "llamacpp": "llama.cpp",
}


class Load(StrEnum):
    """How requests arrive."""

    STATIC = "static"
    CLOSED = "closed"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The workload: `count` is the batch or the number of clients (None: maximum load), `chunk` the prefill chunk.

    `draft`: the draft model (None: the cost of drafting is not counted). `facts`: the facts that a server reads from
    the model's own files.
    """

    engine: str = "vllm"
    prompt_tokens: int = 1024
    new_tokens: int = 256
    load: Load = Load.STATIC
    count: int | None = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp_attention: int = 1
    dcp: int = 1
    version: str | None = None
    chunk: int | None = None
    prefix_hit: Fraction = Fraction(0)
    drafted: int = 0
    acceptance: Fraction = Fraction(0)
    draft: ModelSpec | None = None
    facts: ModelFacts | None = None

    def __post_init__(self) -> None:
        """Raises SpecError for parallelism that the engine does not support."""
        if self.pp > 1 and self.engine == "llamacpp":
            raise SpecError("pp", "llama.cpp divides layers among the devices of --tp: leave out --pp")
        for name, word in (("ep", "ep"), ("dp_attention", "dp-attention"), ("dcp", "dcp")):
            if name != "dcp" and getattr(self, name) > 1 and self.engine not in SERVERS:
                raise SpecError(name, f"{TITLES[self.engine]} has no --{word}: use --policy {', '.join(SERVERS)}")
            if self.tp % getattr(self, name):
                parts = getattr(self, name)
                raise SpecError(name, f"--tp {self.tp:,} is not divisible by --{word} {parts:,}")
        if self.dcp > 1 and self.engine != "vllm":
            raise SpecError("dcp", f"{TITLES[self.engine]} has no --dcp: use --policy vllm")
        if self.dcp > 1 and self.dp_attention > 1:
            raise SpecError("dcp", "--dcp cannot be combined with --dp-attention: give only one of them")

    @property
    def devices(self) -> int:
        """Devices per replica."""
        return self.tp * self.pp

    @property
    def stages(self) -> int:
        """Pipeline stages: device groups with a part of the layers each. llama.cpp's devices work in sequence."""
        return self.tp if self.engine == "llamacpp" else self.pp

    @property
    def context(self) -> int:
        """Tokens of a finished request."""
        return self.prompt_tokens + self.new_tokens

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that miss the prefix cache."""
        return max(1, self.prompt_tokens - floor(self.prompt_tokens * self.prefix_hit))

    @property
    def step_tokens(self) -> float:
        """Expected tokens per step and sequence."""
        return step_tokens(self.drafted, self.acceptance)
