"""The fields of the spec form: label, unit, meaning and accepted input, shared by the form and its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from calc.model.study import Policy
from calc.servers.names import ENGINES
from calc.units import parse_count, parse_counts, parse_size

COUNT_FORMS = "4096, 4_096, 4k (4,000), 4Ki (4,096), 1e3"
SIZE_FORMS = "80GB (80 x 10^9 B), 80GiB (80 x 2^30 B), 79.19 GiB, 512MB; the unit is required"
FORMAT_FORMS = "a format: bf16, fp8, int8, int4, q4_k, nvfp4, …; or bytes per element: 2, 0.5, 9/16"
POLICIES = (*(str(policy) for policy in Policy), *ENGINES)
"""The rules of the assignment, then the servers."""
LIST_FORMS = "a list (1,2,4,8) or a range that doubles (1..16)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of the form. `symbol` is its key in calc.explain.SYMBOLS if formulas use it."""

    name: str
    label: str
    unit: str
    meaning: str
    forms: str = ""
    symbol: str | None = None


def _by_name(*fields: Field) -> dict[str, Field]:
    return {field.name: field for field in fields}


COUNTS = _by_name(
    Field(
        name="n_layers",
        label="Layers",
        unit="layers",
        meaning="Number of transformer blocks. Each has its own K and V cache.",
        forms=COUNT_FORMS,
        symbol="n_layers",
    ),
    Field(
        name="n_heads",
        label="Query heads",
        unit="heads",
        meaning=(
            "Number of attention heads for queries. Query heads x head dimension is the width of the Q and output "
            "projections."
        ),
        forms=COUNT_FORMS,
        symbol="n_heads",
    ),
    Field(
        name="n_kv_heads",
        label="KV heads",
        unit="heads",
        meaning=(
            "Number of heads whose K and V are cached. Equal to the query heads: multi-head attention; fewer: "
            "grouped-query; 1: multi-query. The number of query heads must be divisible by it."
        ),
        forms=COUNT_FORMS,
        symbol="n_kv_heads",
    ),
    Field(
        name="head_dim",
        label="Head dim",
        unit="elements",
        meaning=(
            "Length of the query, key and value vectors of one head. Left empty, it is embedding / query heads and "
            "follows them."
        ),
        forms=f"{COUNT_FORMS}; empty: h1 / n_q",
        symbol="head_dim",
    ),
    Field(
        name="hidden_size",
        label="Embedding h1",
        unit="elements",
        meaning="Width of the residual stream: the embedding dimension (hidden_size in a config.json).",
        forms=COUNT_FORMS,
        symbol="hidden_size",
    ),
    Field(
        name="intermediate_size",
        label="Inner h2",
        unit="elements",
        meaning="Width inside the feed-forward block (intermediate_size in a config.json).",
        forms=COUNT_FORMS,
        symbol="intermediate_size",
    ),
    Field(
        name="vocab_size",
        label="Vocabulary",
        unit="tokens",
        meaning="Number of rows of the token embedding and, unless tied, of the output head.",
        forms=COUNT_FORMS,
        symbol="vocab_size",
    ),
    Field(
        name="n_learned_positions",
        label="Learned pos.",
        unit="positions",
        meaning="Number of rows of a learned position table (GPT-2, OPT). 0: rotary positions, without parameters.",
        forms=COUNT_FORMS,
        symbol="n_learned_positions",
    ),
    Field(
        name="n_sliding_layers",
        label="Window layers",
        unit="layers",
        meaning="Number of layers that cache only the most recent tokens (sliding-window attention). 0: no such layer.",
        forms=COUNT_FORMS,
        symbol="n_sliding_layers",
    ),
    Field(
        name="window",
        label="Window",
        unit="tokens",
        meaning="Number of tokens that a window layer caches. Leave it empty if there are no window layers.",
        forms=f"{COUNT_FORMS}; empty: none",
        symbol="window",
    ),
    Field(
        name="context",
        label="Context",
        unit="tokens",
        meaning="Number of tokens that one request keeps in the cache: prompt and answer together.",
        forms=COUNT_FORMS,
        symbol="context",
    ),
)
"""Fields that hold a whole number."""

