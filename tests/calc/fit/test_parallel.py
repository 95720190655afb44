"""calc.fit.parallel: by hand, against the memory table, and sums over devices against the whole model."""

from dataclasses import replace
from fractions import Fraction
from math import lcm
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.fit.degrees import ParallelSpec, parallel_problem
from calc.fit.memory import memory_report
from calc.fit.parallel import plan
from calc.model.count import parameters
from calc.model.edit import edit
from calc.model.layers import Attention, Dense, Experts, Latent, LayerSpec
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.stored_format import stored_format
from calc.model.study import Policy, Study
from calc.sources import load_model
from calc.sources.catalog import find_device, find_model
from tests.calc.layered_models import layered_studies
from tests.calc.strategies import LLAMA, QUICK, device, read_text, studies

GB = 10**9
any_study = studies() | layered_studies()
degrees = st.sampled_from([1, 2, 3, 4, 8])


def llama(memory_bytes=80 * GB, **changes):
    return Study(model=LLAMA, device=device(memory_bytes), **changes)


def deepseek_like():
    """Latent attention, one dense layer, two of 256 experts of which 8 are used, a shared expert."""
    latent = Latent(n_heads=128, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128, q_lora_rank=1536)
    sizes = {"hidden_size": 7168, "norm_params": 2 * 7168, "mixers": (latent,)}
    experts = Experts(n_experts=256, top_k=8, expert_size=2048, router_params=256 * 7168)
    dense = LayerSpec(feed_forwards=(Dense(intermediate_size=18432),), **sizes)
    routed = LayerSpec(feed_forwards=(experts, Dense(intermediate_size=2048)), **sizes)
    layers = (dense, routed, routed)
    return Study(model=ModelSpec(name="latent", vocab_size=129_280, layers=layers), device=device(80 * GB))


# Stages


def test_uneven_stages_by_hand():
    """Llama-3-8B over 3: 11 layers and the embedding, 11 layers, 10 layers with the head and the final norm."""
    found = plan(llama(), ParallelSpec(pp=3))
    layer = 41_943_040 + 176_160_768 + 8_192
    assert [stage.n_layers for stage in found.stages] == [11, 11, 10]
    assert [stage.weight_bytes for stage in found.stages] == [
        2 * (11 * layer + 525_336_576),
        2 * 11 * layer,
        2 * (10 * layer + 525_336_576 + 4_096),
    ]
    assert [stage.kv_bytes_per_request for stage in found.stages] == [11 * 2**25, 11 * 2**25, 10 * 2**25]
    assert found.binding == 0
    assert found.max_batch == (80 * GB - 2 * (11 * layer + 525_336_576)) // (11 * 2**25)
    assert any("Stage 1 limits" in note for note in found.notes)


def test_a_tied_head_is_copied_to_the_last_stage():
    tied = replace(LLAMA, tied=True)
    whole = plan(replace(llama(), model=tied), ParallelSpec()).stages[0].weight_bytes
    halves = [s.weight_bytes for s in plan(replace(llama(), model=tied), ParallelSpec(pp=2)).stages]
    assert sum(halves) == whole + 2 * 525_336_576


# Against what is there already


@pytest.mark.slow
@QUICK
@given(any_study, degrees)
def test_tensor_parallelism_alone_is_the_memory_tables_whole_heads(study, tp):
    """Where the vocabulary needs no padding, to the byte."""
    model = replace(study.model, vocab_size=lcm(64, tp) * (study.model.vocab_size % 5 + 1))
    study = replace(study, model=model, tps=(tp,), policy=Policy.REPLICATED)
    (row,) = memory_report(study).tp
    found = plan(study, ParallelSpec(tp=tp))
    assert found.problem == row.problem
    if row.problem is None:
        (stage,) = found.stages
        assert stage.weight_bytes == row.weight_bytes_per_gpu
        assert stage.state_bytes == row.state_bytes_per_sequence_per_gpu
        assert 0 <= Fraction(row.kv_bytes_per_request_per_gpu) - Fraction(stage.kv_bytes_per_request) < 1
        if row.kv_bytes_per_request_per_gpu == stage.kv_bytes_per_request:  # the table may round a part of a byte up
            assert (found.fits, found.max_batch) == (row.fits, row.max_batch)


