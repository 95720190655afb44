"""Weights as files hold them: GGUF and safetensors headers, written by the formats' own libraries, then broken."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from calc.errors import SourceError, UnsupportedArchitecture
from calc.model.count import parameters
from calc.sources import load_model
from calc.sources.gguf import read_gguf, read_header
from calc.sources.gguf.header import TYPES
from calc.sources.safetensors import stored_in, tensors_of
from tests.calc.gguf_headers import refusal
from tests.examples import examples

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCAB = 64, 96, 4, 2, 2, 128

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


def gguf_tensors(*, tied=True, dtype=np.float32):
    kv = HIDDEN // HEADS * KV_HEADS
    yield "token_embd.weight", np.zeros((VOCAB, HIDDEN), dtype)
    yield "output_norm.weight", np.zeros(HIDDEN, np.float32)
    if not tied:
        yield "output.weight", np.zeros((VOCAB, HIDDEN), dtype)
    for i in range(LAYERS):
        for name, shape in {
            "attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER),
        }.items():  # fmt: skip
            yield f"blk.{i}.{name}.weight", np.zeros(shape, dtype)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", np.zeros(HIDDEN, np.float32)


def write_gguf(
    path, *, architecture="llama", tied=True, vocabulary=VOCAB, dtype=np.float32, quantized=False, kv_heads=KV_HEADS,
    window=None, tensors_per_part=0,
):  # fmt: skip
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    if kv_heads is not None:
        writer.add_head_count_kv(kv_heads)
    if window is not None:
        writer.add_sliding_window(window)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"token {i}" for i in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    for name, values in gguf_tensors(tied=tied, dtype=dtype):
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


MATRICES = VOCAB * HIDDEN + LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * 32 + 3 * HIDDEN * INNER)
NORMS = (2 * LAYERS + 1) * HIDDEN


class TestGguf:
    @pytest.mark.parametrize("tied", [True, False])
    def test_a_model_by_its_metadata_and_bytes_by_its_tensors(self, tmp_path, tied):
        model = read_gguf(write_gguf(tmp_path / "tiny.gguf", tied=tied, dtype=np.float16))
        assert (model.n_layers, model.n_heads, model.n_kv_heads, model.head_dim) == (2, 4, 2, 16)
        assert (model.hidden_size, model.intermediate_size, model.vocab_size, model.tied) == (64, 96, 128, tied)
        matrices = MATRICES + (0 if tied else VOCAB * HIDDEN)
        assert parameters(model).total == matrices + NORMS
        assert model.stored.total_bytes == 2 * matrices + 4 * NORMS
        assert not any("against the model's count" in note for note in model.notes)

    def test_blocks_with_scales(self, tmp_path):
        model = load_model(str(write_gguf(tmp_path / "tiny.gguf", quantized=True)))
        assert model.stored.total_bytes == MATRICES // 32 * 34 + 4 * NORMS
        assert model.stored.kv_bytes == LAYERS * 2 * HIDDEN * 32 // 32 * 34
        assert model.stored.whole_bytes == 4 * NORMS

    def test_a_folder_with_one_gguf_is_that_file(self, tmp_path):
        write_gguf(tmp_path / "tiny.gguf")
        assert load_model(str(tmp_path)).name == "tiny"

    @pytest.mark.parametrize("part", [0, 1, 2, 3, None])
    def test_any_part_and_the_folder_are_the_whole_model(self, tmp_path, part):
        whole = read_gguf(write_gguf(tmp_path / "whole.gguf"))
        folder = tmp_path / "parts"
        folder.mkdir()
        write_gguf(folder / "tiny.gguf", tensors_per_part=6)
        files = sorted(folder.glob("*.gguf"))
        assert [file.name for file in files] == [f"tiny-{i:05}-of-00004.gguf" for i in (1, 2, 3, 4)]
        model = load_model(str(folder if part is None else files[part]))
        assert model.name == "tiny"
        assert model.stored == whole.stored
        assert parameters(model).total == parameters(whole).total

    def test_a_part_that_is_not_there_is_named(self, tmp_path):
        write_gguf(tmp_path / "tiny.gguf", tensors_per_part=6)
        (tmp_path / "tiny-00003-of-00004.gguf").unlink()
        with pytest.raises(SourceError, match=r"tiny-00003-of-00004\.gguf is not beside it"):
            read_gguf(tmp_path / "tiny-00001-of-00004.gguf")

    def test_without_kv_heads_each_query_head_has_its_own(self, tmp_path):
        model = read_gguf(write_gguf(tmp_path / "m.gguf", kv_heads=None))
        assert (model.n_heads, model.n_kv_heads) == (HEADS, HEADS)

    @pytest.mark.parametrize(("window", "sliding"), [(4096, 1), (None, 0)])
    def test_an_olmo2_file_with_a_window_is_an_olmo3(self, tmp_path, window, sliding):
        """llama.cpp (LLM_ARCH_OLMO2): three of four layers slide where the key is there."""
        model = read_gguf(write_gguf(tmp_path / "m.gguf", architecture="olmo2", window=window))
        assert (model.n_sliding_layers, model.window) == (LAYERS * sliding, window)

    def test_block_sizes_are_those_of_the_gguf_package(self):
        gguf = pytest.importorskip("gguf")
        for kind, size in gguf.GGML_QUANT_SIZES.items():
            if int(kind) in TYPES and kind.name != "Q8_1":  # never in a file; ggml-common.h says 36, the package 40
                assert TYPES[int(kind)][1:] == size, kind
        assert {int(kind) for kind in gguf.GGML_QUANT_SIZES} - set(TYPES) <= {36, 37, 38}

    def test_unknown_architecture_is_refused_by_name(self, tmp_path):
        with pytest.raises(UnsupportedArchitecture, match="'hyena' is not one that kvscope reads from GGUF"):
            read_gguf(write_gguf(tmp_path / "m.gguf", architecture="hyena"))

    def test_a_large_vocabulary_is_passed_over_in_little_memory(self, tmp_path):
        path = write_gguf(tmp_path / "m.gguf", vocabulary=130_000)
        tracemalloc.start()
        header = read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert header.metadata["tokenizer.ggml.tokens"].n == 130_000
        assert peak < 2_000_000

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (b"", "not a GGUF file"),
            (b"GGML" + bytes(40), "not a GGUF file"),
            (b"GGUF", "ends too early"),
            (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
            (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "tensors"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "entries"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + bytes(9), "ends too early"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77), "type 77"),
            (
                b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**62),
                "an array of",
            ),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture missing"),
        ],
    )
    def test_broken_headers(self, tmp_path, data, what):
        path = tmp_path / "m.gguf"
        path.write_bytes(data)
        with pytest.raises(SourceError, match=what) as caught:
            read_gguf(path)
        assert str(caught.value).startswith(str(path))

    @given(at=st.integers(0, 900), change=st.binary(min_size=1, max_size=8), cut=st.integers(0, 4000))
    @examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_mutated_files_are_read_or_refused_in_one_sentence(self, tmp_path, at, change, cut):
        whole = tmp_path / "tiny.gguf"
        if not whole.exists():
            write_gguf(whole)
        data = bytearray(whole.read_bytes())
        data[at : at + len(change)] = change
        path = tmp_path / "mutated.gguf"
        path.write_bytes(bytes(data[: len(data) - cut]))
        tracemalloc.start()
        message = refusal(lambda: read_gguf(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert message is None or message.startswith(str(path))
        assert "\n" not in (message or "")
        assert peak < 20_000_000


CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def write_folder(folder: Path, *, shards=1):
    numpy_format = pytest.importorskip("safetensors.numpy")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {
        "model.embed_tokens.weight": np.zeros((128, 64), np.float16),
        "model.norm.weight": np.zeros(64, np.float16),
    }
    for i in range(2):
        for name, shape in {
            "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
            "input_layernorm": (64,), "post_attention_layernorm": (64,),
        }.items():  # fmt: skip
            tensors[f"model.layers.{i}.{name}.weight"] = np.zeros(shape, np.float16)
    if shards == 1:
        numpy_format.save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    files = {name: f"model-{1 + i % shards}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        numpy_format.save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


class TestSafetensors:
    @pytest.mark.parametrize("shards", [1, 3])
    def test_a_folder_weighs_what_its_files_hold(self, tmp_path, shards):
        model = load_model(str(write_folder(tmp_path / "m", shards=shards)))
        assert parameters(model).total == MATRICES + NORMS
        assert model.stored.total_bytes == 2 * (MATRICES + NORMS)
        assert model.stored.kv_bytes == 2 * 2 * 2 * 32 * 64
        assert model.stored.whole_bytes == 2 * NORMS
        assert any(f"{shards} safetensors files" in note for note in model.notes)

    def test_a_component_has_the_bytes_of_its_own_tensors(self, tmp_path):
        numpy_format = pytest.importorskip("safetensors.numpy")
        folder = write_folder(tmp_path / "m")
        tensors = numpy_format.load_file(folder / "model.safetensors")
        tensors = {n: t.astype(np.int8) if ".mlp." in n else t for n, t in tensors.items()}
        numpy_format.save_file(tensors, folder / "model.safetensors")
        model = load_model(str(folder))
        assert dict(model.stored.components) == {
            "embedding": 2 * 128 * 64, "attention": 2 * 2 * (2 * 64 * 64 + 2 * 32 * 64), "mlp": 2 * 3 * 96 * 64,
            "norms": 2 * 5 * 64,
        }  # fmt: skip

    def test_a_file_beside_its_config(self, tmp_path):
        folder = write_folder(tmp_path / "m")
        assert load_model(str(folder / "model.safetensors")).stored == load_model(str(folder)).stored

    def test_without_its_shards_the_config_alone_counts(self, tmp_path):
        folder = write_folder(tmp_path / "m", shards=3)
        (folder / "model-2.safetensors").unlink()
        model = load_model(str(folder))
        assert model.stored is None
        assert model.notes[0] == "1 of 3 safetensors files are missing, such as model-2.safetensors: none was read"

    def test_without_its_shards_the_index_says_the_bytes(self, tmp_path):
        folder = write_folder(tmp_path / "m", shards=3)
        whole = load_model(str(folder)).stored
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": whole.total_bytes}}))
        for file in folder.glob("*.safetensors"):
            file.unlink()
        model = load_model(str(folder))
        assert (model.stored.total_bytes, model.stored.kv_bytes) == (whole.total_bytes, whole.kv_bytes)
        assert "3 of 3 files are missing" in model.notes[0]

    @pytest.mark.parametrize("size", [None, 0, -5, "900", True, 1.5, 10**30])
    def test_an_index_whose_total_is_no_size(self, tmp_path, size):
        folder = write_folder(tmp_path / "m", shards=3)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": size}}))
        (folder / "model-2.safetensors").unlink()
        assert load_model(str(folder)).stored is None

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", ".hidden"])
    def test_an_index_stays_in_its_folder(self, tmp_path, name):
        folder = write_folder(tmp_path / "m", shards=2)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(SourceError, match="must name files beside it"):
            load_model(str(folder))

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            struct.pack("<Q", 2**63) + b"{}",
            struct.pack("<Q", 9) + b"not json!",
            struct.pack("<Q", 2) + b"[]",
            struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}}'[:20],
            struct.pack("<Q", 54) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'[:54],
            struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[-9],"data_offsets":[0,36]}}' + bytes(36),
        ],
    )
    def test_broken_headers(self, tmp_path, header):
        path = tmp_path / "m.safetensors"
        path.write_bytes(header)
        with pytest.raises(SourceError, match=r"m\.safetensors"):
            list(tensors_of(path))

    @given(at=st.integers(0, 1500), change=st.binary(min_size=1, max_size=8), cut=st.integers(0, 200))
    @examples(200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_mutated_files(self, tmp_path, at, change, cut):
        whole = tmp_path / "m" / "model.safetensors"
        if not whole.exists():
            write_folder(tmp_path / "m")
        data = bytearray(whole.read_bytes())
        data[at : at + len(change)] = change
        path = tmp_path / "mutated.safetensors"
        path.write_bytes(bytes(data[: len(data) - cut]))
        message = refusal(lambda: stored_in([path]))
        assert message is None or message.startswith(str(path))
