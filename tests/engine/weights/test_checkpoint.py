"""Loading weights: what loads is what was saved; every damaged or hostile file is one clear sentence."""

import contextlib
import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import save_file

import assets
from engine.errors import CheckpointError, ConfigError, InputError, OptionError
from engine.model.config import ModelConfig
from engine.model.made_weights import random_weights
from engine.model.shapes import parameter_shapes
from engine.weights import convert
from engine.weights.checkpoint import load_checkpoint, pick_dtype
from tests.engine import oracle
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config
from tests.examples import examples

IDS = torch.tensor([[3, 1, 4, 1, 5]])
HF_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 24,
    "vocab_size": 29,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}


def save_reference(path: Path, *, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    state: Any = oracle.as_tensors(oracle.random_state_dict())
    state = (change(state) or state) if change else state
    torch.save(state, path)
    return path


def save_folder(
    folder: Path,
    *,
    config: ModelConfig | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    **keys: Any,
) -> Path:
    """A Hugging Face folder of the tiny Llama, with config.json keys changed (None removes one)."""
    folder.mkdir(exist_ok=True)
    save_file(weights or random_weights(config or llama_config(), seed=1), folder / "model.safetensors")
    document = {key: value for key, value in (HF_CONFIG | keys).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def refusal(path: Path, **options: Any) -> str:
    """The sentence a bad file is refused with."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = caught.value.message
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


# --- what loads -------------------------------------------------------------------------------------------


def test_a_pt_file_of_the_assignment(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_reference(tmp_path / "model.pt"))
    expected = oracle.logits(oracle.random_state_dict(), IDS[0].tolist())
    assert torch.allclose(loaded.decoder.forward(IDS)[0], torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert (loaded.name, loaded.tokenizer, loaded.decoder.dtype) == ("model.pt", None, torch.float64)


def test_the_same_from_safetensors_a_wrapper_and_the_old_format(tmp_path: Path) -> None:
    expected = load_checkpoint(save_reference(tmp_path / "plain.pt")).decoder.forward(IDS)
    save_file(oracle.as_tensors(oracle.random_state_dict()), tmp_path / "w.safetensors")
    wrapped = save_reference(tmp_path / "wrapped.pt", change=lambda state: {"model_state_dict": state, "epoch": 3})
    old = tmp_path / "old.pth"
    torch.save(oracle.as_tensors(oracle.random_state_dict()), old, _use_new_zipfile_serialization=False)
    for path in (tmp_path / "w.safetensors", wrapped, old):
        got = load_checkpoint(path).decoder.forward(IDS)
        assert torch.allclose(got, expected, rtol=0, atol=1e-13), path  # mapped memory may be aligned otherwise


def test_a_folder_and_its_config_json(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "tiny")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    loaded = load_checkpoint(folder)
    assert loaded.config == llama_config(eos_ids=(2, 7))
    assert loaded.name == "tiny"
    for path in (folder / "config.json", folder / "model.safetensors", str(folder)):
        assert torch.equal(load_checkpoint(path).decoder.forward(IDS), loaded.decoder.forward(IDS))


def test_a_tied_model_may_store_its_head_twice(tmp_path: Path) -> None:
    config = llama_config(tied=True)
    weights = random_weights(config, seed=1)
    copy = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    one = load_checkpoint(save_folder(tmp_path / "one", weights=weights, tie_word_embeddings=True))
    two = load_checkpoint(save_folder(tmp_path / "two", weights=copy, tie_word_embeddings=True))
    assert torch.equal(one.decoder.forward(IDS), two.decoder.forward(IDS))
    assert one.decoder.n_parameters == two.decoder.n_parameters == sum(t.numel() for t in weights.values())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("asked", "stored", "device", "used", "slow_cpu"),
    [
        ("auto", torch.bfloat16, "cpu", torch.bfloat16, torch.float32),
        ("auto", torch.float16, "cpu", torch.float32, torch.float32),
        ("auto", torch.bfloat16, "cuda", torch.bfloat16, torch.bfloat16),
        ("auto", torch.float32, "cpu", torch.float32, torch.float32),
        ("auto", torch.float64, "cpu", torch.float64, torch.float64),
        ("bfloat16", torch.float32, "cpu", torch.bfloat16, torch.bfloat16),
        ("float64", torch.bfloat16, "cpu", torch.float64, torch.float64),
    ],
)
def test_the_dtype_that_runs(
    asked: str, stored: torch.dtype, device: str, used: torch.dtype, slow_cpu: torch.dtype, fast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    chosen = pick_dtype(asked, stored=stored, device=torch.device(device))
    assert chosen == (used if fast else slow_cpu)


def test_a_small_model_stored_in_16_bits_runs_in_32() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("auto", stored=torch.bfloat16, device=cpu, n_parameters=3_000_000) == torch.float32


def test_weights_are_converted_to_the_dtype_asked_for(tmp_path: Path) -> None:
    weights = {name: t.bfloat16() for name, t in random_weights(llama_config(), seed=1).items()}
    folder = save_folder(tmp_path / "half", weights=weights)
    assert load_checkpoint(folder).decoder.forward(IDS).dtype == torch.float32
    exact = load_checkpoint(folder, dtype="float64").decoder
    assert exact.forward(IDS).dtype == torch.float64
    assert torch.equal(exact.embedding, weights["model.embed_tokens.weight"].double())


@pytest.mark.parametrize(("options", "field"), [({"dtype": "int3"}, "dtype"), ({"device": "tpu"}, "device")])
def test_unknown_choices_are_refused(tmp_path: Path, options: dict[str, str], field: str) -> None:
    with pytest.raises(OptionError, match=next(iter(options.values()))) as caught:
        load_checkpoint(save_reference(tmp_path / "m.pt"), **options)
    assert caught.value.field == field


@pytest.mark.skipif(not assets.path("model", "config.json").exists(), reason="the bundled model is not there yet")
def test_the_bundled_model_needs_no_path() -> None:
    loaded = load_checkpoint()
    assert loaded.name == "bundled"
    assert loaded.tokenizer is not None
    assert loaded.config.n_layers == 2
    assert loaded.tokenizer.vocab_size <= loaded.config.vocab_size
    assert loaded.config.max_positions >= 1100
    assert loaded.decoder.forward(torch.tensor([loaded.tokenizer.encode("To be, or not")])).isfinite().all()


# --- hostile and damaged files ----------------------------------------------------------------------------


class Hostile:
    """Unpickled without care, this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, new_format: bool) -> None:
    target = tmp_path / "owned"
    torch.save(
        {"token_embedding.weight": Hostile(target)},
        tmp_path / "m.pt",
        _use_new_zipfile_serialization=new_format,
    )
    message = refusal(tmp_path / "m.pt")
    assert "asks to call" in message
    assert "system" in message
    assert not target.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Hostile(target)))
    refusal(tmp_path / "m.pt")
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        save_reference(path)
    else:
        save_file(oracle.as_tensors(oracle.random_state_dict()), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "is damaged or not a" in refusal(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04.", b"PK\x03\x04" + b"\0" * 40, b"\xff" * 64], ids="abcd")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_garbage_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(content)
    refusal(tmp_path / f"m{suffix}")


def test_a_huge_safetensors_header_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "header would be 1,152,921,504,606,846,976 bytes" in refusal(tmp_path / "m.safetensors")


def test_tensors_that_overlap_the_end_of_a_safetensors_file_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4_000_000]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    assert "damaged" in refusal(tmp_path / "m.safetensors")


def test_a_small_storage_stretched_into_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    def stretch(state: dict[str, Any]) -> None:
        state["token_embedding.weight"] = torch.zeros(1, 1, dtype=torch.float64).expand(10**9, 12)

    message = refusal(save_reference(tmp_path / "m.pt", change=stretch))
    assert "token_embedding.weight claims more elements" in message


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    save_reference(tmp_path / "plain.pt")
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    assert "compressed" in refusal(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"token_embedding.weight": 3}, "'token_embedding.weight' is not a tensor"),
        ({3: torch.zeros(1)}, "3 is not a tensor with a name"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path: Path, document: object, words: str) -> None:
    torch.save(document, tmp_path / "m.pt")
    assert words in refusal(tmp_path / "m.pt")


