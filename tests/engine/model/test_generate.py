"""Generation: same tokens with and without the cache, every reason to stop, honest records."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import OptionError, PromptError, Stopped
from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.model.decoder import Decoder
from engine.model.generate import GenerationEvent, GenerationOptions, ReusableCache, generate
from engine.records import CacheKind
from tests.engine.models import VARIANTS, decoder
from tests.engine.weights.test_tokenizer import BYTES
from tests.examples import examples

MODELS = {name: decoder(name) for name in VARIANTS}
MODEL = MODELS["llama"]
PROMPT = [3, 1, 4, 1, 5]


def run(model: Decoder, prompt: list[int] = PROMPT, **options: Any) -> list[GenerationEvent]:
    return list(generate(model, prompt, GenerationOptions(**options)))


def finish(events: list[GenerationEvent]) -> GenerationFinished:
    assert isinstance(events[-1], GenerationFinished)
    return events[-1]


def naive(model: Decoder, prompt: list[int], n: int) -> tuple[int, ...]:
    """Greedy tokens, the whole context again each time."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model.forward(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


# --- the tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_is_the_argmax_with_and_without_the_cache(variant: str) -> None:
    model = MODELS[variant]
    expected = naive(model, PROMPT, 20)
    for options in ({"use_cache": True}, {"use_cache": False}, {"prefill_chunk": 2}):
        assert finish(run(model, max_new_tokens=20, **options)).ids == expected


@given(seed=st.integers(0, 2**63 - 1), top_k=st.one_of(st.none(), st.integers(1, 30)))
@examples(25)
def test_a_seed_gives_the_same_text_with_and_without_the_cache(seed: int, top_k: int | None) -> None:
    options = {"temperature": 1.3, "seed": seed, "top_k": top_k, "top_p": 0.9, "max_new_tokens": 12}
    assert finish(run(MODEL, **options)).ids == finish(run(MODEL, use_cache=False, **options)).ids


def test_forced_tokens_are_taken() -> None:
    forced = (7, 7, 2, 9, 0)
    for use_cache in (True, False):
        done = finish(run(MODEL, max_new_tokens=4, forced_ids=forced, use_cache=use_cache))
        assert done.ids == forced[:4]


# --- events -----------------------------------------------------------------------------------------------


def test_the_events_tell_one_story() -> None:
    before_ns = time.perf_counter_ns()
    started, *tokens, finished = run(MODEL, max_new_tokens=6, stop_at_eos=False)
    assert isinstance(started, GenerationStarted)
    assert isinstance(finished, GenerationFinished)
    assert all(isinstance(token, TokenGenerated) for token in tokens)
    assert started.prompt_ids == finished.prompt_ids == tuple(PROMPT)
    assert [token.index for token in tokens] == list(range(6))
    assert tuple(token.token_id for token in tokens) == finished.ids
    assert tuple(token.time_ns for token in tokens) == finished.token_times_ns
    times = [before_ns, started.start_ns, *finished.token_times_ns, time.perf_counter_ns()]
    assert all(a <= b for a, b in pairwise(times))
    assert (finished.start_ns, finished.text) == (started.start_ns, None)


def test_cache_bytes_are_reported_as_they_grow() -> None:
    started, *tokens, finished = run(MODEL, max_new_tokens=4)
    per_token = 2 * 2 * 2 * 6 * 8  # K and V, layers, KV heads, head_dim, float64
    assert started.kv_bytes_per_token == per_token
    assert started.kv_cache_bytes == finished.kv_cache_bytes == (5 + 4) * per_token
    assert [t.kv_tokens for t in tokens] == [5, 6, 7, 8]  # the token just made is not in the cache yet
    assert [t.kv_used_bytes for t in tokens] == [n * per_token for n in (5, 6, 7, 8)]


def test_without_the_cache_there_are_no_cache_bytes() -> None:
    started, *tokens, finished = run(MODEL, max_new_tokens=3, use_cache=False)
    assert (started.kv_cache_bytes, finished.kv_cache_bytes) == (0, 0)
    assert {(t.kv_tokens, t.kv_used_bytes) for t in tokens} == {(0, 0)}


