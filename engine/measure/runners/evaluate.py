"""Logits against the expected ones, and cached against uncached.

A cases file is a JSON list of {input_ids, expected_logits_no_cache, expected_logits_with_cache,
expected_logits_sequential}: ids (B, T) or (T,), and for each expectation either all positions (B, T, V) or
the last one (B, 1, V), (B, V), (V,). Only input_ids and one expectation are needed.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import assets
from engine.errors import CasesError, OptionError, PromptError
from engine.measure.kinds.evaluate import (
    CaseEvaluated,
    CaseResult,
    Evaluate,
    EvaluationFinished,
    EvaluationResult,
    check_atol,
    difference_note,
    rounding_note,
    tolerance_note,
)
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder, check_ids
from engine.records import NS_PER_S, Cancelled, Event, Load, Progress
from engine.weights.checkpoint import BUNDLED, LoadedModel
from engine.weights.jsonfile import read_json

if TYPE_CHECKING:
    from engine.process.held import HeldModel


EXPECTATIONS = ("expected_logits_no_cache", "expected_logits_with_cache", "expected_logits_sequential")

# float64: the assignment's tolerance; its expected logits are rounded to five decimals, so 5e-6 is the least
# error to be seen. float32: the assignment's weights are N(0, 1), unscaled, which makes softmax near one-hot
# and magnifies rounding; measured up to 6e-3 at 128 tokens against float64, so 2e-2 leaves a factor of three.
_DEFAULT_ATOL = {torch.float64: 1e-4, torch.float32: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One case: ids (B, T), and expected logits (B, T, V) or (B, 1, V) in float64, at least one of them."""

    index: int
    input_ids: Tensor
    no_cache: Tensor | None
    with_cache: Tensor | None
    sequential: Tensor | None

    @property
    def reference(self) -> Tensor:
        """The logits expected without the cache (every expectation of a case means the same logits)."""
        for expected in (self.no_cache, self.with_cache, self.sequential):
            if expected is not None:
                return expected
        raise AssertionError("a case is made with at least one expectation")


def default_atol(dtype: torch.dtype) -> float:
    """The default for the largest absolute error that passes. Raises OptionError."""
    if dtype not in _DEFAULT_ATOL:
        name = str(dtype).removeprefix("torch.")
        raise OptionError("atol", f"{name} has no default tolerance; set one with --atol or use float64")
    return _DEFAULT_ATOL[dtype]


# --- the file ---------------------------------------------------------------------------------------------


def load_cases(path: Path | str, config: ModelConfig) -> list[Case]:
    """Read a file of cases and check every one against the model. Raises CasesError."""
    path = Path(path)
    document = read_json(path, CasesError)
    if not isinstance(document, list) or not document:
        raise CasesError(f"{path} must hold a JSON list with at least one case")
    return [_parse_case(item, index, config, f"{path}: case {index}") for index, item in enumerate(document)]


def _parse_case(item: object, index: int, config: ModelConfig, where: str) -> Case:
    if not isinstance(item, dict) or "input_ids" not in item:
        raise CasesError(f"{where} must be an object with input_ids and expected logits")
    ids = _parse_ids(item["input_ids"], config, where)
    expected = [_parse_logits(item.get(key), ids, config, f"{where}: {key}") for key in EXPECTATIONS]
    if all(logits is None for logits in expected):
        raise CasesError(f"{where} has none of {', '.join(EXPECTATIONS)}")
    return Case(index=index, input_ids=ids, no_cache=expected[0], with_cache=expected[1], sequential=expected[2])


def _parse_ids(value: object, config: ModelConfig, where: str) -> Tensor:
    ids = _tensor(value, f"{where}: input_ids")
    if ids.dtype != torch.int64 and ids.numel():
        raise CasesError(f"{where}: input_ids must be whole numbers")
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2:
        raise CasesError(f"{where}: input_ids has shape {list(ids.shape)}; expected [tokens] or [rows, tokens]")
    try:
        check_ids(ids, config)
    except PromptError as error:
        raise CasesError(f"{where}: {error.message}") from None
    if ids.size(1) > config.max_positions:
        raise CasesError(f"{where} is {ids.size(1):,} tokens long; the model has {config.max_positions:,} positions")
    return ids


