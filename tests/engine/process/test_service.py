"""What a request can ask for beyond a prompt: prefixes kept between runs, caches, formats, the compiled step, ranks."""

from dataclasses import replace
from typing import ClassVar

import pytest

from engine.errors import OptionError
from engine.generation_events import GenerationFinished, GenerationStarted
from engine.process.events import Failed, Generate, Loaded, Turn
from engine.process.held import check_vocabularies
from engine.process.service import Service
from engine.records import Load
from engine.speculation import Speculate
from engine.weights.checkpoint import BUNDLED, load_checkpoint


@pytest.fixture(scope="module")
def service():
    made = Service()
    yield made
    made.close()


def run(service, **request):
    """(started, finished) of a generation."""
    events = list(service.answer(Generate(**{"max_new_tokens": 12, "compile": "off", **request})))
    assert isinstance(events[-1], GenerationFinished), events[-1]
    started = next(event for event in events if isinstance(event, GenerationStarted))
    return started, events[-1]


FIRST = tuple(range(10, 40))


class TestReuse:
    def test_a_prompt_that_goes_on_is_prefilled_from_where_it_is_new(self, service):
        first, answer = run(service, prompt_ids=FIRST, reuse=True)
        assert first.reused_tokens == 0
        longer = (*FIRST, *answer.ids, 7, 8, 9)
        second, again = run(service, prompt_ids=longer, reuse=True)
        # The last token of an answer was never run: its keys are not there.
        assert second.reused_tokens == len(FIRST) + len(answer.ids) - 1
        assert again.ids == run(service, prompt_ids=longer)[1].ids

    def test_another_beginning_keeps_what_is_the_same(self, service):
        run(service, prompt_ids=FIRST, reuse=True)
        changed = (*FIRST[:11], 99, *FIRST[12:])
        started, answer = run(service, prompt_ids=changed, reuse=True)
        assert started.reused_tokens == 11
        assert answer.ids == run(service, prompt_ids=changed)[1].ids

    def test_the_same_prompt_leaves_its_last_token_to_run(self, service):
        run(service, prompt_ids=FIRST, reuse=True)
        assert run(service, prompt_ids=FIRST, reuse=True)[0].reused_tokens == len(FIRST) - 1

    def test_without_asking_nothing_is_kept(self, service):
        run(service, prompt_ids=FIRST)
        assert run(service, prompt_ids=FIRST)[0].reused_tokens == 0

    def test_another_kind_of_cache_begins_anew(self, service):
        run(service, prompt_ids=FIRST, reuse=True)
        assert run(service, prompt_ids=FIRST, reuse=True, cache="int8")[0].reused_tokens == 0

    def test_a_cache_that_is_too_small_gives_way_to_a_roomier_one(self, service):
        small, _ = run(service, prompt_ids=FIRST, reuse=True, max_new_tokens=2)
        large, answer = run(service, prompt_ids=FIRST * 8, reuse=True)
        assert large.kv_capacity > small.kv_capacity
        assert answer.ids == run(service, prompt_ids=FIRST * 8)[1].ids


class TestCaches:
    def test_eight_bits_take_less_and_say_so(self, service):
        full, _ = run(service, prompt_ids=FIRST)
        int8, _ = run(service, prompt_ids=FIRST, cache="int8")
        assert int8.kv_cache_bytes < 0.4 * full.kv_cache_bytes
        assert int8.kv_cache_bytes == int8.kv_bytes_per_token * int8.kv_capacity

    def test_a_window_cache_gives_the_same_tokens(self, service):
        assert run(service, prompt_ids=FIRST, cache="window")[1].ids == run(service, prompt_ids=FIRST)[1].ids


