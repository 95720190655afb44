"""engine.weights.arrays: pickles of arrays are read, and nothing that they name is called."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.weights.arrays import NotArrays, unpickle


class Names:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_order_are_read(protocol: int) -> None:
    held = OrderedDict(
        plain=np.arange(6, dtype=np.float32).reshape(2, 3),
        turned=np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        empty=np.zeros((0, 4), dtype=np.float32),
    )
    found = unpickle(io.BytesIO(pickle.dumps(held, protocol=protocol)))
    assert isinstance(found, dict)
    for name, array in held.items():
        assert torch.equal(found[name], torch.from_numpy(np.ascontiguousarray(array))), name


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for call in (Names(Path.touch, marker), Names(eval, f"open({str(marker)!r}, 'w')"), Names(np.fromfile, "x")):
        with pytest.raises(NotArrays):
            unpickle(io.BytesIO(pickle.dumps({"weight": call})))
    assert not marker.exists()


def test_a_number_in_place_of_bytes_takes_no_memory() -> None:
    rebuilt, (kind, shape, _), state = np.zeros(2).__reduce__()
    dtype = state[2]

    class Bomb:
        def __reduce__(self) -> object:
            return rebuilt, (kind, shape, b"b"), (1, (2,), dtype, False, 10**15)

    with pytest.raises(NotArrays, match="an array of int"):
        unpickle(io.BytesIO(pickle.dumps(Bomb())))
