"""Headers of GGUF files, written without a weight: tensor lists as llama.cpp's models have them (src/models/*.cpp)."""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from calc.errors import SourceError

Shape = tuple[int, ...]
Tensors = dict[str, Shape]
F32, F16, Q6_K, I32 = 0, 1, 14, 26
BYTES_EACH = {F32: 4, F16: 2, I32: 4}
NO_MODELS = ("general.", "tokenizer.")


def write_header(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Shape, int]],
    *,
    hole: bool = False,
) -> Path:
    """A file of a header alone; keys of `metadata` get the architecture before them, but for those of no model.

    Shapes are innermost first. `hole`: with a hole of the data's size, and offsets as llama.cpp checks them.
    """
    entries = {"general.architecture": architecture}
    entries |= {k if k.startswith(NO_MODELS) else f"{architecture}.{k}": value for k, value in metadata.items()}
    listed = list(tensors)
    data = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(entries))
    data += b"".join(_text(key) + _value(value) for key, value in entries.items())
    offset = 0
    for name, shape, kind in listed:
        data += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset if hole else 0)
        offset += _aligned(prod(shape) * BYTES_EACH.get(kind, 0))
    with path.open("wb") as file:
        file.write(data)
        if hole:
            file.truncate(_aligned(len(data)) + offset)
    return path


def _aligned(n: int) -> int:
    return -(-n // 32) * 32


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            kind, code = (7, "?") if isinstance(value[0], bool) else (4, "I")
            return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)
    raise TypeError(value)


def refusal(read: Callable[[], object]) -> str | None:
    """The sentence with which `read` refuses a file; None where it reads."""
    try:
        read()
    except SourceError as error:
        return str(error)
    return None


def model_tensors(
    layers: Iterable[Tensors], hidden: int, vocab: int, *, tied: bool = False, outer: Tensors | None = None
) -> Iterable[tuple[str, Shape, int]]:
    """Embedding, head, final norm, what is in `outer`, and the layers; matrices in F16, vectors in F32."""
    whole = {"token_embd.weight": (hidden, vocab), "output_norm.weight": (hidden,), **(outer or {})}
    if not tied:
        whole["output.weight"] = (hidden, vocab)
    for i, layer in enumerate(layers):
        whole |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return [(name, shape, _kind(name, shape)) for name, shape in whole.items() if shape]


def _kind(name: str, shape: Shape) -> int:
    return I32 if "tid2eid" in name else F32 if len(shape) == 1 else F16


# Parts of a layer


def norms(hidden: int, *names: str) -> Tensors:
    """The norms before attention and feed-forward, and more by name."""
    return {f"{name}.weight": (hidden,) for name in ("attn_norm", "ffn_norm", *names)}


def attention(hidden: int, queries: int, keys: int, values: int | None = None, out: int | None = None) -> Tensors:
    """attn_q, attn_k, attn_v of so many rows, and attn_output that reads `out` (the queries' rows)."""
    return {
        "attn_q.weight": (hidden, queries),
        "attn_k.weight": (hidden, keys),
        "attn_v.weight": (hidden, keys if values is None else values),
        "attn_output.weight": (out or queries, hidden),
    }


def fused(hidden: int, queries: int, keys: int, values: int | None = None) -> Tensors:
    """attn_qkv and attn_output."""
    rows = queries + keys + (keys if values is None else values)
    return {"attn_qkv.weight": (hidden, rows), "attn_output.weight": (queries, hidden)}


def qk_norm(head_dim: int) -> Tensors:
    """Norms of each head of Q and of K."""
    return {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}


def latent(hidden: int, heads: int, rank: int, nope: int, rope: int, value: int, q_rank: int = 0) -> Tensors:
    """Latent attention with K and V matrices apart, as converted since llama.cpp has latent caches."""
    queries = heads * (nope + rope)
    if q_rank:
        own: Tensors = {"attn_q_a.weight": (hidden, q_rank), "attn_q_b.weight": (q_rank, queries)}
        own["attn_q_a_norm.weight"] = (q_rank,)
    else:
        own = {"attn_q.weight": (hidden, queries)}
    return own | {
        "attn_kv_a_mqa.weight": (hidden, rank + rope),
        "attn_kv_a_norm.weight": (rank,),
        "attn_k_b.weight": (nope, rank, heads),
        "attn_v_b.weight": (rank, value, heads),
        "attn_output.weight": (heads * value, hidden),
    }


