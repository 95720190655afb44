"""Logits against the expected ones, and cached against uncached.

STUB: the signatures are final, the bodies follow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.model import Decoder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One case: ids (B, T) and float64 expected logits (B, T, V) or (B, 1, V), each optional but one."""

    index: int
    input_ids: Tensor
    no_cache: Tensor | None
    with_cache: Tensor | None
    sequential: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """Largest absolute errors of one case; the last three only when the cache was evaluated."""

    case: int
    prompt_tokens: int
    passed: bool
    max_abs_error: float
    cache_max_abs_error: float | None
    sequential_max_abs_error: float | None
    chunked_max_abs_error: float | None


def default_atol(dtype: str | torch.dtype) -> float:
    """Tolerance that fits the arithmetic: 1e-4 in float64."""
    raise NotImplementedError


def load_cases(path: Path, config: ModelConfig) -> list[Case]:
    """Read and check a JSON list of cases. Raises CasesError."""
    raise NotImplementedError


def evaluate_cases(
    decoder: Decoder, cases: Sequence[Case], *, atol: float | None = None, cached: bool = False
) -> Iterator[CaseResult]:
    """One result a case, as they are computed (so that a caller can show progress and stop between)."""
    raise NotImplementedError