@QUICK
@given(any_study, st.integers(1, 4))
def test_stages_hold_the_whole_model(study, pp):
    """The weights, caches and states of all stages are those of one device; a tied head is there twice."""
    model = replace(study.model, vocab_size=64 * (study.model.vocab_size % 9 + 1), tied=False)
    study = replace(study, model=model)
    assume(pp <= model.n_layers)
    whole, parts = plan(study, ParallelSpec()).stages[0], plan(study, ParallelSpec(pp=pp)).stages
    assert sum(Fraction(s.steps[0].value) for s in parts) == Fraction(whole.steps[0].value)
    assert sum(Fraction(s.kv_bytes_per_request) for s in parts) == Fraction(whole.kv_bytes_per_request)
    assert 0 <= sum(s.state_bytes for s in parts) - whole.state_bytes < pp
    total = parameters(model).total * Fraction(study.weight_format.bytes_per_element)
    assert Fraction(whole.steps[0].value) == total


@QUICK
@given(any_study)
def test_a_plain_model_one_by_one_counts_the_same(study):
    layers = study.model.layers
    assert len(layers) == study.model.n_layers
    assert sum(1 for layer in layers for m in layer.mixers if m.window) >= study.model.n_sliding_layers


@QUICK
@given(any_study, degrees, st.integers(1, 3))
def test_the_derivations_say_what_they_reckon(study, tp, pp):
    found = plan(study, ParallelSpec(tp=tp, pp=pp))
    for term in found.steps:
        assert read_text(term.substituted) == Fraction(term.value)


@QUICK
@given(any_study, degrees, st.integers(1, 3))
def test_the_batch_fits_every_stage_and_one_more_does_not(study, tp, pp):
    found = plan(study, ParallelSpec(tp=tp, pp=pp))
    assume(found.problem is None)
    memory = study.device.memory_bytes

    def held(stage, batch):
        return stage.steps[0].value + batch * (stage.kv_bytes_per_request + stage.state_bytes)

    assert found.fits is (found.max_batch > 0)
    if found.fits:
        assert all(held(stage, found.max_batch) <= memory for stage in found.stages)
        assert held(found.stages[found.binding], found.max_batch + 1) > memory
    else:
        assert max(held(stage, 1) for stage in found.stages) - memory <= found.missing_bytes


# KV heads, vocabulary