def whole_latent(hidden: int, heads: int, rank: int, nope: int, rope: int, value: int, q_rank: int = 0) -> Tensors:
    """Latent attention with K and V from one matrix: older files, and MiniCPM 3."""
    own = latent(hidden, heads, rank, nope, rope, value, q_rank)
    del own["attn_k_b.weight"], own["attn_v_b.weight"]
    return own | {"attn_kv_b.weight": (rank, heads * (nope + value))}


def indexer(hidden: int, heads: int, width: int, q_rank: int) -> Tensors:
    """The indexer of sparse latent attention."""
    return {
        "indexer.attn_q_b.weight": (q_rank, heads * width),
        "indexer.attn_k.weight": (hidden, width),
        "indexer.proj.weight": (hidden, heads),
        "indexer.k_norm.weight": (width,),
        "indexer.k_norm.bias": (width,),
    }


def compressed(hidden: int, heads: int, width: int, q_rank: int, groups: int, rank: int, ratio: int = 0) -> Tensors:
    """Attention of DeepSeek-V4 over a window, a row for every `ratio` tokens, and for 4 an indexer of 64 x 128."""
    own: Tensors = {
        "attn_q_a.weight": (hidden, q_rank), "attn_q_a_norm.weight": (q_rank,),
        "attn_q_b.weight": (q_rank, heads * width), "attn_kv.weight": (hidden, width),
        "attn_kv_a_norm.weight": (width,), "attn_output_a.weight": (heads * width // groups, groups * rank),
        "attn_output_b.weight": (groups * rank, hidden), "attn_sinks.weight": (heads,),
    }  # fmt: skip
    if ratio:
        own |= _compressor("attn_compressor", hidden, width, ratio)
    if ratio == 4:
        own |= _compressor("indexer_compressor", hidden, 128, ratio)
        own |= {"indexer.attn_q_b.weight": (q_rank, 64 * 128), "indexer.proj.weight": (hidden, 64)}
    return own


def _compressor(name: str, hidden: int, width: int, ratio: int) -> Tensors:
    wide = 2 * width if ratio == 4 else width
    return {
        f"{name}_kv.weight": (hidden, wide), f"{name}_gate.weight": (hidden, wide),
        f"{name}_ape.weight": (wide, ratio), f"{name}_norm.weight": (width,),
    }  # fmt: skip


def streams(hidden: int, n: int) -> Tensors:
    """What mixes `n` residual streams before attention and before the feed-forward."""
    mixed = (2 + n) * n
    own: Tensors = {}
    for place in ("attn", "ffn"):
        own |= {f"hc_{place}_fn.weight": (n * hidden, mixed), f"hc_{place}_base.weight": (mixed,)}
        own[f"hc_{place}_scale.weight"] = (3,)
    return own


def mlp(hidden: int, inner: int, *, gated: bool = True, ending: str = "") -> Tensors:
    """A feed-forward."""
    own = {f"ffn_up{ending}.weight": (hidden, inner), f"ffn_down{ending}.weight": (inner, hidden)}
    return own | ({f"ffn_gate{ending}.weight": (hidden, inner)} if gated else {})


def experts(
    hidden: int, inner: int, n: int, *, shared: int = 0, gated: bool = True, biased: bool = False, width: int = 0
) -> Tensors:
    """Routed experts with their router, a shared one of `shared`, and the router's correction bias where `biased`."""
    own = {"ffn_gate_inp.weight": (hidden, n), "ffn_up_exps.weight": (width or hidden, inner, n)}
    own["ffn_down_exps.weight"] = (inner, width or hidden, n)
    if gated:
        own["ffn_gate_exps.weight"] = (width or hidden, inner, n)
    if biased:
        own["exp_probs_b.bias"] = (n,)
    return own | (mlp(hidden, shared, gated=gated, ending="_shexp") if shared else {})


def mamba(hidden: int, inner: int, state: int, kernel: int, rank: int) -> Tensors:
    """Mamba."""
    return {
        "ssm_in.weight": (hidden, 2 * inner),
        "ssm_conv1d.weight": (kernel, inner),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (inner, rank + 2 * state),
        "ssm_dt.weight": (rank, inner),
        "ssm_dt.bias": (inner,),
        "ssm_a": (state, inner),
        "ssm_d": (inner,),
        "ssm_out.weight": (inner, hidden),
    }


def mamba2(hidden: int, inner: int, heads: int, groups: int, state: int, kernel: int) -> Tensors:
    """Mamba-2."""
    channels = inner + 2 * groups * state
    return {
        "ssm_in.weight": (hidden, inner + channels + heads),
        "ssm_conv1d.weight": (kernel, channels),
        "ssm_conv1d.bias": (channels,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (1, heads),
        "ssm_d": (1, heads),
        "ssm_norm.weight": (inner // groups, groups),
        "ssm_out.weight": (inner, hidden),
    }


def gated_delta(hidden: int, keys: int, values: int, width: int, kernel: int, *, joint: bool = False) -> Tensors:
    """Gated delta: `keys` and `values` heads of `width`; b and a in one matrix (`joint`, Qwen3-Next) or in two."""
    channels = (2 * keys + values) * width
    own: Tensors = {"ssm_ba.weight": (hidden, 2 * values)} if joint else {}
    if not joint:
        own = {"ssm_beta.weight": (hidden, values), "ssm_alpha.weight": (hidden, values)}
    return own | {
        "attn_qkv.weight": (hidden, channels),
        "attn_gate.weight": (hidden, values * width),
        "ssm_conv1d.weight": (kernel, channels),
        "ssm_dt.bias": (values,),
        "ssm_a": (values,),
        "ssm_norm.weight": (width,),
        "ssm_out.weight": (values * width, hidden),
    }


def kimi_delta(hidden: int, heads: int, width: int, kernel: int) -> Tensors:
    """Kimi delta attention with gates of low rank."""
    inner = heads * width
    own = attention(hidden, inner, inner)
    for name in "qkv":
        own[f"ssm_conv1d_{name}.weight"] = (kernel, 1, inner)
    for name in "fg":
        own |= {f"ssm_{name}_a.weight": (hidden, width), f"ssm_{name}_b.weight": (width, inner)}
    return own | {
        "ssm_beta.weight": (hidden, heads),
        "ssm_a": (1, heads),
        "ssm_dt.bias": (inner,),
        "ssm_norm.weight": (width,),
    }


def short_conv(hidden: int, kernel: int) -> Tensors:
    """A short convolution (LFM2)."""
    return {
        "shortconv.conv.weight": (kernel, hidden),
        "shortconv.in_proj.weight": (hidden, 3 * hidden),
        "shortconv.out_proj.weight": (hidden, hidden),
    }


# Models

SSM_KEYS = {
    "ssm.group_count": 2, "ssm.state_size": 16, "attention.output_group_count": 2, "attention.output_lora_rank": 8,
    "attention.sliding_window": 32,
}  # fmt: skip
MLA = {"attention.kv_lora_rank": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128}


@dataclass(frozen=True)
class Published:
    """A model's header and what it holds: elements per token kept whole, latent, by window; state per sequence."""

    arch: str
    params: int
    layers: list[Tensors]
    hidden: int
    vocab: int
    meta: dict[str, Any]
    full: int = 0
    latent: int = 0
    windowed: dict[int, int] = field(default_factory=dict)
    state: int = 0
    tied: bool = False
    outer: Tensors = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """The header as a file."""
        meta = {"block_count": len(self.layers), "embedding_length": self.hidden, "context_length": 8192, **self.meta}
        tensors = model_tensors(self.layers, self.hidden, self.vocab, tied=self.tied, outer=self.outer)
        return write_header(path, self.arch, meta, tensors)


def heads(n: Any, kv: Any = None, **more: int) -> dict[str, Any]:
    """Keys of attention; widths of keys and values as key=, value=."""
    meta = {"attention.head_count": n} | ({} if kv is None else {"attention.head_count_kv": kv})
    return meta | {f"attention.{name}_length": value for name, value in more.items()}


def moe(n: int, k: int, **more: int) -> dict[str, Any]:
    """Keys of `n` experts, `k` of them per token."""
    return {"expert_count": n, "expert_used_count": k, **more}
