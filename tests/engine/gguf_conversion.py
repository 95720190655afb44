"""Tiny GGUF files of every architecture that the engine reads, from models of transformers as llama.cpp converts them.

Names come from the gguf package's own table; what the conversion does beside renaming is written out here, by
architecture, and the weights are drawn by their names alone, so that a file is the same wherever it is made.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.model.config import Llama3RopeScaling
from engine.model.rotary import rope_frequencies
from tests.engine.gguf_files import add_value, permuted
from tests.engine.hf_models import LLAMA3, LONG, MODELS, make_random
from tests.engine.hf_models import YARN as STRETCHED

Tensors = dict[str, Tensor]
Said = Mapping[str, Any]
IDS = list(range(3, 40))
"""The text that both programs read."""
GOLDEN = Path(__file__).parent / "weights" / "llama_cpp_logits.json"
"""llama.cpp's logits by case, which bench/gguf_architectures.py --golden writes."""
KEPT = (11, len(IDS) - 1)
"""The positions whose logits are kept."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model as a file of ``architecture``: one of `MODELS` with ``changes``, and ``facts`` written of it."""

    model: str
    architecture: str
    changes: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    fused: bool = False
    """Queries, keys and values in one matrix, and gates and ups of experts in one."""
    own: bool = False
    """llama.cpp computes otherwise than the published model, and the engine does so too: the folder's logits differ."""


WINDOW = {"attention.sliding_window": 7}
LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
FOUR_TIMES = {"feed_forward_length": 128}
ROWS = {"attention.head_count_kv": 4}  # as many as heads
FEW = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 10}
SIGMOID = {
    "expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 10, "leading_dense_block_count": 1,
    "expert_weights_scale": 1.0, "expert_weights_norm": True, "expert_gating_func": 2,
}  # fmt: skip
LATENT = SIGMOID | {
    "attention.head_count_kv": 1, "attention.kv_lora_rank": 12, "attention.key_length": 16, "attention.q_lora_rank": 14,
    "attention.value_length": 12, "attention.key_length_mla": 10, "attention.value_length_mla": 5,
    "rope.dimension_count": 4, "expert_shared_count": 2,
}  # fmt: skip
GROUPS = {"expert_group_count": 3, "expert_group_used_count": 2}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 24}
DELTA = {
    "ssm.conv_kernel": 4, "ssm.state_size": 6, "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 24,
    "attention.key_length": 16, "rope.dimension_count": 4, "full_attention_interval": 2,
}  # fmt: skip
SQUARE = {"linear_value_head_dim": 6}  # llama.cpp's states are square
GRANITE = {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 0.5}
TANH = {"hidden_act": "gelu_pytorch_tanh"}
GEMMA = WINDOW | {"attention.key_length": 10}
UNSCALED = {"query_pre_attn_scalar": 10}


