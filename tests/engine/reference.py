"""The assignment's weight file and test cases, and an equal of our own for machines that do not have them.

Ours has the same names, shapes, dtype, cases and rounding; its weights are random and its logits are `oracle`'s.

    python -m tests.engine.reference FOLDER

writes it, for `python -m engine --mode evaluate --model_state_dict FILE --test_cases FILE`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.engine import oracle

BATCHES = ((1, 1), (1, 2), (1, 5), (1, 10), (2, 6))  # rows and tokens of each case
EXPECTATIONS = ("expected_logits_no_cache", "expected_logits_with_cache", "expected_logits_sequential")
DECIMALS = 5


@dataclass(frozen=True)
class Reference:
    """The two files of the assignment's evaluation."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model_state_dict.pt"

    @property
    def cases(self) -> Path:
        return self.folder / "test_cases.json"


def write_reference(folder: Path) -> Reference:
    """Write both files into a folder that exists."""
    drawn = oracle.random_state_dict(d_model=50, d_ff=100, vocab=1000, positions=128, deviation=1.0)
    state = {name: values.astype(np.float32) for name, values in drawn.items()}
    reference = Reference(folder)
    torch.save(oracle.as_tensors(state), reference.weights)
    exact = {name: values.astype(np.float64) for name, values in state.items()}
    draw = np.random.default_rng(1)
    cases = []
    for shape in BATCHES:
        ids = draw.integers(1000, size=shape).tolist()
        logits = [oracle.logits(exact, row).round(DECIMALS).tolist() for row in ids]
        cases.append({"input_ids": ids} | dict.fromkeys(EXPECTATIONS, logits))
    reference.cases.write_text(json.dumps(cases))
    return reference


if __name__ == "__main__":
    made = write_reference(Path(sys.argv[1]))
    print(made.weights, made.cases)