def _parse_logits(value: object, ids: Tensor, config: ModelConfig, where: str) -> Tensor | None:
    """Expected logits as (B, T, V) or (B, 1, V)."""
    if value is None:
        return None
    logits = _tensor(value, where).double()
    (rows, n_tokens), vocab_size = ids.shape, config.vocab_size
    full, last = (rows, n_tokens, vocab_size), (rows, 1, vocab_size)
    accepted = {full: full, last: last, last[::2]: last}
    if rows == 1:
        accepted |= {(vocab_size,): last, full[1:]: full}
    shape = accepted.get(tuple(logits.shape))
    if shape is None:
        raise CasesError(
            f"{where} has shape {list(logits.shape)}; expected {list(full)} (all positions) or {list(last)} (the last "
            "one)"
        )
    if not logits.isfinite().all():
        raise CasesError(f"{where} holds values that are not finite numbers")
    return logits.view(shape)


def _tensor(value: object, where: str) -> Tensor:
    if not isinstance(value, list):
        raise CasesError(f"{where} must be a list of numbers")
    try:
        # Python numbers become int64 or float32 by default; float64 keeps every digit of the file.
        tensor = torch.tensor(value)
        return torch.tensor(value, dtype=torch.float64) if tensor.is_floating_point() else tensor
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise CasesError(f"{where} is not a rectangular list of numbers") from None


# --- the comparison ---------------------------------------------------------------------------------------


def evaluate_cases(
    decoder: Decoder, cases: Iterable[Case], *, atol: float | None = None, cached: bool = False
) -> Iterator[CaseResult]:
    """One result per case, as soon as it is computed: a caller can show progress and stop between cases.

    ``max_abs_error``: logits without the cache against the expected ones. With ``cached`` also the whole
    prompt through the cache, token by token, and in chunks: each error is the larger of the difference from
    the expected logits and from those without the cache. ``atol`` None: `default_atol`.
    """
    tolerance = default_atol(decoder.dtype) if atol is None else atol
    check_atol(tolerance)
    return (_evaluate(decoder, case, tolerance, cached=cached) for case in cases)


def _evaluate(decoder: Decoder, case: Case, atol: float, *, cached: bool) -> CaseResult:
    ids = case.input_ids.to(decoder.device)
    n_tokens = ids.size(1)
    uncached = decoder.forward(ids)
    errors, differences = [max_abs_error(uncached, case.reference)], []
    if cached:
        ways = (
            ([n_tokens], case.with_cache),
            ([1] * n_tokens, case.sequential),
            (doubling_chunks(n_tokens), None),
        )
        for sizes, expected in ways:
            logits = cached_logits(decoder, ids, sizes)
            wanted = case.reference if expected is None else expected
            differences.append(max_abs_error(logits, uncached))
            errors.append(max(max_abs_error(logits, wanted), differences[-1]))
    first, *others = map(_finite, errors)
    return CaseResult(
        case=case.index,
        prompt_tokens=n_tokens,
        passed=all(error <= atol for error in errors),
        max_abs_error=first,
        **dict(zip(_BY_WAY["error"], others, strict=False)),
        **dict(zip(_BY_WAY["difference"], map(_finite, differences), strict=False)),
    )


_BY_WAY = {
    what: [f"{way}_max_abs_{what}" for way in ("cache", "sequential", "chunked")] for what in ("error", "difference")
}
"""Fields of the three ways through the cache: the whole prompt, token by token, in chunks."""


