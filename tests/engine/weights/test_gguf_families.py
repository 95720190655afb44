"""GGUF files of the families: tiny models of transformers, converted as llama.cpp's convert_hf_to_gguf.py does.

Names come from the gguf package's own table; what the conversion does beside renaming is written out here, by family.
The engine must give the same logits from the folder (which `test_huggingface.py` holds equal to transformers') and from
the file.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.weights.checkpoint import load_checkpoint
from tests.engine.gguf_files import add_value, permuted
from tests.engine.weights.test_huggingface import MODELS, save_random

pytestmark = pytest.mark.slow
Tensors = dict[str, Tensor]
WINDOW = {"attention.sliding_window": 7}
LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
LATENT_FACTS = {
    "attention.head_count_kv": 1, "attention.kv_lora_rank": 12, "attention.key_length": 16,
    "attention.value_length": 12, "attention.key_length_mla": 10, "attention.value_length_mla": 5,
    "rope.dimension_count": 4, "expert_count": 6, "expert_used_count": 3, "expert_shared_count": 2,
    "expert_feed_forward_length": 10, "leading_dense_block_count": 1,
}  # fmt: skip


def test_olmo3_is_told_by_its_window(tmp_path: Path) -> None:
    facts = WINDOW | {"attention.sliding_window_pattern": [True, True, True, False, True], "rope.freq_base": 5e5}
    assert_same(tmp_path, "olmo3", "olmo2", facts)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "olmo2": ("olmo2", {"attention_bias": False}, {}),
    "granite": (
        "granite",
        {},
        {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.5},
    ),
    "arcee": ("arcee", {}, {}),
    "seed-oss": ("seed_oss", {}, {"attention.key_length": 10}),
    "ernie": ("ernie4_5", {}, {"attention.key_length": 10, "rope.freq_base": 5e5}),
    "stablelm": ("stablelm", {}, LAYER_NORM | {"rope.dimension_count": 4, "use_parallel_residual": False}),
    "stablelm2": ("stablelm", {}, LAYER_NORM | {"rope.dimension_count": 4, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": None}, LAYER_NORM),
    "cohere": ("command-r", {}, LAYER_NORM | {"logit_scale": 1.5, "rope.scaling.type": "none", "rope.freq_base": 5e5}),
    "cohere-plain": ("command-r", {}, LAYER_NORM | {"logit_scale": 1.5, "rope.freq_base": 5e5}),
    "cohere2": ("cohere2", {}, LAYER_NORM | WINDOW | {"logit_scale": 1.5, "rope.dimension_count": 8}),
    "glm4": ("glm4", {}, {"attention.key_length": 12, "rope.dimension_count": 6}),
    "exaone4": ("exaone4", {}, WINDOW | {"attention.sliding_window_pattern": [True, True, True, False, True]}),
    "exaone4-full": ("exaone4", {}, {}),
    "phi": ("phi2", {"num_key_value_heads": 4}, LAYER_NORM | {"rope.dimension_count": 4, "attention.head_count_kv": 4}),
    "falcon": ("falcon", {}, LAYER_NORM | {"attention.head_count_kv": 1}),
    "falcon-grouped": ("falcon", {}, LAYER_NORM),
    "gpt-neox": ("gptneox", {}, LAYER_NORM | {"rope.dimension_count": 4, "attention.head_count_kv": 4}),
    "gpt-neox-serial": (
        "gptneox",
        {},
        LAYER_NORM | {"rope.dimension_count": 2, "attention.head_count_kv": 4, "use_parallel_residual": False},
    ),
    "qwen2-moe": (
        "qwen2moe",
        {"mlp_only_layers": []},
        {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 10}
        | {"expert_shared_feed_forward_length": 14},
    ),
    "deepseek-v2": (
        "deepseek2",
        {"attention_bias": False},
        LATENT_FACTS | {"attention.q_lora_rank": 14, "expert_group_count": 3, "expert_group_used_count": 2}
        | {"expert_weights_scale": 16.0, "expert_gating_func": 1},
    ),
    "deepseek-v3": (
        "deepseek2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        LATENT_FACTS | {"attention.q_lora_rank": 14, "expert_group_count": 3, "expert_group_used_count": 2}
        | {"expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2},
    ),
    "lfm2": (
        "lfm2",
        {"conv_bias": False},
        {"attention.head_count_kv": [0, 0, 2, 0], "shortconv.l_cache": 3, "rope.freq_base": 1e6}
        | {"attention.layer_norm_rms_epsilon": 1e-5, "feed_forward_length": 32},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_file_gives_the_logits_of_the_folder(name: str, tmp_path: Path) -> None:
    architecture, changes, facts = CASES[name]
    assert_same(tmp_path, name, architecture, facts, changes)


def assert_same(
    path: Path, name: str, architecture: str, facts: Mapping[str, Any], changes: Mapping[str, Any] | None = None
) -> None:
    kind, stated = MODELS[name]
    save_random(kind, stated | dict(changes or {}), path)
    folder = load_checkpoint(path, dtype="float64").decoder
    file = load_checkpoint(converted(path, architecture, facts), dtype="float64").decoder
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(file.forward(ids), folder.forward(ids), rtol=0, atol=1e-5)  # eps is a float32 there


def converted(folder: Path, architecture: str, facts: Mapping[str, Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    said = {
        "block_count": config["num_hidden_layers"], "context_length": 96, "embedding_length": 32,
        "feed_forward_length": config.get("intermediate_size", 128), "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps", 1e-5),
        "rope.freq_base": 1e4,
    } | dict(facts)  # fmt: skip
    writer = gguf.GGUFWriter(folder / "m.gguf", architecture)
    for key, value in said.items():
        add_value(writer, f"{architecture}.{key}", value)
    known = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    names = gguf.get_tensor_name_map(known, config["num_hidden_layers"])
    for name, tensor in _changed(tensors, architecture, said).items():
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        writer.add_tensor(theirs, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


# --- what the conversion does beside renaming -------------------------------------------------------------


def _changed(tensors: Tensors, architecture: str, said: Mapping[str, Any]) -> Tensors:
    if architecture in ("granite", "arcee"):
        return {name: _permuted(name, tensor) for name, tensor in tensors.items()}
    if architecture in ("falcon", "gptneox"):
        n_groups = said["attention.head_count_kv"]
        return {name: _by_kind(t, n_groups) if "query_key_value" in name else t for name, t in tensors.items()}
    if architecture == "stablelm":
        return _stacked(tensors, r"(.+[qk]_layernorm)\.norms\.(\d+)(\.weight)")
    if architecture == "lfm2":
        return {name: t.squeeze(1) if "conv.conv" in name else t for name, t in tensors.items()}
    if architecture == "deepseek2":
        tensors = dict(_without_joined(tensors))
    if architecture in ("deepseek2", "qwen2moe"):
        return _stacked(tensors, r"(.+\.mlp\.experts)\.(\d+)(\..+_proj\.weight)")
    return tensors


def _permuted(name: str, tensor: Tensor) -> Tensor:
    if not re.search(r"[qk]_proj\.", name):
        return tensor
    return torch.from_numpy(permuted(tensor.numpy(), 4 if "q_proj" in name else 2))


def _by_kind(qkv: Tensor, n_groups: int) -> Tensor:
    """All queries, all keys, all values, out of groups of queries with their key and value."""
    groups = qkv.reshape(n_groups, 4 // n_groups + 2, 8, *qkv.shape[1:])
    parts = (groups[:, :-2], groups[:, [-2]], groups[:, [-1]])
    return torch.cat([part.reshape(-1, *qkv.shape[1:]) for part in parts])


def _stacked(tensors: Tensors, pattern: str) -> Tensors:
    """Tensors that differ in one number as one, under the name without it."""
    out: Tensors = {}
    many: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            out[name] = tensor
        else:
            many.setdefault(match[1] + match[3], {})[int(match[2])] = tensor
    return out | {name: torch.stack([each[i] for i in sorted(each)]) for name, each in many.items()}


def _without_joined(tensors: Tensors) -> Tensors:
    """kv_b_proj as its halves, that of the keys transposed."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if "kv_b_proj" not in name:
            out[name] = tensor
            continue
        keys, values = tensor.view(4, 6 + 5, 12).split([6, 5], 1)
        out[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
        out[name.replace("kv_b_proj", "v_b_proj")] = values
    return out
