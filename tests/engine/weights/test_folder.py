"""Hugging Face folders as people have them: one tiny Llama in many layouts, and what may lie beside its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import CheckpointError, UnsupportedArchitecture
from engine.families.registry import config_from_hf
from engine.model.config import Llama3RopeScaling
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.weights.checkpoint import load_checkpoint
from tests.engine.hf_configs import document

DOCUMENT = document("llama") | {"num_hidden_layers": 2}
WEIGHTS = random_weights(config_from_hf(DOCUMENT))
EXPECTED = Decoder(config_from_hf(DOCUMENT), WEIGHTS).forward(torch.arange(12)[None])
NAMES = list(WEIGHTS)
FIRST, SECOND = ({name: WEIGHTS[name] for name in part} for part in (NAMES[:9], NAMES[9:]))


def folder(path: Path, files: dict[str, dict[str, Tensor]], **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(DOCUMENT | config))
    for name, tensors in files.items():
        if name.endswith(".safetensors"):
            save_file(tensors, path / name)
        else:
            torch.save(tensors, path / name)
    return path


def index(path: Path, name: str, places: dict[str, str]) -> None:
    (path / name).write_text(json.dumps({"weight_map": places}))


def assert_loads(path: Path) -> tuple[str, ...]:
    model = load_checkpoint(path)
    torch.testing.assert_close(model.decoder.forward(torch.arange(12)[None]), EXPECTED)
    return model.notes


def named(change: Any) -> dict[str, Tensor]:
    return {change(name): tensor for name, tensor in WEIGHTS.items()}


@pytest.mark.parametrize(
    "files",
    [
        {"model-00001-of-00002.safetensors": FIRST, "model-00002-of-00002.safetensors": SECOND},
        {"pytorch_model-00001-of-00002.bin": FIRST, "pytorch_model-00002-of-00002.bin": SECOND},
        {"model-00000-of-00002.safetensors": FIRST, "model-00001-of-00002.safetensors": SECOND},
        {"consolidated.safetensors": WEIGHTS},
        {"anything.safetensors": WEIGHTS, "adapter_model.safetensors": {"lora": torch.ones(2)}},
        {"model.safetensors": named(lambda name: name.removeprefix("model."))},
        {"model.safetensors": named(lambda name: f"_orig_mod.{name}")},
        {"model.safetensors": named(lambda name: name.replace("self_attn", "_orig_mod.self_attn"))},
        {"pytorch_model.bin": named(lambda name: f"module.{name}")},
        {"model.safetensors": named(lambda name: f"language_model.{name}")},
        {"model.safetensors": named(lambda name: name.replace("model.", "model.language_model."))},
        {"model.safetensors": named(lambda name: f"base_model.model.{name}")},
        {"pytorch_model.bin": named(lambda name: f"model.{name}")},
        {"model.safetensors": named(lambda name: f"llm.{name}")},
    ],
)
def test_layouts_that_load(files: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    assert assert_loads(folder(tmp_path, files)) == ()


@pytest.mark.parametrize(("suffix", "name"), [("bin", "pytorch_model"), ("safetensors", "model")])
def test_an_index_may_forget_some_parts(suffix: str, name: str, tmp_path: Path) -> None:
    parts = [f"{name}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    path = folder(tmp_path, dict(zip(parts, (FIRST, SECOND), strict=True)))
    index(path, f"{name}.{suffix}.index.json", dict.fromkeys(FIRST, parts[0]))
    assert_loads(path)
    assert_loads(path / parts[1])  # one part stands for all of them
    (path / parts[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {parts[1]} of 2 parts"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "extra",
    [
        {"v_head.summary.weight": torch.ones(1, 48)},
        {"model.layers.2.self_attn.q_proj.weight": torch.ones(48, 48)},
        {"model.layers.0.self_attn.k_scale": torch.ones(1)},
        {"model.layers.0.mlp.up_proj.input_scale": torch.ones(1)},
        {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)},
        {"vision_tower.patch.weight": torch.ones(3, 3)},
    ],
)
def test_what_changes_no_result_is_named_and_left_out(extra: dict[str, Tensor], tmp_path: Path) -> None:
    (note,) = assert_loads(folder(tmp_path, {"model.safetensors": WEIGHTS | extra}))
    assert note == f"left out, because the model has no use for them: {next(iter(extra))}"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}, "q_proj.bias"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, "q_norm.weight"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 48)}, "merge it into the model first"),
        ({"model.norm.bias": torch.ones(48)}, "model.norm.bias"),
    ],
)
def test_what_changes_results_is_refused(extra: dict[str, Tensor], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(folder(tmp_path, {"model.safetensors": WEIGHTS | extra}))


def test_a_head_that_is_missing_is_said(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in WEIGHTS.items() if name != "lm_head.weight"}
    with pytest.raises(CheckpointError, match=r"lacks lm_head.weight; a missing head is not assumed to be tied"):
        load_checkpoint(folder(tmp_path, {"model.safetensors": weights}))


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_config_files_as_python_writes_them(prefix: bytes, tmp_path: Path) -> None:
    """A byte order mark, NaN and Infinity, a class without model_type."""
    path = folder(tmp_path, {"model.safetensors": WEIGHTS})
    config = {name: value for name, value in DOCUMENT.items() if name != "model_type"}
    config |= {"architectures": ["LlamaForCausalLM"], "unused": [float("nan"), float("inf")]}
    (path / "config.json").write_bytes(prefix + json.dumps(config).encode())
    assert_loads(path)


def test_several_files_without_a_usual_name_are_not_guessed(tmp_path: Path) -> None:
    path = folder(tmp_path, {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS})
    with pytest.raises(CheckpointError, match=r"2 weight files \(a.safetensors, b.safetensors\).*name the one"):
        load_checkpoint(path)
    assert_loads(path / "b.safetensors")


def test_a_pointer_of_git_lfs_is_called_by_its_name(tmp_path: Path) -> None:
    path = folder(tmp_path, {})
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_checkpoint(path)


def test_a_quantization_that_is_not_widened_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, {"model.safetensors": WEIGHTS}, quantization_config={"quant_method": "hqq"})
    with pytest.raises(UnsupportedArchitecture, match="'hqq'; only fp8, awq, gptq"):
        load_checkpoint(path)


# --- Meta's and Mistral's own files -----------------------------------------------------------------------

OWN = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "self_attn": "attention",
    "q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "mlp": "feed_forward",
    "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3",
}  # fmt: skip
SIZES = {"dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "norm_eps": 1e-6, "vocab_size": 321}


def own(weights: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    """Names of their own, and heads whose dimensions turn in pairs side by side: Hugging Face's conversion undone."""
    out = {}
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = tensor.view(-1, 2, 4, 48).transpose(1, 2).reshape(tensor.shape)
        for theirs, ours in OWN.items():
            name = name.replace(theirs, ours)
        out[name.removeprefix("model.")] = tensor
    return out