def cached_logits(decoder: Decoder, ids: Tensor, chunk_sizes: list[int]) -> Tensor:
    """Logits (B, T, V) of ids (B, T) fed to a new cache in pieces of the given sizes (their sum is T)."""
    cache = decoder.new_cache(ids.size(1), ids.size(0))
    cache.seen.whole = ids.size(1)
    return torch.cat([decoder.forward(piece, cache) for piece in torch.split(ids, chunk_sizes, dim=1)], dim=1)


def doubling_chunks(n_tokens: int) -> list[int]:
    """1, 2, 4, ... and the rest, so that even a short prompt has a chunk that follows a non-empty cache."""
    sizes: list[int] = []
    while (rest := n_tokens - sum(sizes)) > 0:
        sizes.append(min(1 << len(sizes), rest))
    return sizes


def max_abs_error(logits: Tensor, expected: Tensor) -> float:
    """max |logits - expected| in float64; ``expected`` of one position is for the last. NaN counts as inf."""
    got = logits[:, -expected.size(1) :].double()
    error = (got - expected.to(got)).abs().max().item()
    return math.inf if math.isnan(error) else error


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


# --- the measurement --------------------------------------------------------------------------------------


def run(request: Evaluate, held: "HeldModel", should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Evaluate every case with the weights that the request names. A model held for other work stays loaded."""
    path = cases_path(request.weights, request.cases)
    load = Load(model=request.weights, dtype=request.dtype, device=request.device, n_heads=request.n_heads)
    model = yield from held.borrow(load, should_stop)
    cases = load_cases(path, model.config)
    atol = default_atol(model.decoder.dtype) if request.atol is None else request.atol
    start_ns = time.perf_counter_ns()
    results: list[CaseResult] = []
    if should_stop():
        yield Cancelled()
        return
    for result in evaluate_cases(model.decoder, cases, atol=atol, cached=request.cached):
        results.append(result)
        yield CaseEvaluated(case=result)
        yield _progress(len(results), len(cases), time.perf_counter_ns() - start_ns)
        if should_stop() and len(results) < len(cases):
            yield Cancelled()
            return
    yield EvaluationFinished(result=_result(request, model, atol, results, expected_decimals(cases)))


def cases_path(weights: str | None, cases: str | None) -> Path:
    """The path of the cases: the file given, or the one shipped with the bundled weights. Raises CasesError."""
    if cases is not None:
        return Path(cases)
    if weights not in (None, BUNDLED) and Path(str(weights)).exists():  # missing weights are reported by their load
        raise CasesError(f"there are no cases for {weights}; name a file with --cases")
    return assets.path("cases.json")


def expected_decimals(cases: Sequence[Case]) -> int | None:
    """The decimals with which all expected logits are written; None where they are written in full."""
    logits = [one for case in cases for one in (case.no_cache, case.with_cache, case.sequential) if one is not None]
    for decimals in range(MOST_DECIMALS):
        if all(bool((one == one.round(decimals=decimals)).all()) for one in logits):
            return decimals
    return None


MOST_DECIMALS = 13
"""Logits with more decimals are as exact as float64."""


def _result(
    request: Evaluate, model: LoadedModel, atol: float, results: list[CaseResult], decimals: int | None
) -> EvaluationResult:
    notes = (*rounding_note(decimals), *difference_note(results), *tolerance_note(model.dtype_name, atol))
    return EvaluationResult(
        command="kv-evaluate" if request.cached else "evaluate",
        weights=str(model.path),
        dtype=model.dtype_name,
        atol=atol,
        passed=bool(results) and all(case.passed for case in results),
        cases=tuple(results),
        expected_decimals=decimals,
        notes=notes,
    )


def _progress(done: int, total: int, elapsed_ns: int) -> Progress:
    return Progress(
        stage="evaluate",
        done=done,
        total=total,
        elapsed_ns=elapsed_ns,
        remaining_s=elapsed_ns / done * (total - done) / NS_PER_S,
        detail=f"case {done} of {total}",
    )