OTHERS = _by_name(
    Field(
        name="model",
        label="Catalog",
        unit="",
        meaning=(
            "The model that the numbers start from. Type to search, or type the path of a config.json, of a folder "
            "that contains one, or of a spec .toml. If you edit a number, the name shows “(edited)”."
        ),
        forms="llama-3-8b, meta-llama/Meta-Llama-3-8B, ./config.json",
    ),
    Field(
        name="device",
        label="Catalog",
        unit="",
        meaning=(
            "The accelerator. For a device in the catalog, usable memory, bandwidth and dense peak FLOP/s are known, "
            "and so is the ridge point. For a device set by hand, only the memory is known."
        ),
        forms="a100-80gb, h100-sxm, …",
    ),
    Field(
        name="memory_bytes",
        label="Memory",
        unit="B",
        meaning=("Memory of one device. 80 GB is not 80 GiB: 80 GB is 80 x 10^9 bytes, 80 GiB is 7 % more."),
        forms=SIZE_FORMS,
        symbol="memory_bytes",
    ),
    Field(
        name="weight_format",
        label="Weights",
        unit="bytes per element",
        meaning=(
            "Storage format of the weights, including scales: one size per parameter, or a GGUF mix or quantized "
            "checkpoint, computed tensor by tensor."
        ),
        forms=f"{FORMAT_FORMS}; Q4_K_M, awq, …; stored, auto",
        symbol="weight_element_bytes",
    ),
    Field(
        name="kv_format",
        label="KV cache",
        unit="bytes per element",
        meaning="Storage format of the K and V cache; for different formats write q8_0/q4_0.",
        forms=FORMAT_FORMS,
        symbol="kv_element_bytes",
    ),
    Field(
        name="tp",
        label="TP",
        unit="GPUs",
        meaning="Tensor-parallel degrees to compare: the number of devices that share one copy of the model.",
        forms=LIST_FORMS,
        symbol="tp",
    ),
    Field(
        name="mlp",
        label="MLP",
        unit="",
        meaning="gated: gate, up and down projections (SwiGLU). plain: up and down projections (ReLU, GELU).",
        forms="← → or Space",
    ),
    Field(
        name="norm",
        label="Norm",
        unit="",
        meaning="rms: a weight vector (RMSNorm). layer: a weight and a bias vector (LayerNorm).",
        forms="← → or Space",
    ),
    Field(
        name="policy",
        label="Split rule",
        unit="",
        meaning=(
            "equal-split: weights and cache are divided by TP (the assignment's rule). replicated: a GPU holds whole "
            "KV heads, copied if TP exceeds their number, as servers do. vllm, sglang, transformers, llamacpp: whole "
            "heads, plus the memory that this server reserves. The Memory pane shows the details."
        ),
        forms="← → or Space",
    ),
    Field(
        name="enforce_eager",
        label="eager",
        unit="",
        meaning="Run without CUDA graphs. This saves their memory, but every operator is launched separately.",
        forms="Space or Enter",
    ),
    Field(
        name="tied",
        label="tied head",
        unit="",
        meaning="The output head shares the weights of the embedding, so they are counted once.",
        forms="Space or Enter",
    ),
    Field(
        name="qk_norm",
        label="QK norm",
        unit="",
        meaning="Norms on queries and keys (Qwen3): 2 x head_dim parameters per layer.",
        forms="Space or Enter",
    ),
    Field(
        name="qkv_bias",
        label="QKV",
        unit="",
        meaning="Biases on the Q, K and V projections (Qwen2, GPT-2).",
        forms="Space or Enter",
    ),
    Field(
        name="o_bias",
        label="output",
        unit="",
        meaning="A bias on the output projection of attention.",
        forms="Space or Enter",
    ),
    Field(
        name="mlp_bias",
        label="MLP",
        unit="",
        meaning="Biases on the projections of the feed-forward block.",
        forms="Space or Enter",
    ),
    Field(
        name="head_bias",
        label="head",
        unit="",
        meaning="A bias on the output head (one value per vocabulary entry).",
        forms="Space or Enter",
    ),
)
"""Every other field."""

FIELDS: dict[str, Field] = {**COUNTS, **OTHERS}

_MINIMA = {"n_learned_positions": 0, "n_sliding_layers": 0}


def _optional_count(text: str, what: str) -> int | None:
    return parse_count(text, what=what) if text.strip() else None


def count_parser(name: str) -> Callable[[str], int | None]:
    """The parser of a whole-number field; its errors name the field by its label. An empty `window` is None."""
    what = COUNTS[name].label
    if name == "window":
        return partial(_optional_count, what=what)
    return partial(parse_count, what=what, minimum=_MINIMA.get(name, 1))


def parse_memory(text: str) -> int:
    """Bytes of the memory field."""
    return parse_size(text, what="Memory")


def parse_tps(text: str) -> tuple[int, ...]:
    """Degrees of the TP field."""
    return parse_counts(text, what="TP", maximum=1 << 20)


def without_unit(text: str) -> str:
    """The text of a storage field; bytes per element may end in their unit (``2 B``)."""
    stripped = text.strip()
    return stripped.rstrip("Bb").rstrip() if stripped[:1].isdigit() else stripped