def own_folder(path: Path, files: dict[str, dict[str, Tensor]], params: dict[str, Any]) -> Path:
    folder(path, files)
    (path / "config.json").unlink()
    (path / "params.json").write_text(json.dumps(params))
    return path


def test_consolidated_weights_of_mistral(tmp_path: Path) -> None:
    """With params.json, whose context is not stated, or beside the config.json of their repositories."""
    params = SIZES | {"hidden_dim": 100, "head_dim": 8, "rope_theta": 10_000.0}
    (note,) = assert_loads(own_folder(tmp_path / "own", {"consolidated.safetensors": own()}, params))
    assert "does not state the context; 32,768 positions" in note
    stated = own_folder(tmp_path / "stated", {"consolidated.safetensors": own()}, params | {"max_seq_len": 64})
    assert assert_loads(stated) == ()
    assert load_checkpoint(stated).config.max_positions == 64
    assert_loads(folder(tmp_path / "both", {"consolidated.safetensors": own()}))


@pytest.mark.parametrize("rows", [False, True])
def test_consolidated_weights_of_meta_in_parts(rows: bool, tmp_path: Path) -> None:
    """Each rank's part of every matrix; embeddings by width (Llama 1 and 2) or by the vocabulary (Llama 3)."""
    parts: list[dict[str, Tensor]] = [{"rope.freqs": torch.ones(4)}, {"rope.freqs": torch.ones(4)}]
    for name, tensor in own().items():
        by_rows = rows if "tok_embeddings" in name else not name.endswith(("wo.weight", "w2.weight"))
        split = torch.tensor_split(tensor, 2, 0 if by_rows else 1) if tensor.dim() > 1 else (tensor, tensor)
        for part, piece in zip(parts, split, strict=True):
            part[name] = piece.clone()
    params = SIZES | {"multiple_of": 4, "vocab_size": -1}
    files = {f"consolidated.{i:02d}.pth": part for i, part in enumerate(parts)}
    path = own_folder(tmp_path / "m", files, params)
    assert_loads(path)
    assert_loads(path / "consolidated.01.pth")
    (path / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match=r"lacks consolidated.00.pth"):
        load_checkpoint(path)


def test_mixtral_of_its_makers(tmp_path: Path) -> None:
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None}
    config = config_from_hf(document("mixtral") | experts | {"num_hidden_layers": 2, "rope_theta": 1e4})
    weights = random_weights(config)
    theirs = {name.replace(".mlp.gate.", ".feed_forward.gate."): t for name, t in own(weights).items()}
    params = SIZES | {"moe": {"num_experts": 3, "num_experts_per_tok": 2}, "rope_theta": 1e4, "head_dim": 8}
    params |= {"norm_eps": config.norm_eps, "hidden_dim": 100}
    ours = load_checkpoint(own_folder(tmp_path / "m", {"consolidated.safetensors": theirs}, params)).decoder
    ids = torch.arange(12)[None]
    torch.testing.assert_close(ours.forward(ids), Decoder(config, weights).forward(ids))


def test_the_scaling_of_llama_3(tmp_path: Path) -> None:
    params = SIZES | {"rope_theta": 5e5, "use_scaled_rope": True, "multiple_of": 4, "ffn_dim_multiplier": 1.5}
    config = load_checkpoint(own_folder(tmp_path / "m", {"consolidated.00.pth": own()}, params)).config
    assert config.rope_scaling == Llama3RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    assert (config.max_positions, config.rope_theta) == (131_072, 5e5)


def test_what_params_say_and_is_not_supported_is_named(tmp_path: Path) -> None:
    path = own_folder(tmp_path / "m", {"consolidated.safetensors": own()}, SIZES | {"yarn": {"factor": 16}})
    with pytest.raises(UnsupportedArchitecture, match=r"params\.json: yarn is not supported"):
        load_checkpoint(path)