def test_files_that_are_not_there_or_not_weights(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.pt")
    (tmp_path / "m.onnx").write_bytes(b"GGUF")
    assert "use .pt, .safetensors, .gguf or a Hugging Face folder" in refusal(tmp_path / "m.onnx")
    assert "holds no weights" in refusal(tmp_path)


@given(data=st.data())
@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_flipped_bytes_load_or_are_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """Nothing but a CheckpointError ever comes out of a damaged file."""
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    if not whole.exists():
        state = oracle.as_tensors(oracle.random_state_dict(n_layers=1, d_model=4, d_ff=4, vocab=5, positions=4))
        torch.save(state, whole) if suffix == ".pt" else save_file(state, whole)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert load_checkpoint(path).decoder.n_parameters > 0


# --- weights against config -------------------------------------------------------------------------------


def test_missing_keys_are_named_by_the_names_of_the_file(tmp_path: Path) -> None:
    def drop(state: dict[str, Any]) -> None:
        del state["layers.1.attention.W_k.weight"], state["norm.bias"]

    message = refusal(save_reference(tmp_path / "m.pt", change=drop))
    assert message.endswith("lacks layers.1.attention.W_k.weight, norm.bias")


def test_many_missing_keys_are_counted(tmp_path: Path) -> None:
    def drop(state: dict[str, Any]) -> None:
        for name in [n for n in state if n.startswith("layers.0.") and "fc1" not in n]:
            del state[name]

    assert "and 7 more" in refusal(save_reference(tmp_path / "m.pt", change=drop))


def test_extra_keys_are_named(tmp_path: Path) -> None:
    message = refusal(save_reference(tmp_path / "m.pt", change=lambda s: s | {"extra.weight": torch.zeros(2)}))
    assert "extra.weight" in message


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    def reshape(state: dict[str, Any]) -> None:
        state["layers.1.feed_forward.fc2.weight"] = torch.zeros(20, 12)

    message = refusal(save_reference(tmp_path / "m.pt", change=reshape))
    assert "layers.1.feed_forward.fc2.weight has shape [20, 12]" in message
    assert "[12, 20]" in message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_hidden_layers": 3}, "lacks model.layers.2.input_layernorm.weight"),
        ({"intermediate_size": 25}, "gate_proj.weight has shape [24, 16]; config.json implies [25, 16]"),
        ({"vocab_size": 30}, "embed_tokens.weight has shape [29, 16]; config.json implies [30, 16]"),
        ({"num_key_value_heads": 4}, "k_proj.weight has shape [12, 16]; config.json implies [24, 16]"),
        ({"attention_bias": True}, "lacks model.layers.0.self_attn.q_proj.bias"),
        ({"model_type": "qwen3"}, "q_norm.weight"),
        ({"hidden_size": 10**40}, "hidden_size is beyond any size"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_named(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    assert words in refusal(save_folder(tmp_path / "m", **keys))


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"model_type": "bloom"}', "[" * 100_000, "\xff\xfe"],
    ids=["empty", "cut", "list", "bloom", "deep", "not-utf8"],
)
def test_a_config_that_cannot_be_used_is_a_config_error(tmp_path: Path, content: str) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_checkpoint(folder)


def test_hugging_face_weights_without_a_config_are_refused(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    assert "there is no config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("value", "words"),
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (1e30, "beyond 65504")],
)
def test_values_that_cannot_be_used_are_refused(tmp_path: Path, value: float, words: str) -> None:
    def spoil(state: dict[str, Any]) -> None:
        state["layers.0.norm2.weight"][3] = value

    path = save_reference(tmp_path / "m.pt", change=spoil)
    message = refusal(path, dtype="float16")
    assert words in message
    assert message.startswith("model.layers.0.post_attention_layernorm.weight") or "norm2" in message


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    weights = random_weights(llama_config(), seed=1)
    weights["lm_head.weight"] = torch.zeros(29, 16, dtype=torch.int8)
    assert "lm_head.weight is stored as int8" in refusal(save_folder(tmp_path / "m", weights=weights))


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for target in ("../outside.safetensors", "/etc/passwd", "weights.bin"):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(parameter_shapes(llama_config()), target)}))
        assert f'names "{target}"' in refusal(folder)
    for document in ("{}", "[]", '{"weight_map": {}}'):
        index.write_text(document)
        assert "no weight_map" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001.safetensors"}}')
    assert "model-00001.safetensors" in refusal(folder)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["folder", "F32", "Q4_0"])
def test_weights_taken_some_rows_at_a_time_are_the_same(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of three rows or so, which divide nothing evenly, against everything in one piece."""
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16)
    weights = random_weights(config, seed=1)
    if kind == "folder":
        hidden = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
        path = save_folder(tmp_path / "m", weights=weights, **hidden)
    else:
        path = write_gguf(tmp_path / "m.gguf", config, weights, kind=kind)
    whole = load_checkpoint(path, dtype=dtype)
    monkeypatch.setattr(convert, "_PIECE", 200)
    parts = load_checkpoint(path, dtype=dtype)
    assert parts.weight_bytes == whole.weight_bytes
    assert torch.equal(parts.decoder.forward(IDS), whole.decoder.forward(IDS))


def test_a_value_that_is_no_number_is_found_in_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(llama_config(), seed=1)
    weights["model.embed_tokens.weight"][-1, -1] = math.nan
    folder = save_folder(tmp_path / "m", weights=weights)
    monkeypatch.setattr(convert, "_PIECE", 200)
    with pytest.raises(CheckpointError, match="holds values that are not finite"):
        load_checkpoint(folder)
