"""Blocks that the engine's formats hold as they are, against the gguf package's floats; and what loading takes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.errors import CheckpointError
from engine.model.made_weights import random_weights
from engine.model.shapes import parameter_shapes
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import GROUP, GroupedLinear, QuantizedFormat, fill, linear_layers, pack, packed, unpack
from engine.weights.gguf import read_gguf
from engine.weights.gguf_blocks import GROUPED, repack, widen
from engine.weights.panels import Piece
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config

KINDS = {
    "Q4_0": "int4-zero", "Q4_1": "int4", "Q5_0": "int5", "Q5_1": "int5", "Q8_0": "int8", "Q2_K": "int2", "Q3_K": "int3",
    "Q4_K": "int4", "Q5_K": "int5", "Q6_K": "int6", "IQ4_NL": "iq4", "IQ4_XS": "iq4", "MXFP4": "fp4",
}  # fmt: skip
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_positions": 64}
HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
    "IQ4_NL": (0,),
}
"""Where the float16 numbers of a block are, of kinds that the gguf package does not write."""


def blocks_of(kind: str, rows: int, cols: int) -> np.ndarray:
    """Blocks (rows, bytes) as the gguf package writes them, or of random bits with steps of a weight's size."""
    draw, wanted = np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    if kind not in HALVES:
        return gguf.quants.quantize(draw.normal(size=(rows, cols)).astype(np.float32), wanted)
    block, size = gguf.GGML_QUANT_SIZES[wanted]
    blocks = draw.integers(0, 256, size=(rows, cols // block, size), dtype=np.uint8)
    for at in HALVES[kind]:
        steps = draw.uniform(1e-3, 2e-3, size=(rows, cols // block, 1)).astype(np.float16)
        blocks[..., at : at + 2] = steps.view(np.uint8)
    return blocks.reshape(rows, -1)


def floats(blocks: np.ndarray, kind: str) -> torch.Tensor:
    wide = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(np.ascontiguousarray(wide, dtype=np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_repacked_blocks_stand_for_the_files_floats(kind: str) -> None:
    """Bit for bit; a K-quant's to what rounding the product of two numbers to float16 takes, 2^-11 at most."""
    blocks, number = blocks_of(kind, 21, 512), int(gguf.GGMLQuantizationType[kind])
    assert GROUPED[number].form == KINDS[kind]
    groups, expected = repack(torch.from_numpy(blocks).flatten(), number, 21), floats(blocks, kind)
    got = unpack(fill([Piece(21, lambda: groups)], GROUPED[number].form, 21, 512))
    if kind.endswith("K") or kind == "IQ4_XS":
        assert (got - expected).norm() <= 4e-4 * expected.norm()
        assert bool(((got - expected).abs() <= 2**-11 * expected.abs().amax(1, keepdim=True)).all())
    else:
        assert torch.equal(got, expected)
        assert torch.equal(widen(groups, number, (21, 512)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_as_large_as_the_gguf_package_says(kind: str) -> None:
    wanted = gguf.GGMLQuantizationType[kind]
    assert (GROUPED[int(wanted)].weights, GROUPED[int(wanted)].size) == gguf.GGML_QUANT_SIZES[wanted]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "F32"])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_layers_hold_what_the_file_holds(kind: str, form: QuantizedFormat, tmp_path: Path) -> None:
    """q and k rows in the model's order; what is stored otherwise goes through floats as ever."""
    config = llama_config(**SIZES)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=1), kind=kind)
    exact, loaded = (load_checkpoint(path, dtype=dtype).decoder for dtype in ("float32", form))
    for plain, layer in zip(linear_layers(exact), linear_layers(loaded), strict=True):
        assert isinstance(layer, GroupedLinear)
        wanted: QuantizedFormat = "int8" if layer is loaded.head else form
        weight = plain.weight  # type: ignore[attr-defined]
        stored_so = KINDS.get(kind, "").startswith(wanted)
        assert {part.format for part in layer.parts} == {KINDS[kind] if stored_so else wanted}
        expected = weight if stored_so else unpack(pack(weight, wanted))
        assert torch.equal(layer.weight(torch.float32), expected)


@pytest.mark.parametrize("kind", [*KINDS, "F16"])
def test_every_matrix_is_kept_as_it_is_stored(kind: str, tmp_path: Path) -> None:
    """The logits of the same file widened, and no more memory than its form takes."""
    if kind in HALVES:
        pytest.skip("the gguf package does not write it")
    config = llama_config(**SIZES, tied=True)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=1), kind=kind)
    exact, kept = (load_checkpoint(path, dtype=dtype) for dtype in ("float32", "auto"))
    assert kept.dtype_name == ("float16" if kind == "F16" else KINDS[kind])
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    torch.testing.assert_close(kept.decoder.forward(ids), exact.decoder.forward(ids), rtol=0, atol=1e-5)
    assert kept.decoder.embedding.part is kept.decoder.head.parts[0]  # type: ignore[union-attr, attr-defined]
    plain = 4 * sum(math.prod(shape) for shape in parameter_shapes(config).values() if len(shape) == 1)
    panels = {"int8": 34, "int4": 20, "int5": 24, "F16": 64}.get("F16" if kind == "F16" else KINDS[kind], 18)
    matrices = [
        (-(-s[0] // 16) * 16 if kind != "F16" else s[0]) * s[1]
        for s in parameter_shapes(config).values()
        if len(s) == 2
    ]
    assert kept.weight_bytes == plain + sum(matrices) * panels // GROUP


def test_a_file_of_several_kinds_keeps_its_mix(tmp_path: Path) -> None:
    """As llama.cpp's mixes are: values finer than queries and keys, which lie in one product with them."""
    config = llama_config(**SIZES)
    kinds = {"attn_v": "Q8_0", "ffn_down": "Q5_0", "attn_output": "F16", "attn_k": "F32", "token_embd": "Q8_0"}
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=1), kind="Q4_0", kinds=kinds)
    exact, kept = (load_checkpoint(path, dtype=dtype) for dtype in ("float32", "auto"))
    block = kept.decoder.blocks[1]
    assert [part.format for part in packed(block.attention.qkv)] == ["int4-zero", "float32", "int8"]  # type: ignore[union-attr]
    assert [part.format for part in packed(block.attention.output)] == ["float16"]
    assert set(kept.dtype_name.split("+")) == {"int4-zero", "int5", "float16", "int8", "float32"}
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    torch.testing.assert_close(kept.decoder.forward(ids), exact.decoder.forward(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F32"])
def test_parts_of_reordered_rows(kind: str, tmp_path: Path) -> None:
    """Any rows of q, whose heads the conversion has turned, are those of the whole."""
    from engine.families.gguf import config_from_gguf, weights_from_gguf

    config = llama_config(**SIZES)
    file = read_gguf(write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind=kind))
    stored = weights_from_gguf(file, config_from_gguf(file))["model.layers.0.self_attn.q_proj.weight"]
    whole = stored.load()
    assert stored.part is not None
    for start, stop in ((0, 3), (15, 17), (31, 64), (63, 64)):
        assert torch.equal(stored.part(start, stop), whole[start:stop])
        assert torch.equal(stored.rows(5, 64).load()[start : start + 1], whole[5:][start : start + 1])
        if stored.groups is not None:
            groups = stored.groups.part(start, stop)
            assert torch.equal(widen(groups, file.tensors["blk.0.attn_q.weight"].kind, (stop - start, 64)),
                               whole[start:stop])  # fmt: skip


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("form", ["int8", "int4", "float32", "auto"])
def test_a_truncated_tensor_is_refused(kind: str, form: str, tmp_path: Path) -> None:
    config = llama_config(**SIZES)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind=kind)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match="a tensor ends at byte"):
        load_checkpoint(path, dtype=form)


@pytest.mark.parametrize(("kind", "form"), [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_1", "auto")])
def test_a_scale_that_is_no_number_is_refused(kind: str, form: str, tmp_path: Path) -> None:
    config = llama_config(**SIZES)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind=kind)
    at = read_gguf(path).tensors["blk.1.ffn_down.weight"].offset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = b"\x00\x7e"  # a NaN in float16
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"down_proj.weight holds values that are not finite"):
        load_checkpoint(path, dtype=form)


FIXED = 48 << 20
"""What torch and the engine may take whatever the model (15 to 25 MB were measured)."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("stored", "dtype"), [("F32", "float32"), ("safetensors", "bfloat16"), ("Q8_0", "int8")])
def test_the_peak_is_within_15_percent_of_weights_and_cache(stored: str, dtype: str) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, root / "bench" / "load_memory.py", "--synthetic", stored, "--dtype", dtype, "--json"]
    size_mb = 200 if dtype == "float32" else 400
    done = subprocess.run(
        [*command, "--size-mb", str(size_mb)], check=True, capture_output=True, text=True, cwd=root, timeout=600
    )
    taken = json.loads(done.stdout)
    assert taken["peak"] <= 1.15 * (taken["weights"] + taken["cache"]) + FIXED