def test_text_is_streamed_in_whole_characters() -> None:
    model = decoder(vocab_size=300)
    forced = tuple(BYTES.encode("be \N{GRINNING FACE}\N{GREEK SMALL LETTER LAMDA}"))
    options = GenerationOptions(max_new_tokens=len(forced), forced_ids=forced)
    *tokens, finished = generate(model, [1], options, tokenizer=BYTES)
    assert finished.text == "be \N{GRINNING FACE}\N{GREEK SMALL LETTER LAMDA}"
    assert "".join(t.text for t in tokens[1:]) == finished.text


def test_a_character_cut_by_the_limit_is_told_with_the_last_token() -> None:
    forced = tuple(BYTES.encode("be\N{GRINNING FACE}")[:-1])
    options = GenerationOptions(max_new_tokens=len(forced), forced_ids=forced)
    _, *tokens, finished = generate(decoder(vocab_size=300), [1], options, tokenizer=BYTES)
    assert "".join(t.text for t in tokens) == finished.text == BYTES.decode(forced)


# --- reasons to stop --------------------------------------------------------------------------------------


def test_the_limit_ends_it() -> None:
    done = finish(run(MODEL, max_new_tokens=7))
    assert (done.reason, len(done.ids)) == ("length", 7)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_end_of_text_ends_it(use_cache: bool) -> None:
    expected = naive(MODEL, PROMPT, 10)
    eos = expected[4]
    first = expected.index(eos)
    model = decoder(eos_ids=(28 if eos != 28 else 27, eos))
    done = finish(run(model, max_new_tokens=10, use_cache=use_cache))
    if model.config.eos_ids[0] not in expected[:first]:
        assert (done.reason, done.ids) == ("eos", expected[: first + 1])
    on = finish(run(model, max_new_tokens=10, use_cache=use_cache, stop_at_eos=False))
    assert (on.reason, on.ids) == ("length", expected)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("n_prompt", "made"), [(5, 8), (12, 1), (11, 2)])
def test_the_last_position_ends_it(use_cache: bool, n_prompt: int, made: int) -> None:
    """12 positions: a token is still made after the last of them has been fed."""
    model = decoder("one-head-learned", max_positions=12)
    done = finish(run(model, [1] * n_prompt, max_new_tokens=50, use_cache=use_cache))
    assert (done.reason, len(done.ids)) == ("positions", made)
    assert done.kv_cache_bytes == (12 * 2 * 2 * 16 * 8 if use_cache else 0)


