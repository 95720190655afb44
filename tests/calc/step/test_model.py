"""Operators of a pass: by hand, by loops over layers and heads, as numbers, arrays and derivations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.explain.terms import evaluate, symbol
from calc.model.count import LM_HEAD, model_tensors
from calc.model.layers import Compressor, Dense, LayerSpec, WindowRow
from calc.model.parts import Mlp
from calc.model.spec import ModelSpec
from calc.model.tensors import LINEAR, ROUTER, Tensor
from calc.sources.catalog import ModelEntry, find_model, models
from calc.step.model import linear_operators, mixing_operators, pass_operators, unshared
from calc.step.operators import Kind, Operator, Pass, Phase, total
from calc.step.weights import as_stored, one_format
from tests.calc.strategies import LLAMA, QUICK
from tests.calc.strategies import models as plain_models
from tests.each import each

PHASES = st.sampled_from(Phase)


def of_kind(operators: tuple[Operator, ...], kind: Kind) -> list[Operator]:
    return [operator for operator in operators if operator.kind is kind]


# By hand


def test_a_decode_step_of_llama_by_hand() -> None:
    """Llama-3-8B, 4 sequences of 8,192 tokens, 2 bytes for everything."""
    found = {o.name: o for o in pass_operators(LLAMA, Pass(phase=Phase.DECODE, batch=4, context=8192))}
    qkv = found["self_attn.qkv_proj"]
    assert (qkv.count, qkv.flops) == (32, 32 * 2 * 4 * 4096 * (4096 + 2 * 1024))
    assert qkv.weight_bytes == 32 * 2 * 4096 * 6144
    assert qkv.read_bytes - qkv.weight_bytes == 32 * 4 * 4096 * 2
    assert qkv.write_bytes == 32 * 4 * 6144 * 2
    attention = found["full attention"]
    assert attention.flops == 32 * 4 * 32 * 8192 * (4 * 128 + 5)
    assert attention.cache_bytes == 4 * 2**30, "131,072 bytes per token"
    assert attention.write_bytes == 32 * 4 * 32 * 128 * 2
    head = found["lm_head"]
    assert (head.flops, head.weight_bytes) == (2 * 4 * 4096 * 128_256, 2 * 4096 * 128_256)
    assert found["norm, residual"].count == 65
    assert found["embed_tokens"].bytes == 4 * 4096 * 2 * 2


def test_latent_attention_absorbed_by_hand() -> None:
    """DeepSeek-V3: 128 heads read one row of 576; FLOPs 2 (576 + 512) per head and token, bytes 2 x 576: 242."""
    model, n = find_model("deepseek-v3"), 1_000_000
    (operator,) = mixing_operators(model, Pass(phase=Phase.DECODE, context=n, softmax_flops=0))
    assert operator.flops == 61 * 128 * 2 * (576 + 512) * n
    assert operator.cache_bytes == 61 * 576 * 2 * n
    assert operator.flops / operator.bytes == pytest.approx(2 * 128 * 1088 / 1152, rel=1e-3)
    assert round(operator.flops / operator.bytes, 1) == 241.7


def test_latent_attention_expanded_by_hand() -> None:
    """A prompt of DeepSeek-V3 builds K of 192 and V of 128 for each of the 128 heads."""
    model, n = find_model("deepseek-v3"), 4096
    (operator,) = mixing_operators(model, Pass(phase=Phase.PREFILL, context=n, softmax_flops=0))
    assert operator.flops == 61 * 128 * 2 * (192 + 128) * n * (n + 1) // 2
    assert operator.cache_bytes == 61 * 128 * (192 + 128) * 2 * n
    assert operator.name == "latent attention, expanded"


def test_a_window_caps_what_is_read() -> None:
    """gpt-oss-120b: 18 of 36 layers see 128 tokens."""
    read = {o.name: o for o in mixing_operators(find_model("gpt-oss-120b"), Pass(phase=Phase.DECODE, context=8192))}
    near, full = read["sliding attention, window 128"], read["full attention"]
    assert (near.count, full.count) == (18, 18)
    assert near.cache_bytes == 18 * 128 * 2 * 8 * 64 * 2
    assert full.cache_bytes == 18 * 8192 * 2 * 8 * 64 * 2
    assert full.flops == 64 * near.flops


def test_a_sparse_indexer_reads_all_keys_and_attention_what_it_picks() -> None:
    model, n = find_model("deepseek-v3.2"), 100_000
    index, attention = mixing_operators(model, Pass(phase=Phase.DECODE, context=n, softmax_flops=0))
    assert index.flops == 61 * 64 * (2 * 128 + 3) * n
    assert index.cache_bytes == 61 * 128 * n
    assert attention.cache_bytes == 61 * 576 * 2 * 2048
    assert attention.flops == 61 * 128 * 2 * (576 + 512) * 2048


def test_layers_without_an_indexer_of_their_own_are_sparse_too() -> None:
    """GLM-5.2: 21 of 78 layers pick tokens, the others take an earlier layer's."""
    operators = mixing_operators(find_model("glm-5.2"), Pass(phase=Phase.DECODE, context=100_000))
    assert [o.count for o in operators if o.kind is Kind.INDEX] == [21]
    assert sum(o.count for o in operators if o.kind is Kind.ATTENTION) == 78
    assert {o.cache_bytes // o.count for o in operators if o.kind is Kind.ATTENTION} == {576 * 2 * 2048}


def test_compressed_attention_reads_a_window_and_rows() -> None:
    """As in DeepSeek-V4: 4 heads read a window of 8 rows, and 3 of 25 rows of 4 tokens that an indexer picks."""
    window = WindowRow(n_heads=4, head_dim=16, rope_dim=4, q_lora_rank=6, o_groups=2, o_lora_rank=3, window=8)
    sizes = {"head_dim": 16, "ratio": 4, "overlap": True, "q_lora_rank": 6, "read_heads": 4}
    rows = Compressor(**sizes, index_heads=2, index_dim=8, index_topk=3)
    layer = LayerSpec(hidden_size=8, mixers=(window, rows), feed_forwards=(Dense(intermediate_size=8),), norm_params=16)
    model = ModelSpec(name="m", layers=(layer,), vocab_size=10)
    near, index, far = mixing_operators(model, Pass(phase=Phase.DECODE, context=100, softmax_flops=0))
    assert (near.cache_bytes, near.flops) == (8 * 16 * 2, 4 * 8 * 4 * 16)
    assert (index.cache_bytes, index.flops) == (25 * 8, 2 * 25 * (2 * 8 + 3))
    assert (far.cache_bytes, far.flops) == (3 * 16 * 2, 4 * 3 * 4 * 16)


def test_a_state_is_read_and_written_whatever_the_context() -> None:
    model = find_model("qwen3.5-35b-a3b")
    short, long = (mixing_operators(model, Pass(phase=Phase.DECODE, batch=3, context=n)) for n in (64, 65536))
    (near,), (far,) = of_kind(short, Kind.RECURRENCE), of_kind(long, Kind.RECURRENCE)
    assert near == far
    state = 32 * 128 * 128 + (2 * 16 * 128 + 32 * 128) * 4
    assert near.cache_bytes == near.write_bytes == 30 * 3 * state * 2
    assert near.flops == 30 * 3 * 7 * 32 * 128 * 128


def test_experts_that_a_batch_hits_at_their_stored_bytes() -> None:
    """gpt-oss-120b: 4 of 128 experts per token, MXFP4 with biases in 16 bits; attention in 16 bits."""
    model = find_model("gpt-oss-120b")
    stored = as_stored(model)
    one, many = (
        {o.name: o for o in pass_operators(model, Pass(phase=Phase.DECODE, batch=b, weight_bytes=stored))}
        for b in (1, 32)
    )
    each = Fraction(3 * 2880 * 2880 * 17, 32) + 2 * 3 * 2880
    per_weight = each / (3 * 2880 * 2880 + 3 * 2880)
    matrix = 2880 * 2 * 2880 * per_weight
    name = "mlp.experts.0.gate_up_proj"
    assert float(one[name].weight_bytes) == pytest.approx(float(36 * 4 * matrix), rel=1e-12)
    hit = 128 * (1 - (1 - 4 / 128) ** 32)
    assert float(many[name].weight_bytes) == pytest.approx(36 * hit * float(matrix), rel=1e-12)
    assert many[name].flops == 36 * 2 * 32 * 4 * 2880 * 2 * 2880
    assert one["self_attn.qkv_proj"].weight_bytes == 36 * 2 * 2880 * (4096 + 2 * 512)
    assert one["self_attn.qkv_proj"].count == 36, "layers with and without a window multiply alike"


# Against loops


@QUICK
@given(plain_models(most=12), PHASES, st.integers(1, 3), st.integers(1, 40), st.booleans())
def test_attention_layer_by_layer_and_head_by_head(
    model: ModelSpec, phase: Phase, batch: int, context: int, causal: bool
) -> None:
    flops = cached = queries = 0
    for layer in model.layers:
        window = layer.mixers[0].window
        for _ in range(batch):
            positions = range(context) if phase is Phase.PREFILL else range(context - 1, context)
            touched: set[int] = set()
            for position in positions:
                last = position if causal else context - 1
                keys = range(0 if window is None else max(0, last - window + 1), last + 1)
                touched |= set(range(0 if window is None else max(0, position - window + 1), position + 1))
                flops += model.n_heads * len(keys) * (4 * model.head_dim + 5)
                queries += model.n_heads * model.head_dim
            for _ in range(model.n_kv_heads):
                cached += len(touched) * 2 * model.head_dim
    operators = mixing_operators(model, Pass(phase=phase, batch=batch, context=context, causal=causal))
    assert total(operators, "flops") == flops
    assert total(operators, "cache_bytes") == 2 * cached
    assert total(operators, "bytes") == 2 * (cached + 2 * queries)


def worked_tensors(model: ModelSpec) -> Iterator[tuple[Tensor, int]]:
    """Every tensor that a token is multiplied with, and how often: shared ones in each layer, the head tied or not."""
    for layer, n in model.groups.items():
        for tensor in unshared(layer).tensors():
            if tensor.multiplied:
                yield tensor, n
    if model.head_size:
        yield Tensor(LM_HEAD, model.head_size, model.embedding_width), 1


@each("entry", models().values())
def test_linear_layers_tensor_by_tensor(entry: ModelEntry) -> None:
    """FLOPs and weights of every matrix that a token is multiplied with; a batch of one hits no further expert."""
    model = entry.sizes
    work = Pass(phase=Phase.DECODE, batch=1, weight_bytes=one_format(1))
    active = sum(n * tensor.active_params for tensor, n in worked_tensors(model))
    operators = linear_operators(model, work)
    assert total(operators, "flops") == 2 * active
    assert total(operators, "weight_bytes") == pytest.approx(active, rel=1e-12)
    if not any(mixer.kind == "latent" for layer in model.groups for mixer in layer.mixers):
        outputs = sum(
            n * tensor.rows * (tensor.copies if tensor.active is None else tensor.active)
            for tensor, n in worked_tensors(model)
            if tensor.role in (LINEAR, ROUTER)
        )
        assert total(operators, "write_bytes") == 2 * outputs


@each("entry", models().values())
def test_as_stored_is_what_is_stored(entry: ModelEntry) -> None:
    """Every tensor once in its part's bytes is all that the checkpoint holds."""
    model = entry.spec
    if model.stored is not None:
        each = as_stored(model)
        total_bytes = sum(t.params * Fraction(each(t)) for t in model_tensors(model))
        assert total_bytes == model.stored.total_bytes


# Number, array, derivation


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3.2", "gpt-oss-120b", "qwen3.5-35b-a3b", "llama-4-scout"])
@pytest.mark.parametrize("phase", Phase)
def test_numbers_arrays_and_derivations_are_one_function(name: str, phase: Phase) -> None:
    model = find_model(name)
    contexts, batches = [5, 300, 9000], [1, 7, 64]
    rows = [
        pass_operators(model, Pass(phase=phase, batch=b, context=c)) for b, c in zip(batches, contexts, strict=True)
    ]
    swept = pass_operators(model, Pass(phase=phase, batch=np.array(batches), context=np.array(contexts)))
    assert [o.name for o in swept] == [o.name for o in rows[0]]
    for i, row in enumerate(rows):
        for one, many in zip(row, swept, strict=True):
            for what in ("flops", "weight_bytes", "cache_bytes", "read_bytes", "write_bytes"):
                array = np.broadcast_to(getattr(many, what), 3)
                assert float(array[i]) == pytest.approx(float(getattr(one, what)), rel=1e-12)
    for operator in rows[-1]:
        values = {term.name: term.value * operator.count for term in operator.terms}
        assert values.get("FLOPs", 0) == pytest.approx(float(operator.flops), rel=1e-12)
        moved = sum(v for n, v in values.items() if n not in ("FLOPs", "Written", "Sent to other GPUs"))
        assert float(moved) == pytest.approx(float(operator.read_bytes), rel=1e-12)


def test_a_pass_of_symbols_is_a_formula() -> None:
    work = Pass(phase=Phase.DECODE, batch=symbol("batch"), context=symbol("n_keys"))
    flops = total(pass_operators(LLAMA, work), "flops")
    numbers = pass_operators(LLAMA, Pass(phase=Phase.DECODE, batch=3, context=777))
    assert evaluate(flops, {"batch": 3, "n_keys": 777}) == total(numbers, "flops")


# Ranks


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "qwen3-30b-a3b"])
def test_ranks_share_the_work_and_add_up(name: str) -> None:
    """Products divide by 4; what goes into a latent and the router are on every rank, sums go between them."""
    model = find_model(name)
    alone, rank = (pass_operators(model, Pass(phase=Phase.DECODE, batch=8, context=2048, tp=tp)) for tp in (1, 4))
    by_name = {o.name: o for o in rank}
    for operator in alone:
        whole = operator.name in ("self_attn.qkv_a_proj", "mlp.gate") or operator.kind in (
            Kind.EMBEDDING, Kind.NORM, Kind.SAMPLING,
        )  # fmt: skip
        if operator.kind is not Kind.ROTARY:
            assert by_name[operator.name].flops * (1 if whole else 4) == operator.flops, operator.name
    (reduce,) = of_kind(rank, Kind.ALL_REDUCE)
    assert reduce.count == 2 * model.n_layers
    assert reduce.link_bytes == 2 * model.n_layers * 2 * 3 * 8 * model.hidden_size * 2 // 4
    assert not of_kind(alone, Kind.ALL_REDUCE)


