"""Layers that keep a state: stopped, cut back, and in rows of unequal length."""

import pytest
import torch

from engine.errors import Stopped
from engine.families.registry import config_from_hf
from engine.model.cache import reuse_prefix
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from tests.engine.hf_configs import document

IDS = torch.randint(321, (1, 12), generator=torch.Generator().manual_seed(0))


def decoder(family: str) -> Decoder:
    config = config_from_hf(document(family))
    return Decoder(config, random_weights(config, dtype=torch.float64))


@pytest.mark.parametrize("family", ["lfm2", "qwen3-next", "qwen3.5"])
def test_a_pass_that_is_stopped_leaves_the_states_as_they_were(family: str) -> None:
    model = decoder(family)
    expected, cache = model.forward(IDS), model.new_cache(12)
    model.forward(IDS[:, :5], cache)
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        model.forward(IDS[:, 3:9], cache, should_stop=lambda: next(asked))
    torch.testing.assert_close(model.forward(IDS[:, 5:], cache), expected[:, 5:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["lfm2", "qwen3-next", "qwen3.5"])
def test_a_state_is_reused_as_a_whole_or_not_at_all(family: str) -> None:
    model, held = decoder(family), IDS[0].tolist()
    cache = model.new_cache(16)
    model.forward(IDS, cache)
    assert reuse_prefix(cache, held, [*held, 7]) == 12
    assert reuse_prefix(cache, held, [*held[:8], 7]) == 0
    torch.testing.assert_close(model.forward(IDS, cache), model.forward(IDS), rtol=0, atol=1e-9)
