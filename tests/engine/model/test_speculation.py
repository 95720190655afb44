"""Drafted tokens: the same tokens as without them, whoever drafts, and what came of it is counted right."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from engine.compiled.attach import attach
from engine.errors import OptionError
from engine.families.registry import config_from_hf
from engine.generation_events import GenerationFinished, TokenGenerated
from engine.model.config import DynamicRopeScaling, LongRopeScaling
from engine.model.decoder import Decoder
from engine.model.drafts import Drafter, DraftModel, PromptLookup
from engine.model.generate import GenerationOptions, ReusableCache, Speculation, generate
from engine.model.made_weights import random_weights
from engine.records import CacheKind
from engine.speculation import Drafted, Speculate
from tests.engine.hf_configs import document
from tests.engine.models import VARIANTS, llama_config

LONG = LongRopeScaling(
    short_factors=(1.0, 1.5, 2.0), long_factors=(3.0, 4.0, 6.0), original_max_positions=21, magnitude=1.1
)
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)


@cache
def model(name: str, dtype: torch.dtype = torch.float32, seed: int = 1, **changes: Any) -> Decoder:
    if name in ("lfm2", "qwen3-next"):
        config = config_from_hf(document(name))
    elif name == "longrope":
        config = llama_config(rope_scaling=LONG)
    elif name == "dynamic":
        config = llama_config(rope_scaling=DynamicRopeScaling(factor=4.0, original_max_positions=21))
    else:
        config = llama_config(**(VARIANTS[name] | changes))
    return Decoder(config, random_weights(config, dtype=dtype, seed=seed))


class Oracle:
    """Drafts what will come, but for every third token or so: all ways to accept and to refuse."""

    def __init__(self, made: Sequence[int], vocab_size: int) -> None:
        self.made, self.vocab_size, self.draw = made, vocab_size, random.Random(5)

    def begin(self, *_: object) -> None:
        pass

    def draft(self, made: Sequence[int], most: int) -> list[int]:
        right = self.made[len(made) : len(made) + self.draw.randint(0, most)]
        return [(t + (self.draw.random() < 0.3)) % self.vocab_size for t in right]


def run(
    decoder: Decoder,
    options: GenerationOptions,
    drafter: Drafter | None = None,
    *,
    tokens: int = 5,
    reused: ReusableCache | None = None,
    prompt: Sequence[int] = PROMPT,
) -> tuple[list[TokenGenerated], GenerationFinished]:
    speculation = None if drafter is None else Speculation(Speculate(tokens=tokens), drafter, "oracle")
    *events, last = generate(decoder, prompt, options, reused=reused, speculation=speculation)
    assert isinstance(last, GenerationFinished)
    return [event for event in events if isinstance(event, TokenGenerated)], last


def check_same(decoder: Decoder, options: GenerationOptions, drafter: Drafter | None = None) -> Drafted:
    """Tokens, reason and what the cache holds after each token are those without drafts; what came of it."""
    plain, plain_end = run(decoder, options)
    events, end = run(decoder, options, drafter or Oracle(plain_end.ids, decoder.config.vocab_size))
    assert (end.ids, end.reason) == (plain_end.ids, plain_end.reason)
    held = [(event.kv_tokens, event.kv_used_bytes) for event in events]
    assert held == [(event.kv_tokens, event.kv_used_bytes) for event in plain]
    assert end.drafted is not None
    assert sum(event.drafted for event in events) == end.drafted.n_accepted
    assert 1 + len(end.drafted.by_step) + end.drafted.n_accepted == len(end.ids)
    return end.drafted


@pytest.mark.parametrize("kind", ["full", "window", "int8"])
@pytest.mark.parametrize("name", [*VARIANTS, "longrope", "dynamic"])
def test_greedy_tokens_are_unchanged(name: str, kind: CacheKind) -> None:
    if (name, kind) == ("latent", "int8"):
        pytest.skip("a latent cache is compressed already")
    for dtype in (torch.float32, torch.bfloat16) if kind == "full" else (torch.float32,):
        came = check_same(model(name, dtype), GenerationOptions(max_new_tokens=30, cache=kind, stop_at_eos=False))
        assert 0 < came.n_accepted < came.n_drafted


@pytest.mark.parametrize("name", ["lfm2", pytest.param("qwen3-next", marks=pytest.mark.slow)])
def test_states_are_kept_after_each_token(name: str) -> None:
    came = check_same(model(name), GenerationOptions(max_new_tokens=12, stop_at_eos=False))
    assert 0 < came.n_accepted < came.n_drafted


@pytest.mark.parametrize("name", ["llama", "mixed", "experts", "latent", "longrope", "dynamic"])
@pytest.mark.parametrize("kind", ["full", "window", "int8"])
def test_greedy_tokens_are_unchanged_by_the_compiled_step(name: str, kind: CacheKind) -> None:
    if (name, kind) == ("latent", "int8"):
        pytest.skip("a latent cache is compressed already")
    decoder = model(name, torch.bfloat16, 2, vocab_size=31)
    attach(decoder).wait()
    if decoder.decode_step is None:
        pytest.skip("there is no compiler")
    check_same(decoder, GenerationOptions(max_new_tokens=40, cache=kind, stop_at_eos=False))


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.8}, {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.02}]
)
@pytest.mark.parametrize("penalties", [{}, {"repetition_penalty": 1.3, "presence_penalty": 0.4}])
def test_drawn_tokens_are_unchanged(sampling: dict[str, Any], penalties: dict[str, Any]) -> None:
    options = GenerationOptions(max_new_tokens=40, seed=7, stop_at_eos=False, **sampling, **penalties)
    decoder = model("llama")
    check_same(decoder, options)
    check_same(decoder, options, PromptLookup(3))
    check_same(decoder, options, DraftModel(model("qwen2"), vocab_size=29))


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    for sampling in ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.2, "seed": 3, "repetition_penalty": 1.4}):
        options = GenerationOptions(max_new_tokens=31, stop_at_eos=False, **sampling)
        came = check_same(model("llama"), options, DraftModel(model("llama"), vocab_size=29, chunk=4))
        assert (
            came.accepted == came.by_step == (3, 5, 5, 5, 5, 1)
        )  # the first draft is short, the last all that is wanted
        assert (came.acceptance, came.tokens_per_step) == (1.0, 5.0)


@pytest.mark.slow
def test_draws_have_the_distribution_of_the_model() -> None:
    """Of 800 runs, the second and third token against the probabilities that the logits say (chi squared, 5 tokens)."""
    decoder, draft = model("llama", vocab_size=5, seed=4), model("llama", vocab_size=5, seed=9)
    counts, probabilities = torch.zeros(5, 5), torch.zeros(5, 5)
    for seed in range(800):
        options = GenerationOptions(max_new_tokens=3, temperature=1.0, seed=seed, stop_at_eos=False)
        _, end = run(decoder, options, DraftModel(draft, vocab_size=5), tokens=2, prompt=(1, 2))
        counts[end.ids[1], end.ids[2]] += 1
    first = decoder.forward(torch.tensor([[1, 2]])).softmax(-1)[0, -1]
    for a, p in enumerate(first.tolist()):
        second = decoder.forward(torch.tensor([[1, 2, a]])).softmax(-1)[0, -1]
        for b, q in enumerate(second.tolist()):
            third = decoder.forward(torch.tensor([[1, 2, a, b]])).softmax(-1)[0, -1]
            probabilities[b] += p * q * third
    expected = probabilities * 800
    assert ((counts - expected).square() / expected).sum() < 51.2  # 24 degrees of freedom, 1 in 1,000


@pytest.mark.parametrize("name", ["llama", "sliding", "lfm2"])
def test_a_cache_that_outlives_a_run_holds_what_it_says(name: str) -> None:
    decoder, reused = model(name), ReusableCache()
    options = GenerationOptions(max_new_tokens=12, stop_at_eos=False, cache_capacity=60)
    _, plain = run(decoder, options)
    _, first = run(decoder, options, Oracle(plain.ids, 29), reused=reused)
    assert reused.cache is not None
    assert reused.cache.length == len(PROMPT) + 11
    again = (*PROMPT, *first.ids, 8)
    expected = run(decoder, options, prompt=again)[1].ids
    assert run(decoder, options, PromptLookup(3), reused=reused, prompt=again)[1].ids == expected


def test_the_end_of_the_context_and_of_the_cache() -> None:
    assert check_same(model("llama", max_positions=20), GenerationOptions(max_new_tokens=50, stop_at_eos=False)).by_step
    assert check_same(
        model("llama"), GenerationOptions(max_new_tokens=50, cache_capacity=17, stop_at_eos=False)
    ).by_step


def test_lookup_drafts_what_followed_last() -> None:
    lookup = PromptLookup(3)
    lookup.begin([1, 2, 3, 7, 2, 3, 8, 9, 1, 2], 99, None, None)  # type: ignore[arg-type]
    assert lookup.draft([3], 3) == [7, 2, 3]  # 1, 2, 3, although 2, 3 stood somewhere else since
    assert lookup.draft([3, 5], 3) == []
    assert lookup.draft([3, 5, 2, 3], 2) == [5, 2]
    lookup.begin([5, 6, 5, 6, 5], 99, None, None)  # type: ignore[arg-type]
    assert lookup.draft([], 6) == [6, 5, 6, 5, 6, 5]


def test_what_came_of_it_is_counted() -> None:
    came = Drafted(draft="lookup", tokens=4, by_step=(4, 0, 4, 2), accepted=(4, 0, 1, 0), drafting_ns=0)
    assert (came.n_drafted, came.n_accepted, came.tokens_per_step) == (10, 5, 2.25)
    assert came.acceptance == 5 / 7  # 4 of 4, 1 of 2, 0 of 1
    assert came.acceptance_by_place == (2 / 3, 1 / 2, 1.0, 1.0)
    nothing = Drafted(draft="lookup", tokens=4, by_step=(), accepted=(), drafting_ns=0)
    assert (nothing.acceptance, nothing.acceptance_by_place, nothing.tokens_per_step) == (None, (), None)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, asked, says in [
        (GenerationOptions(use_cache=False), Speculate(), "needs the KV cache"),
        (GenerationOptions(), Speculate(tokens=32), "32 drafted tokens per step; expected 1 to 31"),
        (GenerationOptions(), Speculate(ngram=1), "it must be at least 2"),
    ]:
        with pytest.raises(OptionError, match=says):
            generate(model("llama"), PROMPT, options, speculation=Speculation(asked, PromptLookup(3), "lookup"))
    with pytest.raises(OptionError, match="recurrent states"):
        DraftModel(model("lfm2"), vocab_size=29)
    monkeypatch.setattr(Decoder, "communication_ns", property(lambda _: 0))  # as that of several ranks
    with pytest.raises(OptionError, match="speculation runs in one process only; use tp 1"):
        generate(model("llama"), PROMPT, speculation=Speculation(Speculate(), PromptLookup(3), "lookup"))