def test_a_rank_keeps_at_least_one_kv_head_and_the_whole_latent() -> None:
    llama, deepseek = find_model("llama-3-8b"), find_model("deepseek-v3")
    work = {"phase": Phase.DECODE, "context": 1000}
    (one,), (rank,) = (mixing_operators(llama, Pass(**work, tp=tp)) for tp in (1, 16))
    assert rank.cache_bytes * 8 == one.cache_bytes
    (one,), (rank,) = (mixing_operators(deepseek, Pass(**work, tp=tp)) for tp in (1, 8))
    assert rank.cache_bytes == one.cache_bytes
    assert rank.flops * 8 == one.flops


# Properties


@pytest.mark.parametrize("phase", Phase)
@each("entry", models().values())
def test_work_never_falls_as_batch_or_context_grow(entry: ModelEntry, phase: Phase) -> None:
    model = entry.spec
    last: list[float] = []
    for batch, context in ((1, 100), (1, 5000), (2, 5000), (64, 5000), (64, 200_000)):
        operators = pass_operators(model, Pass(phase=phase, batch=batch, context=context))
        sums = [float(total(operators, what)) for what in ("flops", "read_bytes", "write_bytes")]
        assert all(now >= before for before, now in zip(last, sums, strict=False))
        last = sums


def test_a_model_without_a_head_has_none_in_its_pass() -> None:
    bare = replace(LLAMA, head_rows=0)
    names = [o.name for o in pass_operators(bare, Pass(phase=Phase.DECODE))]
    assert "lm_head" not in names
    assert "sampling" not in names
    scored = {o.name: o for o in pass_operators(replace(LLAMA, head_rows=2), Pass(phase=Phase.DECODE))}
    assert scored["lm_head"].flops == 2 * 2 * 4096