class TestSpeculation:
    @pytest.mark.parametrize("speculate", [Speculate(), Speculate(draft=BUNDLED, tokens=3)], ids=["lookup", "model"])
    def test_the_tokens_are_the_same(self, service, speculate):
        text = {"prompt": "the king of the king of the", "max_new_tokens": 30}
        plain, drafted = run(service, **text)[1], run(service, **text, speculate=speculate)[1]
        assert (drafted.ids, drafted.text, drafted.reason) == (plain.ids, plain.text, plain.reason)
        assert plain.drafted is None
        assert drafted.drafted.n_accepted > 0
        assert not drafted.drafted.compiled  # these requests switch it off
        assert 1 + len(drafted.drafted.by_step) + drafted.drafted.n_accepted == len(drafted.ids)

    def test_a_draft_model_is_kept_beside_the_model_and_let_go_with_it(self, service):
        asked = {"prompt": "the", "speculate": Speculate(draft=BUNDLED)}
        run(service, **asked)
        draft = service.held._draft
        assert draft is not None
        run(service, **asked)
        assert service.held._draft is draft
        service.held.release()
        assert service.held._draft is None

    def test_refusals_are_one_sentence(self, service, tmp_path):
        for speculate, says in (
            (Speculate(draft=str(tmp_path / "none.gguf")), "none.gguf"),
            (Speculate(tokens=40), "40 drafted tokens per step; expected 1 to 31"),
        ):
            last = list(service.answer(Generate(prompt="the", speculate=speculate)))[-1]
            assert isinstance(last, Failed)
            assert says in last.message

    def test_a_draft_model_has_the_same_vocabulary(self):
        bundled = load_checkpoint(None)
        check_vocabularies(bundled, bundled)
        bare = replace(bundled, tokenizer=None, name="bare")
        with pytest.raises(OptionError, match="only one has a tokenizer"):
            check_vocabularies(bundled, bare)
        with pytest.raises(OptionError, match="have different vocabularies"):
            check_vocabularies(bundled, replace(bundled, tokenizer=_Words()))
        other = replace(bare, config=replace(bare.config, vocab_size=17))
        with pytest.raises(OptionError, match="the draft model bare and bare have different vocabularies"):
            check_vocabularies(bare, other)
        check_vocabularies(bare, bare)


class _Words:
    vocabulary: ClassVar = {"a": 0}


class TestFormats:
    @pytest.mark.parametrize(("dtype", "most"), [("int8", 0.75), ("int4", 0.6)])
    def test_packed_weights_are_reported_as_they_are_held(self, dtype, most):
        service = Service()
        sizes = {}
        for name in ("bfloat16", dtype):
            loaded = next(e for e in service.answer(Load(dtype=name, compile="off")) if isinstance(e, Loaded))
            sizes[name] = loaded.model.weight_bytes
            assert loaded.model.dtype == name
        assert 0.2 * sizes["bfloat16"] < sizes[dtype] < most * sizes["bfloat16"]
        assert len(run(service, prompt_ids=FIRST, dtype=dtype)[1].ids) > 0

    @pytest.mark.slow
    def test_packed_weights_do_not_run_on_several_ranks(self):
        (*_, last) = Service().answer(Generate(prompt_ids=(1, 2), dtype="int8", tp=2))
        assert isinstance(last, Failed)
        assert "one rank" in last.message


class TestChat:
    def test_a_model_without_a_template_says_so(self, service):
        (*_, last) = service.answer(Generate(turns=(Turn(role="user", content="Hello"),)))
        assert isinstance(last, Failed)
        assert last.message == "the model bundled has no chat template; give a plain prompt"


class TestCompiledStep:
    def test_it_gives_the_same_tokens(self, service):
        eager = run(service, prompt_ids=FIRST, max_new_tokens=30)[1]
        events = list(service.answer(Generate(prompt_ids=FIRST, max_new_tokens=30, compile="on")))
        if isinstance(events[-1], Failed):
            pytest.skip(events[-1].message)  # no compiler here
        assert events[-1].ids == eager.ids

    def test_it_is_taken_away_again(self, service):
        run(service, prompt_ids=FIRST, compile="off")
        assert service.held.model.decoder.decode_step is None


class TestRanks:
    def test_two_ranks_give_the_same_tokens_and_half_the_cache(self):
        service = Service()
        try:
            one, expected = run(service, prompt_ids=FIRST)
            two, answer = run(service, prompt_ids=FIRST, tp=2, threads=1)
            assert answer.ids == expected.ids
            assert 2 * two.kv_cache_bytes == one.kv_cache_bytes
            assert answer.communication_ns > 0
            assert expected.communication_ns is None
        finally:
            service.close()
