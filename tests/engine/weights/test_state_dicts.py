"""The assignment's state dict as training scripts save it: wrapped, renamed, with buffers, as arrays."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import CheckpointError, ConfigError, OptionError
from engine.weights.checkpoint import load_checkpoint
from tests.engine import oracle

ARRAYS = {name: values.astype(np.float32) for name, values in oracle.random_state_dict().items()}
STATE = oracle.as_tensors(ARRAYS)
IDS = [3, 1, 4, 1, 5]
EXPECTED = torch.from_numpy(oracle.logits(ARRAYS, IDS))[None]


def assert_loads(path: Path) -> tuple[str, ...]:
    model = load_checkpoint(path, dtype="float64")
    torch.testing.assert_close(model.decoder.forward(torch.tensor([IDS])), EXPECTED, rtol=0, atol=1e-5)
    return model.notes


def prefixed(prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "saved",
    [
        {"model": STATE, "step": 3},
        {"model_state": STATE},
        {"net": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}},
        {"my_own_name": STATE, "epoch": 7},
        STATE | {"epoch": 7},
        STATE | {"config": {"n_heads": 1, "name": "mine"}, "losses": [2.5, 1.5]},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("model."),
        prefixed("transformer.decoder."),
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.0"},
        ARRAYS,
        {"model": ARRAYS},
    ],
)
def test_however_it_is_wrapped(saved: object, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "model.pt")
    assert assert_loads(tmp_path / "model.pt") == ()


@pytest.mark.parametrize("name", ["model.ckpt", "model", "model.weights"])
def test_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / name)
    assert_loads(tmp_path / name)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_of_arrays(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(ARRAYS, protocol))
    assert_loads(tmp_path / "model.pkl")


def test_a_file_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **ARRAYS)  # type: ignore[arg-type]
    assert_loads(tmp_path / "model.npz")


def test_a_pickle_that_calls_anything_is_refused_by_name(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "touched").touch, ())

    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(CheckpointError, match="nothing was executed"):
        load_checkpoint(tmp_path / "model.pkl")
    assert not (tmp_path / "touched").exists()


def test_buffers_are_left_out_and_named(tmp_path: Path) -> None:
    buffers = {"layers.0.attention.causal_mask": torch.ones(9, 9), "position_ids": torch.arange(9)}
    torch.save(STATE | buffers, tmp_path / "model.pt")
    (note,) = assert_loads(tmp_path / "model.pt")
    assert note == "left out, because they are not weights: layers.0.attention.causal_mask, position_ids"


def test_norms_without_biases_are_layer_norms_and_said(tmp_path: Path) -> None:
    without = {name: tensor for name, tensor in STATE.items() if not ("norm" in name and name.endswith("bias"))}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in STATE.items() if name not in without}
    for name, state in (("without.pt", without), ("zeros.pt", STATE | zeros)):
        torch.save(state, tmp_path / name)
    first, second = (load_checkpoint(tmp_path / f"{name}.pt", dtype="float64") for name in ("without", "zeros"))
    ids = torch.tensor([IDS])
    assert torch.equal(first.decoder.forward(ids), second.decoder.forward(ids))
    assert first.notes == ("the norms have no biases; they are assumed to be LayerNorm, which subtracts the mean",)


def test_a_head_that_is_missing_is_refused(tmp_path: Path) -> None:
    torch.save({name: t for name, t in STATE.items() if not name.startswith("output")}, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"lacks output_projection.weight; a missing head is not assumed to be tied"
    ):
        load_checkpoint(tmp_path / "model.pt")


def test_several_state_dicts_are_not_guessed(tmp_path: Path) -> None:
    torch.save({"teacher": STATE, "student": STATE}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"several state dicts \(teacher, student\)"):
        load_checkpoint(tmp_path / "model.pt")


def holding_itself() -> dict[str, Any]:
    document: dict[str, Any] = {}
    document["model"] = document
    return document


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (holding_itself(), "the entry 'model' is not a tensor with a name"),
        (STATE | {"token_embedding.weight": torch.zeros(0, 12)}, r"token_embedding.weight has shape \[0, 12\]"),
        ({name: tensor[..., :0] for name, tensor in STATE.items()}, r"shape \[\d+, 0\]; expected a matrix"),
        ({name: tensor.to("meta") for name, tensor in STATE.items()}, "saved without its values"),
        ({name: tensor.to(torch.int8) for name, tensor in STATE.items()}, "is stored as int8; float64"),
    ],
)
def test_what_holds_no_weights_is_an_answer(saved: object, words: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / "model.pt")


def test_what_is_neither_a_file_nor_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        load_checkpoint(tmp_path / "model.pt")


def test_a_name_of_any_length_makes_a_short_message(tmp_path: Path) -> None:
    torch.save(STATE | {"x" * 50_000: torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"weights that this model does not have: x+ \.\.\. x+$") as refused:
        load_checkpoint(tmp_path / "model.pt")
    assert len(refused.value.message) < 2100


def test_several_heads_are_an_option(tmp_path: Path) -> None:
    """The same weights with heads of a third of the width: against heads computed one by one."""
    torch.save(STATE, tmp_path / "model.pt")
    one, three = (load_checkpoint(tmp_path / "model.pt", n_heads=n) for n in (None, 3))
    assert (one.config.n_heads, three.config.n_heads, three.config.head_dim) == (1, 3, 4)
    ids = torch.tensor([IDS])
    assert not torch.allclose(one.decoder.forward(ids), three.decoder.forward(ids), atol=1e-3)
    with pytest.raises(ConfigError, match="12 is not divisible by 5 heads"):
        load_checkpoint(tmp_path / "model.pt", n_heads=5)
    with pytest.raises(OptionError, match="assignment's form"):
        load_checkpoint(n_heads=2)