def test_a_gated_feed_forward_reads_its_input_once() -> None:
    gated = {o.name: o for o in linear_operators(LLAMA, Pass(phase=Phase.DECODE))}["mlp.gate_up_proj"]
    assert gated.read_bytes - gated.weight_bytes == 32 * 4096 * 2
    assert gated.write_bytes == 32 * 2 * 14336 * 2
    assert LLAMA.mlp is Mlp.GATED


# Experts on ranks of their own, attention groups, stages


def test_whole_experts_on_ranks_are_as_much_work_as_parts_of_all() -> None:
    """DeepSeek-V3 over 8: 32 of 256 experts, of a token's 8 one in the mean, each whole; the input goes to one rank."""
    model = find_model("deepseek-v3")
    split, spread = (
        {o.name: o for o in pass_operators(model, Pass(phase=Phase.DECODE, batch=64, context=2048, tp=8, ep=ep))}
        for ep in (1, 8)
    )
    for name in ("mlp.experts.0.gate_up_proj", "mlp.experts.0.down_proj"):
        assert spread[name].flops == split[name].flops
        assert float(spread[name].weight_bytes) == pytest.approx(float(split[name].weight_bytes))
    up = spread["mlp.experts.0.gate_up_proj"]
    assert (up.weights_each.sizes["n_experts"], up.weights_each.sizes["top_k"]) == (32, 1)
    assert up.reads_each.value == 64 * 1 * 7168 * 2
    assert spread["all-reduce"].link_bytes == split["all-reduce"].link_bytes


