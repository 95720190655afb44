"""DeepSeek-V4: compressed attention, several residual streams, experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture, Outer
from calc.hf.feed_forward import feed_forwards
from calc.hf.layers import stack
from calc.hf.reader import HEAD_DIM, HIDDEN_SIZE, N_HEADS, N_KV_HEADS, Reader, shown
from calc.model.layers import Compressor, LayerSpec, Mixer, WindowRow

WINDOW, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
OF_RATIO = {0: WINDOW, 4: SPARSE, 128: HEAVY}
RATES = {SPARSE: 4, HEAVY: 128}
"""Tokens per row, if compress_rates does not say."""


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    reader.ignore(*N_KV_HEADS, "hc_sinkhorn_iters")
    _note_hash_tables(reader, n_layers)
    reader.drop("mlp_layer_types")  # every layer has experts
    rows = _rows(reader)
    of: dict[str, tuple[Mixer, ...]] = {WINDOW: (rows,)}
    types = _types(reader, n_layers)
    if SPARSE not in types:
        reader.ignore("index_topk")
    for kind in dict.fromkeys(types):
        if kind != WINDOW:
            of[kind] = (rows, _compressor(reader, kind, rows))
    mixed = replace(arch, extra_params=2 * residual_streams(reader, hidden_size))
    return stack(reader, mixed, hidden_size, [of[kind] for kind in types], feed_forwards(reader, arch, n_layers))


def _rows(reader: Reader) -> WindowRow:
    head_dim = reader.count(*HEAD_DIM)
    return WindowRow(
        n_heads=reader.count(*N_HEADS),
        head_dim=head_dim,
        rope_dim=reader.maybe("qk_rope_head_dim") or head_dim // 8,
        q_lora_rank=reader.count("q_lora_rank"),
        o_groups=reader.count("o_groups"),
        o_lora_rank=reader.count("o_lora_rank"),
        window=reader.count("sliding_window"),
    )


def _types(reader: Reader, n_layers: int) -> list[str]:
    """layer_types, or compress_ratios (0, 4 or 128), which also lists the multi-token-prediction layer."""
    if (listed := reader.per_layer("layer_types", n_layers)) is not None:
        reader.ignore("compress_ratios")
        if unknown := [kind for kind in listed if kind not in OF_RATIO.values()]:
            raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows {', '.join(OF_RATIO.values())}")
        return list(listed)
    ratios = reader.per_layer("compress_ratios", n_layers)
    if ratios is None:
        raise reader.fail("layer_types missing: it says which layers compress their cache")
    if unknown := [ratio for ratio in ratios if ratio not in OF_RATIO]:
        raise reader.fail(f"compress_ratios has {shown(unknown[0])}: kvscope knows 0, 4 and 128")
    return [OF_RATIO[ratio] for ratio in ratios]


def _compressor(reader: Reader, kind: str, rows: WindowRow) -> Compressor:
    rates = reader.section("compress_rates")
    key = "compress_rate_csa" if kind == SPARSE else "compress_rate_hca"
    ratio = (rates and rates.maybe(kind)) or reader.maybe(key) or RATES[kind]
    sparse = kind == SPARSE
    return Compressor(
        head_dim=rows.head_dim,
        ratio=ratio,
        overlap=sparse,
        q_lora_rank=reader.count("q_lora_rank"),
        index_heads=reader.count("index_n_heads") if sparse else 0,
        index_dim=reader.count("index_head_dim") if sparse else 0,
        index_topk=(reader.maybe("index_topk") or 0) if sparse else 0,
        read_heads=rows.n_heads,
    )


def residual_streams(reader: Reader, hidden_size: int) -> int:
    """Parameters that mix the residual streams at one place: weights into, out of and among the streams, a bias, 3
    scales."""
    streams = reader.count("hc_mult")
    mixed = (2 + streams) * streams
    return mixed * streams * hidden_size + mixed + 3


def streams_outer(reader: Reader) -> Outer:
    """Parameters that combine the residual streams before the head."""
    streams = reader.count("hc_mult")
    return Outer(streams * streams * reader.count(*HIDDEN_SIZE) + streams + 1)


def _note_hash_tables(reader: Reader, n_layers: int) -> None:
    listed = reader.per_layer("mlp_layer_types", n_layers)
    if unknown := [kind for kind in listed or () if kind not in ("hash_moe", "moe")]:
        raise reader.fail(f"mlp_layer_types has {shown(unknown[0])}: a deepseek_v4 model has hash_moe and moe")
    n_hash = reader.count("num_hash_layers", default=3, minimum=0) if listed is None else listed.count("hash_moe")
    if n_hash:
        entries = n_hash * reader.count("vocab_size") * reader.count("num_experts_per_tok")
        reader.notes.append(
            f"{n_hash} layers choose experts with a table over the vocabulary: its {entries:,} entries are not "
            "parameters"
        )


ARCHITECTURES = (
    replace(
        BIASED,
        names=("deepseek_v4", "deepseek_ref"),
        mlp_bias=MLP_BIAS,
        needs_inner=False,
        layers=_layers,
        outer=streams_outer,
    ),
)
