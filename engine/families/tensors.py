"""Split fused projections, and reorder rotated heads to the engine's layout."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.config import ModelConfig
from engine.weights.lazy import Stored, StoredTensor, loaded


def all_loaded(tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Read every tensor, for families that change whole tensors."""
    return {name: loaded(tensor) for name, tensor in tensors.items()}


def qkv_sizes(config: ModelConfig) -> dict[str, int]:
    """Rows of each part of a fused projection, in order."""
    q_size, kv_size = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}


def split_qkv(tensor: Tensor, prefix: str, kind: str, config: ModelConfig) -> dict[str, Stored]:
    """The parts of a fused projection as ``prefix.q_proj.kind`` and so on. Raises CheckpointError."""
    sizes = qkv_sizes(config)
    if tensor.size(0) != sum(sizes.values()):
        raise CheckpointError(
            f"{prefix}: the fused q, k and v have {tensor.size(0)} rows; expected {sum(sizes.values())}"
        )
    parts = torch.split(tensor, list(sizes.values()))
    return {f"{prefix}.{name}.{kind}": part for name, part in zip(sizes, parts, strict=True)}


_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d{1,5})\.(.+)\.(weight|bias)")


def renamed(name: str, parts: Mapping[str, str], ends: Mapping[str, str]) -> str:
    """Our name of a tensor, from the family's names inside a layer (``parts``) and outside the layers (``ends``).

    Other names are unchanged. Names in ``ends`` have no prefix such as "transformer.".
    """
    match = _LAYER.fullmatch(name)
    if match is not None:
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{parts[part]}.{kind}" if part in parts else name
    stem, _, kind = name.rpartition(".")
    ours = next((ends[end] for end in (stem, stem.partition(".")[2]) if end in ends), stem)
    return f"{ours}.{kind}"


def split_gate_up(name: str, stored: Stored, config: ModelConfig) -> dict[str, Stored]:
    """``mlp.gate_up_proj`` as gate_proj and up_proj; other tensors are unchanged."""
    stem, _, kind = name.rpartition(".")
    if not stem.endswith(".gate_up_proj"):
        return {name: stored}
    inner, prefix = config.intermediate_size, stem.removesuffix("gate_up_proj")
    return {
        f"{prefix}{part}.{kind}": rows_of(stored, i * inner, (i + 1) * inner)
        for i, part in enumerate(("gate_proj", "up_proj"))
    }


def split_groups(name: str, stored: Stored, config: ModelConfig) -> dict[str, Stored]:
    """``qkv_proj`` with the queries of a group, its key, its value, then the next group. Raises CheckpointError."""
    stem, _, kind = name.rpartition(".")
    prefix, per_group, h = stem.removesuffix("qkv_proj"), config.group_size, config.head_dim
    n_rows = config.n_kv_heads * (per_group + 2) * h
    if stored.shape[0] != n_rows:
        raise CheckpointError(f"{name} has {stored.shape[0]} rows; expected {n_rows}")
    places = {"q_proj": (0, per_group), "k_proj": (per_group, 1), "v_proj": (per_group + 1, 1)}
    return {f"{prefix}{part}.{kind}": _of_groups(stored, first, n, config) for part, (first, n) in places.items()}