def test_a_full_cache_ends_it() -> None:
    done = finish(run(MODEL, max_new_tokens=50, cache_capacity=8))
    assert (done.reason, len(done.ids)) == ("cache", 4)
    assert done.ids == naive(MODEL, PROMPT, 4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_stop_is_obeyed_before_the_next_pass(use_cache: bool, allowed: int) -> None:
    events: list[GenerationEvent] = []

    def should_stop() -> bool:
        return sum(isinstance(event, TokenGenerated) for event in events) >= allowed

    options = GenerationOptions(max_new_tokens=20, use_cache=use_cache)
    for event in generate(MODEL, PROMPT, options, should_stop=should_stop):
        events.append(event)
    done = finish(events)
    assert (done.reason, done.ids) == ("cancelled", naive(MODEL, PROMPT, allowed))
    assert len(events) == allowed + 2


def test_a_stop_is_seen_between_chunks_of_the_prompt() -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    options = GenerationOptions(prefill_chunk=2)
    events = list(generate(MODEL, [1] * 40, options, should_stop=should_stop))
    assert (finish(events).reason, finish(events).ids, asked) == ("cancelled", (), 3)


def at_call(number: int) -> Callable[[], bool]:
    """True when asked for the ``number``-th time (from 1), and ever after."""
    asked = iter(range(1, number))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("kind", ["full", "window", "int8"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pass_that_was_stopped_between_layers_leaves_no_trace(name: str, kind: CacheKind) -> None:
    model = MODELS[name]
    if name == "latent" and kind == "int8":
        pytest.skip("not offered")
    begun, rest = torch.tensor([[3, 1, 4, 1, 5, 9, 2]]), torch.tensor([[6, 5, 3, 5]])
    whole, stopped = (model.new_cache(20, kind=kind) for _ in range(2))
    for cache in (whole, stopped):
        model.forward(begun, cache)
    with pytest.raises(Stopped):
        model.forward(rest, stopped, should_stop=at_call(2))
    assert stopped.length == whole.length
    if kind == "window":
        stopped.reset()
        model.forward(begun, stopped)
    assert torch.equal(model.forward(rest, stopped), model.forward(rest, whole))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_stop_is_seen_between_the_layers_of_a_prompt(use_cache: bool) -> None:
    options = GenerationOptions(use_cache=use_cache)
    done = finish(list(generate(MODEL, PROMPT, options, should_stop=at_call(3))))  # before the pass, and each layer
    assert (done.reason, done.ids) == ("cancelled", ())


def test_a_window_cache_is_kept_but_empty_after_a_stop_within_the_prompt() -> None:
    model, reused = decoder("sliding"), ReusableCache()
    options = GenerationOptions(max_new_tokens=3, cache="window", cache_capacity=60)
    first = finish(list(generate(model, PROMPT, options, reused=reused)))
    longer = [*PROMPT, *first.ids, 7, 8, 9, 10, 11, 12]
    list(generate(model, longer, options, reused=reused, should_stop=at_call(3)))
    assert reused.cache is not None
    assert reused.cache.length == 0
    again = finish(list(generate(model, longer, options, reused=reused)))
    assert again.ids == naive(model, longer, 3)


# --- refusals, before anything runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "the prompt is empty"),
        ([0, 29], "29 is outside the vocabulary; ids run from 0 to 28"),
        ([-1], "-1 is outside"),
        ([2**70], "is outside the vocabulary"),
        ([1] * 65, "65 tokens long; the model has 64 positions"),
    ],
)
@pytest.mark.parametrize("use_cache", [True, False])
def test_impossible_prompts_are_refused_at_the_call(prompt: list[int], words: str, use_cache: bool) -> None:
    with pytest.raises(PromptError, match=words):
        generate(MODEL, prompt, GenerationOptions(use_cache=use_cache))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"prefill_chunk": 0}, "prefill_chunk"),
        ({"cache_capacity": 0}, "cache_capacity"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"max_new_tokens": 3, "forced_ids": (1, 2)}, "forced_ids"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError, match=field) as caught:
        GenerationOptions(**options)
    assert caught.value.field == field


def test_a_cache_smaller_than_the_prompt_is_refused() -> None:
    with pytest.raises(OptionError, match="cache_capacity is 4 tokens; the prompt alone has 5"):
        generate(MODEL, PROMPT, GenerationOptions(cache_capacity=4))


def test_a_forced_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(PromptError, match="29 is outside"):
        generate(MODEL, PROMPT, GenerationOptions(max_new_tokens=2, forced_ids=(29, 1)))


@pytest.mark.parametrize("cached", [True, False])
def test_a_stop_text_ends_the_run_and_is_not_shown(cached: bool) -> None:
    """BYTES spells a token per byte: the run ends with the f of "def", and shows what comes before it."""
    forced = tuple(BYTES.encode("abcdefgh"))
    options = GenerationOptions(
        max_new_tokens=8, forced_ids=forced, stop=("xyz", "def"), use_cache=cached, stop_at_eos=False
    )
    model = decoder(vocab_size=300)
    events = list(generate(model, [1, 2], options, tokenizer=BYTES))
    last = finish(events)
    assert (last.reason, last.text, last.ids) == ("stop", "abc", forced[:6])
    assert "".join(event.text for event in events if isinstance(event, TokenGenerated)) == "abc"
    with pytest.raises(OptionError, match="need a tokenizer"):
        generate(model, [1, 2], options)