def test_attention_groups_have_their_own_requests_and_exchange_tokens() -> None:
    """8 groups of one GPU: a group's 8 of 64 sequences with all 128 heads; each token to 8 ranks and back, 7/8 of them
    others'. The experts see the tokens of all groups."""
    model = find_model("deepseek-v3")
    work = Pass(phase=Phase.DECODE, batch=64, context=2048, tp=8, ep=8, groups=8)
    operators = {o.name: o for o in pass_operators(model, work)}
    alone = {o.name: o for o in pass_operators(model, Pass(phase=Phase.DECODE, batch=8, context=2048))}
    attention = next(o for o in operators.values() if o.kind is Kind.ATTENTION)
    assert attention.flops == alone[attention.name].flops
    assert attention.cache_bytes == alone[attention.name].cache_bytes
    assert "all-reduce" not in operators
    exchange = operators["gather, scatter"]
    assert exchange.count == 61
    assert exchange.link_each.value == 8 * 7168 * 2 * 8 * 2 * 7 // 8
    assert operators["mlp.experts.0.gate_up_proj"].flops == 58 * 2 * 64 * 2 * 7168 * 2048


def test_experts_alone_are_sent_to_as_many_ranks_as_a_token_needs() -> None:
    """Qwen3-30B-A3B has no shared expert: 16 groups, 8 experts per token."""
    work = Pass(phase=Phase.DECODE, batch=16, context=100, tp=16, ep=16, groups=16)
    (exchange,) = of_kind(pass_operators(find_model("qwen3-30b-a3b"), work), Kind.EXCHANGE)
    assert (exchange.name, exchange.count) == ("all-to-all", 48)
    assert exchange.link_each.value == 2048 * 2 * 8 * 2 * 15 / 16