CASES: dict[str, Case] = {
    "llama": Case("llama", "llama"),
    "llama-3.1": Case("llama-3.1", "llama", facts={"attention.key_length": 16, "rope.freq_base": 5e5}),
    "llama-linear": Case("llama-linear", "llama", facts={"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}
    ),
    "llama-yarn": Case("llama-yarn", "llama", facts=YARN | {"attention.key_length": 16}),
    "llama-biases": Case("llama-biases", "llama"),
    "llama-fused": Case("llama", "llama", fused=True),
    "llama-tied": Case("smollm2", "llama", facts=ROWS),
    "smollm3": Case("smollm3", "smollm3", facts={"rope.freq_base": 2e6}),
    "mixtral": Case("mixtral", "llama", facts={"expert_count": 5, "expert_used_count": 2}
                    | {"rope.freq_base": 1e6}),
    "qwen2": Case("qwen2", "qwen2"),
    "qwen3": Case("qwen3", "qwen3", facts={"attention.key_length": 16, "attention.head_count_kv": 1}),
    "qwen3-moe": Case("qwen3-moe", "qwen3moe", facts=FEW | {"attention.key_length": 16}),
    "qwen2-moe": Case("qwen2-moe", "qwen2moe", changes={"mlp_only_layers": []},
                      facts=FEW | {"expert_shared_feed_forward_length": 14}),
    "gemma": Case("gemma", "gemma", facts={"attention.key_length": 10}),
    "gemma2": Case("gemma2", "gemma2", changes=UNSCALED,
                   facts=GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": Case("gemma3", "gemma3", changes=UNSCALED, facts=GEMMA | {
        "attention.sliding_window_pattern": 3, "rope.freq_base": 1e6, "rope.freq_base_swa": 500.0,
        "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "gpt2": Case("gpt2", "gpt2", facts=LAYER_NORM | ROWS | FOUR_TIMES),
    "phi3": Case("phi3", "phi3", changes={"sliding_window": None}, facts=WINDOW),
    "phi3-long": Case("phi3", "phi3", changes={
        "sliding_window": None, "rope_parameters": LONG, "original_max_position_embeddings": 24}, facts={
            "rope.dimension_count": 4, "rope.scaling.original_context_length": 24,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(24))}),
    "gpt-oss": Case("gpt-oss", "gpt-oss", facts=WINDOW | YARN | {
        "expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 48, "attention.key_length": 10},
        changes={"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "truncate": True,
                                     "original_max_position_embeddings": 24}}),
    "olmo": Case("olmo", "olmo", changes={"num_key_value_heads": 4}, facts=LAYER_NORM | ROWS),
    "olmo2": Case("olmo2", "olmo2", changes={"attention_bias": False}),
    "olmo3": Case("olmo3", "olmo2", facts=WINDOW | {
        "attention.sliding_window_pattern": [True, True, True, False, True], "rope.freq_base": 5e5}),
    "olmoe": Case("olmoe", "olmoe", changes={"num_key_value_heads": 4},
                  facts=ROWS | {"expert_count": 6, "expert_used_count": 2}),
    "granite": Case("granite", "granite", facts=GRANITE),
    "granite-moe": Case("granite-moe", "granitemoe",
                        facts=GRANITE | {"expert_count": 6, "expert_used_count": 2}),
    "granite-moe-shared": Case("granite-moe-shared", "granitemoe", facts=GRANITE | {
        "expert_count": 6, "expert_used_count": 2, "expert_shared_feed_forward_length": 14}),
    "arcee": Case("arcee", "arcee", changes={"mlp_bias": False}),
    "seed-oss": Case("seed-oss", "seed_oss", changes={"attention_out_bias": False}, facts={"attention.key_length": 10}),
    "hunyuan-moe": Case("hunyuan-moe", "hunyuan-moe", facts={
        "expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 48, "expert_shared_count": 1,
        "expert_shared_feed_forward_length": 48, "attention.key_length": 10}),
    "minimax-m2": Case("minimax-m2", "minimax-m2", facts={
        "expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 48, "expert_gating_func": 2,
        "attention.key_length": 12, "rope.dimension_count": 6}),
    "bitnet": Case("bitnet", "bitnet", changes={"hidden_act": "silu", "tie_word_embeddings": True},
                   facts={"rope.scaling.type": "linear", "rope.scaling.factor": 1.0, "rope.freq_base": 5e5}),
    "apertus": Case("apertus", "apertus", changes={"attention_bias": False},
                    facts={"rope.freq_base": 5e5}),
    "ernie": Case("ernie", "ernie4_5", changes={"use_bias": False},
                  facts={"attention.key_length": 10, "rope.freq_base": 5e5}),
    "ernie-moe": Case("ernie-moe", "ernie4_5-moe", changes={"moe_layer_end_index": -1}, facts={
        "expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 10, "expert_shared_count": 2,
        "expert_shared_feed_forward_length": 20, "interleave_moe_layer_step": 1, "leading_dense_block_count": 1,
        "rope.freq_base": 5e5}),
    "hunyuan": Case("hunyuan", "hunyuan-dense", facts={"attention.key_length": 10}),
    "ministral3": Case("ministral3", "mistral3", facts=YARN | {
        "rope.scaling.original_context_length": 9, "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": 0.3, "attention.key_length": 10}),
    "stablelm": Case("stablelm", "stablelm", facts=LAYER_NORM | {
        "rope.dimension_count": 4, "use_parallel_residual": False}),
    "stablelm2": Case("stablelm2", "stablelm", facts=LAYER_NORM | {
        "rope.dimension_count": 4, "use_parallel_residual": True}),
    "starcoder": Case("gpt-bigcode", "starcoder", facts=LAYER_NORM | {"attention.head_count_kv": 1}),
    "starcoder2": Case("starcoder2", "starcoder2", changes={"sliding_window": None},
                       facts=LAYER_NORM),
    "cohere": Case("cohere", "command-r", changes={"num_hidden_layers": 64}, facts=LAYER_NORM | {
        "logit_scale": 1.5, "rope.scaling.type": "none", "rope.freq_base": 5e5}),
    "cohere-plain": Case("cohere-plain", "command-r", changes={"attention_bias": False},
                         facts=LAYER_NORM | {"logit_scale": 1.5, "rope.freq_base": 5e5}),
    "cohere2": Case("cohere2", "cohere2", facts=LAYER_NORM | WINDOW | {
        "logit_scale": 1.5, "rope.dimension_count": 8}),
    "glm": Case("glm", "chatglm", changes={"head_dim": 8}, facts={"rope.dimension_count": 4}),
    "glm4": Case("glm4", "glm4", facts={"attention.key_length": 12, "rope.dimension_count": 6}),
    "glm4-moe": Case("glm4-moe", "glm4moe", facts=SIGMOID | {
        "attention.key_length": 12, "rope.dimension_count": 6, "expert_shared_count": 1, "nextn_predict_layers": 0}),
    "dots1": Case("dots1", "dots1", changes={"num_key_value_heads": 4},
                  facts=SIGMOID | GROUPS | ROWS | {
        "expert_weights_norm": False, "attention.key_length": 10, "expert_shared_count": 2}),
    "exaone4": Case("exaone4-full", "exaone4"),
    "exaone4-window": Case("exaone4", "exaone4", changes={"num_hidden_layers": 64}, facts=WINDOW | {
        "attention.sliding_window_pattern": 4}),
    "phi": Case("phi", "phi2", changes={"num_key_value_heads": 4},
                facts=LAYER_NORM | ROWS | {"rope.dimension_count": 4}),
    "falcon": Case("falcon", "falcon", changes={"activation": "gelu_pytorch_tanh"},
                   facts=LAYER_NORM | FOUR_TIMES | {"attention.head_count_kv": 1}),
    "falcon-grouped": Case("falcon-grouped", "falcon", changes={"bias": False,
                           "activation": "gelu_pytorch_tanh"}, facts=LAYER_NORM | FOUR_TIMES),
    "gpt-neox": Case("gpt-neox", "gptneox", changes=TANH, facts=LAYER_NORM | ROWS | {
        "rope.dimension_count": 4, "use_parallel_residual": True}),
    "gpt-neox-serial": Case("gpt-neox-serial", "gptneox", changes=TANH | {"attention_bias": True},
                            facts=LAYER_NORM | ROWS | {"rope.dimension_count": 2, "use_parallel_residual": False}),
    "nemotron": Case("nemotron", "nemotron", facts=LAYER_NORM | {
        "rope.dimension_count": 4, "rope.scaling.type": "none"}),
    "bloom": Case("bloom", "bloom", facts=LAYER_NORM | ROWS | FOUR_TIMES),
    "bloom-six-heads": Case("bloom-six-heads", "bloom", facts=LAYER_NORM | {
        "embedding_length": 48, "feed_forward_length": 192, "attention.head_count": 6, "attention.head_count_kv": 6}),
    "mpt": Case("mpt", "mpt", facts=LAYER_NORM | ROWS | FOUR_TIMES | {"attention.max_alibi_bias": 8.0}, own=True),
    "mpt-six-heads": Case("mpt-six-heads", "mpt", own=True, facts=LAYER_NORM | {
        "embedding_length": 48, "feed_forward_length": 192, "attention.head_count": 6, "attention.head_count_kv": 6,
        "attention.max_alibi_bias": 8.0}),
    "lfm2": Case("lfm2", "lfm2", changes={"conv_bias": False}, facts={
        "attention.head_count_kv": [0, 0, 2, 0], "shortconv.l_cache": 3, "rope.freq_base": 1e6,
        "attention.layer_norm_rms_epsilon": 1e-5, "feed_forward_length": 32}),
    "lfm2-moe": Case("lfm2-moe", "lfm2moe", changes={
        "routed_scaling_factor": 1.0, "tie_word_embeddings": True}, facts=SIGMOID | {
        "expert_used_count": 2, "attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 3, "rope.freq_base": 1e6,
        "attention.layer_norm_rms_epsilon": 1e-5}),
    "lfm2-window": Case("lfm2", "lfm2", changes={"conv_bias": False}, own=True, facts=WINDOW | {
        "attention.head_count_kv": [0, 0, 2, 0], "shortconv.l_cache": 3, "rope.freq_base": 1e6,
        "attention.layer_norm_rms_epsilon": 1e-5, "feed_forward_length": 32}),
    "deepseek-v2": Case("deepseek-v2", "deepseek2", changes={"attention_bias": False}, own=True,
                        facts=LATENT | GROUPS | {"expert_weights_scale": 16.0, "expert_weights_norm": False,
                                                 "expert_gating_func": 1}),
    "deepseek-v2-yarn": Case("deepseek-v2-lite", "deepseek2", changes={
        "q_lora_rank": 14, "rope_parameters": STRETCHED | {"factor": 40.0, "mscale": 0.5, "mscale_all_dim": 0.5}},
                             facts=LATENT | YARN | {
        "rope.scaling.factor": 40.0, "rope.scaling.yarn_log_multiplier": 0.05,
        "expert_weights_norm": False, "expert_gating_func": 1}),
    "deepseek-v3": Case("deepseek-v3", "deepseek2", facts=LATENT | GROUPS | {
        "expert_weights_scale": 2.5}, changes={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "glm4-moe-lite": Case("glm4-moe-lite", "deepseek2", facts=LATENT | {"expert_weights_scale": 1.8}, own=True),
    "qwen3-next": Case("qwen3-next", "qwen3next", changes=SQUARE,
                       facts=FEW | DELTA | {"expert_shared_feed_forward_length": 14}),
    "qwen3-next-fused": Case("qwen3-next", "qwen3next", changes=SQUARE, fused=True,
                             facts=FEW | DELTA | {"expert_shared_feed_forward_length": 14}),
    "qwen3.5": Case("qwen3.5", "qwen35", changes=SQUARE,
                    facts=DELTA | {"rope.dimension_sections": [1, 1, 0, 0]}),
    "qwen3.5-moe": Case("qwen3.5-moe", "qwen35moe", changes=SQUARE, facts=FEW | DELTA | {
        "expert_shared_feed_forward_length": 14, "rope.dimension_sections": [1, 1, 0, 0]}),
}  # fmt: skip


def tolerance(case: Case) -> float:
    """How far logits may differ by rounding: llama.cpp computes in float32, and looks GELU up in a table of float16."""
    if case.architecture in _RECURRENT:  # states are long sums
        return 1e-3
    if case.architecture.startswith("gemma"):  # larger logits
        return 3e-2
    return 5e-3 if case.architecture in _WITH_GELU else 1e-4


_RECURRENT = ("qwen3next", "qwen35", "qwen35moe")
_WITH_GELU = ("gpt2", "starcoder", "starcoder2", "phi2", "falcon", "gptneox", "bloom", "mpt")


def save_named(case: Case, folder: Path) -> Any:
    """The model of a case as a folder, its weights drawn by their names; and transformers' model with them."""
    kind, stated = MODELS[case.model]
    model = make_random(kind, stated | case.changes)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({name: _drawn(name, tensor) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return type(model).from_pretrained(folder, attn_implementation=model.config._attn_implementation).eval()


def _drawn(name: str, tensor: Tensor) -> Tensor:
    """Values by the name alone: RandomState gives the same ones with every version of numpy. Constants stay."""
    if tensor.dim() == 0:
        return tensor
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    spread = 0.3 if tensor.dim() == 1 else 1.5 / math.sqrt(tensor.shape[-1])
    middle = 1.0 if "norm" in name or ".ln_" in name else 0.0
    values = draw.standard_normal(tensor.shape) * spread + middle
    return torch.from_numpy(values).to(tensor.dtype)


def converted(folder: Path, case: Case, *, kind: str = "F32") -> Path:
    """The folder's model as a GGUF file in it; ``kind``: of matrices whose rows are whole blocks of 32."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    n_layers = next(config[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config)
    said = {
        "block_count": n_layers, "context_length": 96, "embedding_length": 32, "vocab_size": 61,
        "feed_forward_length": config.get("intermediate_size") or config.get("n_inner") or 128,
        "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps", 1e-5), "rope.freq_base": 1e4,
    } | case.facts  # fmt: skip
    if "attention.key_length" in said:
        said = {"attention.value_length": said["attention.key_length"]} | said
    writer = gguf.GGUFWriter(folder / "m.gguf", case.architecture)
    writer.add_tokenizer_model("no_vocab")
    named = _named(_changed(tensors, case.architecture, said, config), case.architecture, n_layers)
    for key, value in said.items():
        add_value(writer, f"{case.architecture}.{key}", value)
    for key, value in _taken_out(tensors).items():
        add_value(writer, key, value)
    for name, tensor in ((_fused(named) if case.fused else named) | _more(case)).items():
        values, wanted = tensor.float().contiguous().numpy(), gguf.GGMLQuantizationType[kind]
        if kind == "F32" or tensor.dim() < 2 or tensor.shape[-1] % 32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


def _named(tensors: Tensors, architecture: str, n_layers: int) -> Tensors:
    known = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    names = gguf.get_tensor_name_map(known, n_layers)
    out: Tensors = {}
    for name, tensor in tensors.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        out[theirs] = tensor
    return out


def _fused(tensors: Tensors) -> Tensors:
    out = dict(tensors)
    for name in tensors:
        if ".attn_q." in name:
            joined = torch.cat([out.pop(name.replace(".attn_q.", f".attn_{part}.")) for part in "qkv"])
            out[name.replace(".attn_q.", ".attn_qkv.")] = joined
        if ".ffn_gate_exps." in name:
            up = out.pop(name.replace(".ffn_gate_exps.", ".ffn_up_exps."))
            out[name.replace(".ffn_gate_exps.", ".ffn_gate_up_exps.")] = torch.cat((out.pop(name), up), 1)
    return out


def _more(case: Case) -> Tensors:
    """Tensors that the conversion makes out of the config."""
    if MODELS[case.model][1].get("rope_parameters") == LLAMA3:
        scaling = Llama3RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32)
        dim = case.facts.get("attention.key_length", 8)
        return {"rope_freqs.weight": rope_frequencies(dim, 5e5, None) / rope_frequencies(dim, 5e5, scaling)}
    if case.changes.get("rope_parameters") is LONG:
        return {f"rope_factors_{name}.weight": torch.tensor(LONG[f"{name}_factor"]) for name in ("short", "long")}
    return {}


def _taken_out(tensors: Tensors) -> dict[str, Any]:
    """Tensors that the conversion writes as metadata: those of Apertus's activation, layer by layer."""
    out: dict[str, list[float]] = {}
    for name in sorted(name for name in tensors if ".act_fn." in name):
        out.setdefault(f"xielu.{name.rpartition('.')[2]}", []).append(tensors[name].item())
    return out


# --- what the conversion does beside renaming -------------------------------------------------------------


def _changed(tensors: Tensors, architecture: str, said: Said, config: Mapping[str, Any]) -> Tensors:
    tensors = dict(_choice(name, tensor) for name, tensor in tensors.items())
    for change in _CHANGES.get(architecture, ()):
        tensors = change(tensors, said)
    return tensors


def _choice(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """What is added for the choice of experts, which the gguf package knows by another name."""
    bias = "e_score_correction_bias"
    return (name.replace(bias, "e_score_correction.bias"), tensor.flatten()) if bias in name else (name, tensor)


def _permuted(tensors: Tensors, said: Said) -> Tensors:
    heads = {"q": said["attention.head_count"], "k": said["attention.head_count_kv"]}
    out: Tensors = {}
    for name, tensor in tensors.items():
        match = re.search(r"\.([qk])_proj\.(weight|bias)", name)
        rows = tensor if match is None or tensor.dim() == 2 else tensor[:, None]
        if match is not None:
            tensor = torch.from_numpy(permuted(rows.numpy(), heads[match[1]])).view_as(tensor)
        out[name] = tensor
    return out


def _by_kind(tensors: Tensors, said: Said) -> Tensors:
    """All queries, all keys, all values, out of groups of queries with their key and value."""
    n_heads, n_groups = said["attention.head_count"], said["attention.head_count_kv"]

    def change(qkv: Tensor) -> Tensor:
        groups = qkv.reshape(n_groups, n_heads // n_groups + 2, -1, *qkv.shape[1:])
        parts = (groups[:, :-2], groups[:, [-2]], groups[:, [-1]])
        return torch.cat([part.reshape(-1, *qkv.shape[1:]) for part in parts])

    return {name: change(t) if "query_key_value" in name else t for name, t in tensors.items()}


def _stacked(pattern: str) -> Callable[[Tensors, Said], Tensors]:
    """Tensors that differ in one number as one, under the name without it."""

    def change(tensors: Tensors, said: Said) -> Tensors:
        out: Tensors = {}
        many: dict[str, dict[int, Tensor]] = {}
        for name, tensor in tensors.items():
            match = re.fullmatch(pattern, name)
            if match is None:
                out[name] = tensor
            else:
                many.setdefault(match[1] + match[3], {})[int(match[2])] = tensor
        return out | {name: torch.stack([each[i] for i in sorted(each)]) for name, each in many.items()}

    return change


def _latent_apart(tensors: Tensors, said: Said) -> Tensors:
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


def _one_more(tensors: Tensors, said: Said) -> Tensors:
    """Norms that are counted from 1."""
    norms = {name for name in tensors if name.endswith("norm.weight") and "linear_attn.norm" not in name}
    return {name: t + 1 if name in norms else t for name, t in tensors.items()}


def _turned_over(tensors: Tensors, said: Said) -> Tensors:
    """GPT-2's matrices, which stand inputs first."""
    return {name: t.t() if re.search(r"\.c_(attn|fc|proj)\.weight", name) else t for name, t in tensors.items()}


def _short(tensors: Tensors, said: Said) -> Tensors:
    """Convolutions without their second dimension."""
    return {name: t.squeeze(1) if "conv" in name and t.dim() == 3 else t for name, t in tensors.items()}


def _oss(tensors: Tensors, said: Said) -> Tensors:
    """Experts outputs first, gate and up apart."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        stem, kind = name.removesuffix("_bias"), "bias" if name.endswith("_bias") else "weight"
        turned = tensor.transpose(1, 2) if ".experts." in name and kind == "weight" else tensor
        if stem.endswith("gate_up_proj"):
            out[f"{stem.removesuffix('gate_up_proj')}gate_proj.{kind}"] = turned[:, ::2]
            out[f"{stem.removesuffix('gate_up_proj')}up_proj.{kind}"] = turned[:, 1::2]
        elif ".experts." in name:
            out[f"{stem}.{kind}"] = turned
        else:
            out[f"{name}.weight" if name.endswith("sinks") else name] = tensor
    return out


def _granite_experts(tensors: Tensors, said: Said) -> Tensors:
    """Gate and up apart."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("input_linear.weight")
        if stem == name:
            out[name] = tensor
            continue
        gate, up = tensor.chunk(2, -2)
        layer = re.sub(r"(shared_mlp|block_sparse_moe)\.$", "", stem)
        experts = "mlp.shared_expert" if "shared_mlp" in stem else "mlp.experts"
        out[f"{layer}{experts}.gate_proj.weight"], out[f"{layer}{experts}.up_proj.weight"] = gate, up
    return out


def _apart_by_head(tensors: Tensors, said: Said) -> Tensors:
    """Qwen3-Next's projection of all parts: those of attention, and the gate."""
    n, dim, values = said["ssm.group_count"], said["ssm.state_size"], said["ssm.inner_size"] // said["ssm.group_count"]
    out: Tensors = {}
    for name, tensor in tensors.items():
        if "in_proj_qkvz" not in name:
            out[name] = tensor
            continue
        parts = [t.flatten(0, 1) for t in tensor.view(n, -1, tensor.size(1)).split([dim, dim, values, values], 1)]
        out[name.replace("qkvz", "qkv")], out[name.replace("qkvz", "z")] = torch.cat(parts[:3]), parts[3]
    return out


def _decay(tensors: Tensors, said: Said) -> Tensors:
    out: Tensors = {}
    for name, tensor in tensors.items():
        ours = name.replace(".dt_bias", ".dt_proj.bias")
        out[ours] = -tensor.exp() if name.endswith(".A_log") else tensor
    return out


def _tiled(tensors: Tensors, said: Said) -> Tensors:
    """Qwen3.5's value heads: the first of every key head, then the second of each."""
    n_keys, n_values = said["ssm.group_count"], said["ssm.time_step_rank"]
    keys, dim = 2 * n_keys * said["ssm.state_size"], said["ssm.inner_size"] // n_values

    def heads(tensor: Tensor, size: int) -> Tensor:
        return tensor.reshape(n_keys, -1, size, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)

    def change(name: str, tensor: Tensor) -> Tensor:
        if "in_proj_qkv" in name or "conv1d" in name:
            return torch.cat((tensor[:keys], heads(tensor[keys:], dim)))
        if "in_proj_z" in name:
            return heads(tensor, dim)
        if "out_proj" in name:
            return heads(tensor.t(), dim).t()
        return heads(tensor, 1) if re.search(r"in_proj_[ab]|A_log|dt_bias", name) else tensor

    return {name: change(name, t) if ".linear_attn." in name else t for name, t in tensors.items()}


def _first_names(tensors: Tensors, said: Said) -> Tensors:
    """BitNet's inner norms by the names that its first models have."""
    ours = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    return {re.sub("|".join(ours), lambda match: ours[match[0]], name): t for name, t in tensors.items()}


def _lfm2_experts(tensors: Tensors, said: Said) -> Tensors:
    """Their names in other models, and a bias that is called one."""
    return {
        re.sub(r"expert_bias$", "expert_bias.bias", re.sub(r"^model\.(.+\.experts\.)", r"\1", name)): tensor
        for name, tensor in tensors.items()
    }


def _without_first(tensors: Tensors, said: Said) -> Tensors:
    return {name.removeprefix("transformer."): t for name, t in tensors.items()}


def _without_bends(tensors: Tensors, said: Said) -> Tensors:
    return {name: t for name, t in tensors.items() if ".act_fn." not in name}


_EXPERTS = _stacked(r"(.+\.mlp\.experts)\.(\d+)(\..+_proj\.weight)")
_CHANGES: dict[str, tuple[Callable[[Tensors, Said], Tensors], ...]] = {
    "llama": (_permuted, _stacked(r"(.+\.experts)\.(\d+)(\.w[123]\.weight)")),
    "mistral3": (_permuted,),
    "smollm3": (_permuted,),
    "arcee": (_permuted,),
    "olmo": (_permuted,),
    "granite": (_permuted,),
    "granitemoe": (_permuted, _granite_experts),
    "apertus": (_without_bends,),
    "bitnet": (_first_names,),
    "minimax-m2": (_stacked(r"(.+\.experts)\.(\d+)(\.w[123]\.weight)"),),
    "falcon": (_by_kind,),
    "gptneox": (_by_kind,),
    "bloom": (_without_first, _by_kind),
    "stablelm": (_stacked(r"(.+[qk]_layernorm)\.norms\.(\d+)(\.weight)"),),
    "lfm2": (_short,),
    "lfm2moe": (_short, _lfm2_experts, _stacked(r"(.+\.experts)\.(\d+)(\.w[123]\.weight)")),
    "gpt2": (_turned_over,),
    "gpt-oss": (_oss,),
    "gemma": (_one_more,),
    "gemma2": (_one_more,),
    "gemma3": (_one_more,),
    "nemotron": (_one_more,),
    "deepseek2": (_latent_apart, _EXPERTS),
    "qwen3next": (_apart_by_head, _decay, _short, _one_more, _EXPERTS),
    "qwen35": (_tiled, _decay, _short, _one_more),
    "qwen35moe": (_tiled, _decay, _short, _one_more, _EXPERTS),
    **dict.fromkeys(("qwen2moe", "qwen3moe", "olmoe", "glm4moe", "dots1", "ernie4_5-moe", "hunyuan-moe"), (_EXPERTS,)),
}