def test_kv_heads_and_their_projections_repeat():
    eight, sixteen = (plan(llama(), ParallelSpec(tp=tp)).stages[0] for tp in (8, 16))
    assert eight.kv_bytes_per_request == sixteen.kv_bytes_per_request == 2**30 // 8
    split = 32 * (2 * 4096 * 4096 + 176_160_768) + 2 * 525_336_576
    assert sixteen.weight_bytes == 2 * (split // 16 + 32 * 2 * 4096 * 128 + 65 * 4096)
    assert any("8 KV heads, each 2 times" in note for note in plan(llama(), ParallelSpec(tp=16)).notes)


def test_the_vocabulary_is_padded_to_64_and_to_the_devices():
    odd = replace(LLAMA, vocab_size=50_257)
    found = plan(Study(model=odd, device=device()), ParallelSpec())
    assert found.stages[0].weight_bytes == 2 * (parameters(odd).total + 2 * 47 * 4096)
    assert any("50,257 is padded to 50,304" in note for note in found.notes)
    model = edit(LLAMA, n_heads=24, n_kv_heads=24, head_dim=128, intermediate_size=24, vocab_size=50_257)
    assert any(
        "padded to 50,304" in note for note in plan(Study(model=model, device=device()), ParallelSpec(tp=3)).notes
    )


# Experts, latent caches, attention groups


def test_a_latent_cache_is_not_divided_but_by_groups():
    study = deepseek_like()
    row = 3 * 576 * 2 * 8192
    for tp in (1, 8, 16):
        assert plan(study, ParallelSpec(tp=tp)).stages[0].kv_bytes_per_request == row
    groups = plan(study, ParallelSpec(tp=8, dp_attention=8))
    assert groups.stages[0].kv_bytes_per_request == row
    assert groups.max_batch == 8 * groups.stages[0].max_batch
    assert groups.max_batch > plan(study, ParallelSpec(tp=8)).max_batch


def test_data_parallel_attention_by_hand():
    """Eight groups of one: all attention weights and the embedding on each, experts and head over all eight."""
    study = deepseek_like()
    attention, expert = 187_107_328, 3 * 7168 * 2048
    embedding = 129_280 * 7168
    divided = 2 * 256 * expert + 2 * expert + 3 * 7168 * 18432 + embedding
    whole = 3 * attention + 3 * 2 * 7168 + 2 * 256 * 7168 + 7168 + embedding
    assert plan(study, ParallelSpec(tp=8, dp_attention=8)).stages[0].weight_bytes == 2 * (divided // 8 + whole)


def test_attention_groups_share_the_kv_heads_among_fewer_devices():
    """Eight devices in two groups: a group of four has 8 KV heads, two per device; the MLP is over all eight."""
    found = plan(llama(), ParallelSpec(tp=8, dp_attention=2)).stages[0]
    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 8 * 128) + 525_336_576
    divided = 32 * 176_160_768 + 525_336_576
    assert found.weight_bytes == 2 * (attention // 4 + divided // 8 + 65 * 4096)
    assert found.kv_bytes_per_request == 2**30 // 4


def test_whole_experts_and_split_ones_weigh_the_same_where_they_divide():
    study = deepseek_like()
    weights = {ep: plan(study, ParallelSpec(tp=8, ep=ep)).stages[0].weight_bytes for ep in (1, 2, 8)}
    assert len(set(weights.values())) == 1


def test_the_fullest_device_counts_where_experts_do_not_divide():
    study = deepseek_like()
    dense, routed, _ = study.model.layers
    routed = replace(routed, feed_forwards=(replace(routed.feed_forwards[0], n_experts=10), routed.feed_forwards[1]))
    layers = (dense, routed, routed)
    ten = replace(study, model=replace(study.model, layers=layers))
    expert = 3 * 7168 * 2048
    even = plan(ten, ParallelSpec(tp=8)).stages[0].weight_bytes
    uneven = plan(ten, ParallelSpec(tp=8, ep=8)).stages[0].weight_bytes
    assert uneven - even == 2 * 2 * (2 * expert - 10 * expert // 8)


def test_decode_context_parallelism_divides_tokens_of_repeated_heads():
    found = plan(llama(), ParallelSpec(tp=16, dcp=2))
    assert found.stages[0].kv_bytes_per_request == 2**30 // 16
    odd = plan(llama(context=8191), ParallelSpec(tp=16, dcp=2))
    assert odd.stages[0].kv_bytes_per_request == 2**30 // 16
    latent = plan(deepseek_like(), ParallelSpec(tp=8, dcp=8))
    assert latent.stages[0].kv_bytes_per_request == 3 * 576 * 2 * 1024


# What is not legal


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"tp": 3}, "32 query heads are not divisible by 3"),
        ({"tp": 64}, "32 query heads are not divisible by 64"),
        ({"pp": 33}, "33 stages for 32 layers"),
        ({"tp": 4, "dp_attention": 3}, "4 devices do not form 3 equal attention groups"),
        ({"tp": 4, "ep": 4}, "no routed experts"),
        ({"tp": 8, "dcp": 2}, "each of the 8 KV heads is held once by 8 devices"),
        ({"tp": 16, "dcp": 4}, "held 2 times by 16 devices and cannot be shared by 4"),
    ],
)
def test_what_cannot_be_is_explained(spec, said):
    assert said in (parallel_problem(LLAMA, ParallelSpec(**spec)) or "")
    found = plan(llama(), ParallelSpec(**spec))
    assert (found.fits, found.max_batch, found.stages) == (False, 0, ())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"tp": 8, "ep": 3}, "8 devices do not form equal groups of 3"),
        ({"tp": 512, "ep": 512}, "128 query heads are not divisible by 512"),
        ({"tp": 512, "ep": 512, "dp_attention": 4}, "512 devices for 256 experts"),
        ({"tp": 8, "dcp": 16}, "the latent is held 8 times by 8 devices and cannot be shared by 16"),
    ],
)
def test_what_cannot_be_with_experts_is_explained(spec, said):
    assert said in (parallel_problem(deepseek_like().model, ParallelSpec(**spec)) or "")


def test_windows_are_not_shared_by_tokens():
    sliding = edit(LLAMA, n_sliding_layers=16, window=4096)
    assert "a window of 4,096 tokens" in (parallel_problem(sliding, ParallelSpec(tp=16, dcp=2)) or "")


@given(st.sampled_from(["tp", "pp", "ep", "dp_attention", "dcp"]), st.sampled_from([0, -1, 1.5, True]))
def test_numbers_below_one_are_refused(name, value):
    with pytest.raises(SpecError, match=name):
        ParallelSpec(**{name: value})


