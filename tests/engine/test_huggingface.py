"""The engine against transformers: tiny random models, saved by it and loaded by us, logits compared.

In float64 transformers still computes RMSNorm and the rotary angles in float32 (and softmax, in its "eager"
attention, hence "sdpa"); there those two are replaced
by float64 versions, written here, so that everything else can be compared to 1e-9.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.rotary import rope_frequencies

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 6}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
    "qwen3-bias": ("Qwen3", {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True}),
}


def save_random(kind: str, changes: dict[str, Any], folder: Path) -> Any:
    """A model of transformers with random weights (norms and biases too), and its files in ``folder``."""
    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes), attn_implementation="sdpa")
    torch.manual_seed(5)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.dim() == 1 else 1.5 / math.sqrt(parameter.shape[-1])
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, spread)
    model.save_pretrained(folder)
    return model


class Rotary64(torch.nn.Module):
    """cos and sin of transformers' rotary module, in float64 from its own formula."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        parameters = config.rope_parameters
        turns = parameters["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        if parameters["rope_type"] == "llama3":
            turns = self.stretched(turns, parameters)
        self.turns = turns

    @staticmethod
    def stretched(turns: torch.Tensor, p: dict[str, float]) -> torch.Tensor:
        """Llama 3.1's rule by wavelength, one pair at a time."""
        out = []
        for turn in turns.tolist():
            wavelength, original = 2 * math.pi / turn, p["original_max_position_embeddings"]
            if wavelength < original / p["high_freq_factor"]:
                out.append(turn)
            elif wavelength > original / p["low_freq_factor"]:
                out.append(turn / p["factor"])
            else:
                width = p["high_freq_factor"] - p["low_freq_factor"]
                smooth = (original / wavelength - p["low_freq_factor"]) / width
                out.append((1 - smooth) * turn / p["factor"] + smooth * turn)
        return torch.tensor(out, dtype=torch.float64)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.turns
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


class RMSNorm64(torch.nn.Module):
    """RMSNorm without the detour through float32."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.weight, self.eps = other.weight, other.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps))


def lift_to_float64(model: Any) -> Any:
    model.double()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, RMSNorm64(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(module, name, Rotary64(model.config))
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-9), ("float32", 1e-4)])
def test_logits_equal_those_of_transformers(name: str, dtype: str, atol: float, tmp_path: Path) -> None:
    theirs = save_random(*MODELS[name], tmp_path)
    if dtype == "float64":
        theirs = lift_to_float64(theirs)
    ours = load_checkpoint(tmp_path, dtype=dtype).decoder
    ids = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = theirs(ids, use_cache=False).logits.double()
    cache = ours.new_cache(40, 2)
    pieces = torch.split(ids, [17, 9, *[1] * 14], dim=1)  # prefill, a chunk, decode
    stepwise = torch.cat([ours.forward(piece, cache) for piece in pieces], 1)
    assert expected.std() > 0.5
    torch.testing.assert_close(ours.forward(ids).double(), expected, rtol=0, atol=atol)
    torch.testing.assert_close(stepwise.double(), expected, rtol=0, atol=atol)
    assert ours.n_parameters == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ["llama", "llama-3.1"])
def test_rope_frequencies_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = save_random(*MODELS[name], tmp_path)
    config = load_checkpoint(tmp_path).config
    ours = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    torch.testing.assert_close(ours.float(), theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


def test_a_sharded_folder_and_a_bin_file_load_the_same(tmp_path: Path) -> None:
    theirs = save_random("Llama", {}, tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    ids = torch.arange(12)[None]
    whole, *others = (load_checkpoint(tmp_path / kind).decoder.forward(ids) for kind in ("whole", "shards", "bin"))
    assert all(torch.equal(other, whole) for other in others)
