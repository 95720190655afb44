"""Blocks that the engine's formats hold as they are, against the gguf package's floats; and what loading takes."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.errors import CheckpointError
from engine.model.decoder import random_weights
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import GROUP, GroupedLinear, QuantizedFormat, fill, linear_layers, pack, unpack
from engine.weights.gguf import read_gguf
from engine.weights.gguf_blocks import repack, widen
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config

KINDS: list[tuple[str, QuantizedFormat]] = [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_1", "int4")]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_positions": 64}


def blocks_of(kind: str, rows: int, cols: int, *, spread: bool) -> np.ndarray:
    """Blocks of random weights; with ``spread`` both ends of each block's range are taken."""
    weights = np.random.default_rng(0).normal(size=(rows, cols)).astype(np.float32)
    if spread and kind == "Q4_0":
        groups = weights.reshape(rows, -1, GROUP)
        groups[..., 0], groups[..., 1] = -8, 7
    return gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])


def floats(blocks: np.ndarray, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_repacked_blocks_stand_for_the_same_floats_bit_for_bit(kind: str, form: QuantizedFormat) -> None:
    blocks, number = blocks_of(kind, 6, 96, spread=False), int(gguf.GGMLQuantizationType[kind])
    groups = repack(bytearray(blocks.tobytes()), number, 6)
    assert torch.equal(unpack(fill([groups], form, 6, 96)), floats(blocks, kind))
    assert torch.equal(widen(groups, number, (6, 96)), floats(blocks, kind))


@pytest.mark.parametrize(("kind", "form"), KINDS)
def test_repacked_blocks_are_those_of_packing_the_floats(kind: str, form: QuantizedFormat) -> None:
    """Where a block takes its whole range; otherwise rounding floats anew finds another step, and loses."""
    blocks, number = blocks_of(kind, 6, 96, spread=True), int(gguf.GGMLQuantizationType[kind])
    direct = fill([repack(bytearray(blocks.tobytes()), number, 6)], form, 6, 96)
    detour = pack(floats(blocks, kind), form)
    assert torch.equal(unpack(direct), unpack(detour))
    if kind != "Q4_0":  # there a step may be negative
        assert torch.equal(direct.values, detour.values)
        assert direct.scales is not None
        assert detour.scales is not None
        assert torch.equal(direct.scales, detour.scales)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F32"])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_layers_hold_what_the_file_holds(kind: str, form: QuantizedFormat, tmp_path: Path) -> None:
    """q and k rows in the model's order; what is stored otherwise goes through floats as ever."""
    config = llama_config(**SIZES)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config, seed=1), kind=kind)
    exact, loaded = (load_checkpoint(path, dtype=dtype).decoder for dtype in ("float32", form))
    for plain, layer in zip(linear_layers(exact), linear_layers(loaded), strict=True):
        assert isinstance(layer, GroupedLinear)
        weight = plain.weight  # type: ignore[attr-defined]
        stored_so = (kind, layer.packed.format) in KINDS
        expected = weight if stored_so else unpack(pack(weight, "int8" if layer.packed.format == "int8" else "int4"))
        assert torch.equal(layer.weight(torch.float32), expected)


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
@pytest.mark.parametrize("form", ["int8", "int4", "float32"])
def test_a_truncated_tensor_is_refused(kind: str, form: str, tmp_path: Path) -> None:
    config = llama_config(**SIZES)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind=kind)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match="a tensor ends at byte"):
        load_checkpoint(path, dtype=form)


@pytest.mark.parametrize(("kind", "form"), KINDS)
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