def test_legal_degrees():
    model = edit(LLAMA, n_heads=28, n_kv_heads=4, head_dim=128, intermediate_size=18_944)
    problems = {tp: parallel_problem(model, ParallelSpec(tp=tp)) for tp in range(1, 17)}
    assert [tp for tp, problem in problems.items() if problem is None] == [1, 2, 4]
    assert problems[8] == "28 query heads are not divisible by 8"
    assert problems[7] == "4 KV heads are not divisible by 7 and do not repeat evenly on 7 GPUs"


def test_blocks_that_layers_share_are_copied_to_each_stage_that_uses_them():
    """Two shared blocks over six layers: the second stage needs both, once each; the first has them already."""
    own, dense = Attention(n_heads=4, n_kv_heads=2, head_dim=16, value_dim=16), Dense(intermediate_size=64)
    shared = replace(own, shared=True)
    sizes = {"hidden_size": 64, "norm_params": 128, "feed_forwards": (dense,)}
    layers = tuple(LayerSpec(mixers=(m,), **sizes) for m in (own, own, shared, shared, shared, shared))
    study = Study(model=ModelSpec(name="shared", vocab_size=64, layers=layers), device=device(GB))
    attention, layer = 64 * 16 * (4 + 2 + 2 + 4), 3 * 64 * 64 + 128
    first, second = plan(study, ParallelSpec(pp=2)).stages
    assert first.weight_bytes == 2 * (3 * layer + 2 * attention + 64 * 64)
    assert second.weight_bytes == 2 * (3 * layer + 2 * attention + 64 * 64 + 64)
    assert first.kv_bytes_per_request == second.kv_bytes_per_request
    third = plan(study, ParallelSpec(pp=6)).stages[3]
    assert third.weight_bytes == 2 * (layer + attention)


def test_an_attention_without_a_cache_of_its_own_adds_none():
    own = Attention(n_heads=4, n_kv_heads=2, head_dim=16, value_dim=16)
    other = replace(own, keys=False, values=False)
    parts = {"hidden_size": 64, "norm_params": 128, "feed_forwards": (Dense(intermediate_size=64),)}
    layers = (LayerSpec(mixers=(own,), **parts), LayerSpec(mixers=(other,), **parts))
    study = Study(model=ModelSpec(name="shared", vocab_size=64, layers=layers), device=device(GB))
    found = plan(study, ParallelSpec(pp=2))
    assert [stage.kv_bytes_per_request for stage in found.stages] == [2 * 2 * 2 * 16 * 8192, 0]
    assert found.binding == 0
    assert found.fits


CONFIGS = Path(__file__).parents[4] / "shared" / "data" / "configs"


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the published configs are not here")
def test_published_models_are_shared_without_loss():
    """One device holds all parameters and the padding of the vocabulary; stages hold the caches of all layers."""
    for file in sorted(CONFIGS.glob("*.json")):
        model = load_model(str(file))
        study = Study(model=model, device=device(80 * GB), weight_format=FORMATS["bf16"])
        whole, parts = (
            plan(study, ParallelSpec()).stages[0],
            plan(study, ParallelSpec(pp=min(4, model.n_layers))).stages,
        )
        rows = (1 if model.tied else 2) * (model.embedding_size or model.hidden_size) + int(model.head_bias)
        padding = -model.vocab_size % 64 * rows
        assert whole.weight_bytes == 2 * (parameters(model).total + padding), file.stem
        kv = memory_report(study).kv_bytes_per_request
        assert whole.kv_bytes_per_request == sum(s.kv_bytes_per_request for s in parts) == kv, file.stem


@pytest.mark.parametrize("name", ["gpt-oss-120b", "deepseek-v3"])
def test_a_checkpoint_is_divided_as_the_table_of_tp_divides_it(name: str) -> None:
    """Both pages say one number: parts that every rank holds take more bytes each than the mean."""
    model = find_model(name)
    stored = stored_format(model)
    assert stored is not None
    study = Study(
        model=model, device=find_device("h200"), weight_format=stored, tps=(1, 4, 8), policy=Policy.REPLICATED
    )
    rows = memory_report(study).tp
    plans = [plan(study, ParallelSpec(tp=row.tp)) for row in rows]
    assert [one.stages[0].weight_bytes for one in plans] == [row.weight_bytes_per_gpu for row in rows]
    assert plans[0].stages[0].weight_bytes == model.stored.total_bytes
    halves = plan(study, ParallelSpec(tp=1, pp=2)).stages
    assert sum(stage.weight_bytes for stage in halves) == pytest.approx(model.stored.total_bytes, abs=4)