def renamed_with_groups(
    parts: Mapping[str, str], ends: Mapping[str, str]
) -> Callable[[Mapping[str, Stored], ModelConfig], dict[str, Stored]]:
    """Tensors under our names (`renamed`), the ``qkv_proj`` of a layer split by `split_groups`."""

    def tensors(theirs: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
        out: dict[str, Stored] = {}
        for their_name, stored in theirs.items():
            name = renamed(their_name, parts, ends)
            out |= split_groups(name, stored, config) if ".self_attn.qkv_proj." in name else {name: stored}
        return out

    return tensors


def _of_groups(stored: Stored, first: int, n: int, config: ModelConfig) -> Stored:
    """The rows of ``n`` heads of each group, from head ``first`` of the group on."""

    def change(tensor: Tensor) -> Tensor:
        groups = tensor.reshape(config.n_kv_heads, -1, config.head_dim, *tensor.shape[1:])
        return groups[:, first : first + n].reshape(-1, *tensor.shape[1:])

    shape = (config.n_kv_heads * n * config.head_dim, *stored.shape[1:])
    return change(stored) if isinstance(stored, Tensor) else stored.then(change, shape)


def experts_apart(name: str, stored: Stored) -> dict[str, Stored]:
    """Split experts stored in one tensor (outputs first, gate before up) into one tensor per expert, by our names."""
    prefix, _, part = name.rpartition(".experts.")
    if part not in ("gate_up_proj", "down_proj"):
        return {name: stored}
    out: dict[str, Stored] = {}
    for i in range(stored.shape[0]):
        one, ours = _entry(stored, i), f"{prefix}.experts.{i}"
        inner = one.shape[0] // 2
        if part == "down_proj":
            out[f"{ours}.down_proj.weight"] = one
        else:
            out[f"{ours}.gate_proj.weight"] = rows_of(one, 0, inner)
            out[f"{ours}.up_proj.weight"] = rows_of(one, inner, one.shape[0])
    return out


def _entry(stored: Stored, index: int) -> Stored:
    """One entry of the first dimension, read separately if possible."""
    one = rows_of(stored, index, index + 1)
    return one[0] if isinstance(one, Tensor) else one.then(lambda t: t[0], one.shape[1:])


def rows_in_order(stored: Stored, parts: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Distribute all rows of a matrix among ``parts`` (row numbers by name); quantised blocks stay as stored."""
    order = torch.cat(list(parts.values()))
    whole = stored[order] if isinstance(stored, Tensor) else stored.reordered(lambda t: t[order], stored.shape[0])
    out: dict[str, Stored] = {}
    start = 0
    for name, rows in parts.items():
        out[name] = rows_of(whole, start, start + rows.numel())
        start += rows.numel()
    return out


def rows_of(stored: Stored, start: int, stop: int) -> Stored:
    """Some rows of a matrix."""
    return stored[start:stop] if isinstance(stored, Tensor) else stored.rows(start, stop)


_TURNED = re.compile(r".+\.[qk]_(proj|norm)\.(weight|bias)")


def in_halves(name: str, stored: Stored, config: ModelConfig) -> Stored:
    """Reorder queries, keys and per-head norms from adjacent pairs to the engine's layout (halves)."""
    match = _TURNED.fullmatch(name)
    if match is None or (stored.shape[0] % config.head_dim and match[1] == "proj"):
        return stored  # a wrong shape is refused later, with all shapes
    rotary_dim = config.rotary_dim or config.head_dim

    def change(tensor: Tensor) -> Tensor:
        flat = tensor if tensor.dim() == 2 and match[1] == "proj" else tensor.reshape(-1, 1)
        heads = flat.reshape(-1, config.head_dim, flat.size(1))
        turned = half_split(heads[:, :rotary_dim], rotary_dim=rotary_dim)
        return torch.cat((turned, heads[:, rotary_dim:]), 1).reshape(tensor.shape)

    if isinstance(stored, Tensor):
        return change(stored)
    return stored.reordered(change, config.head_dim) if match[1] == "proj" else stored.then(change)


def pairs_restored(name: str, stored: StoredTensor, config: ModelConfig) -> StoredTensor:
    """`in_halves` for a GGUF tensor: llama.cpp rotates these heads in adjacent pairs, like Hugging Face's layout."""
    found = in_halves(name, stored, config)
    assert isinstance(found, StoredTensor)
    return found


def half_split(weight: Tensor, *, rotary_dim: int) -> Tensor:
    """Rows (..., rotary_dim, inputs) from adjacent pairs (0 1 2 3) to halves (0 2 1 3)."""
    *lead, rows, inputs = weight.shape
    if rows != rotary_dim:
        raise CheckpointError(f"{rows} rows were to be rotated; expected {rotary_dim}")
    return weight.reshape(*lead, rotary_dim // 2, 2, inputs).transpose(-3, -2).reshape(*lead, rows, inputs)
