"""The plain transformer: equal to float64 sums written out by hand, and the decoder equal to it."""

from pathlib import Path

import pytest
import torch

from engine.model.decoder import Decoder
from engine.model.plain import PlainTransformer
from engine.weights.checkpoint import load_checkpoint
from tests.engine import oracle

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return oracle.as_tensors(oracle.random_state_dict())


@pytest.fixture
def plain(state: dict[str, torch.Tensor]) -> PlainTransformer:
    return PlainTransformer.from_state_dict(state)


def test_sizes_come_from_the_tensors(plain: PlainTransformer) -> None:
    assert (len(plain.layers), plain.token_embedding.weight.shape) == (2, (31, 12))
    assert plain.pos_embedding.weight.shape == (24, 12)


@torch.no_grad()
def test_logits_equal_sums_written_out(plain: PlainTransformer) -> None:
    expected = torch.from_numpy(oracle.logits(oracle.random_state_dict(), PROMPT))
    torch.testing.assert_close(plain(torch.tensor([PROMPT]))[0][0], expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("parts", [(1,) * 8, (3, 5), (7, 1), (8,)])
def test_the_cache_changes_no_logit(plain: PlainTransformer, parts: tuple[int, ...]) -> None:
    whole, _ = plain(torch.tensor([PROMPT]))
    cache, rows = None, []
    for chunk in torch.tensor([PROMPT]).split(parts, dim=1):
        logits, cache = plain(chunk, cache)
        rows.append(logits)
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=0, atol=1e-12)
    assert cache is not None
    assert [k.shape for k, _ in cache] == [(1, 8, 12)] * 2


def test_generation_is_the_same_with_and_without_the_cache(plain: PlainTransformer) -> None:
    cached = plain.generate(PROMPT, 12)
    assert cached == plain.generate(PROMPT, 12, use_cache=False)
    assert len(set(cached)) > 1


@torch.no_grad()
def test_the_decoder_is_equal_to_it(plain: PlainTransformer, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    decoder: Decoder = load_checkpoint(path, dtype="float64").decoder
    ours = decoder.forward(torch.tensor([PROMPT]), decoder.new_cache(len(PROMPT)))
    torch.testing.assert_close(ours, plain(torch.tensor([PROMPT]))[0], rtol=0, atol=1e-12)