def test_a_stage_sends_a_vector_per_token_to_the_next() -> None:
    work = Pass(phase=Phase.PREFILL, batch=2, context=300, tp=2, stages=4)
    (send,) = of_kind(pass_operators(LLAMA, work), Kind.SEND)
    assert (send.count, send.link_each.value) == (3, 2 * 300 * 4096 * 2)


def test_ranks_that_share_a_context_have_the_heads_of_all_for_a_part_of_it() -> None:
    """DeepSeek-V3 on 8 ranks, 4 to a context: 64 of 128 heads over 2,500 of 10,000 tokens; queries of 576 and results
    of 512 per head of 16 go to three others and back, in 61 layers."""
    model = find_model("deepseek-v3")
    work = Pass(phase=Phase.DECODE, batch=5, context=10_000, tp=8)
    shared = replace(work, dcp=4)
    (alone,), (part,) = (of_kind(pass_operators(model, one), Kind.ATTENTION) for one in (work, shared))
    assert part.flops == alone.flops
    assert part.cache_bytes * 4 == alone.cache_bytes == 61 * 5 * 10_000 * 576 * 2
    assert part.reads_each.value == 4 * alone.reads_each.value
    (combined,) = of_kind(pass_operators(model, shared), Kind.COMBINE)
    assert (combined.count, combined.link_each.value) == (61, 5 * 16 * (576 + 512) * 3 * 2)
    prompt = replace(shared, phase=Phase.PREFILL)
    assert [o.flops for o in pass_operators(model, prompt)] == [
        o.flops for o in pass_operators(model, replace(prompt, dcp=1))
    ]
