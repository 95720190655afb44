"""The engine against transformers: tiny random models of every family, saved by it and loaded by us.

transformers computes norms, rotary angles, softmax and routers in float32 whatever the model's dtype. For the
comparison in float64 its modules are shown a torch whose float32 is float64, so that its own code, unchanged,
runs in double precision and everything can be compared to 1e-9.
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.generation_events import GenerationFinished
from engine.measure.runners.evaluate import cached_logits
from engine.model.decoder import Decoder
from engine.model.generate import GenerationOptions, ReusableCache, generate
from engine.model.rotary import rope_frequencies, rope_magnitude
from engine.weights.checkpoint import load_checkpoint
from tests.engine.hf_models import (
    DELTA,
    GEMMA,
    GEMMA3_ROPE,
    LONG,
    MODELS,
    OSS,
    SIZES,
    dtype_by_default,
    make_random,
    model_class,
    save_random,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

N_TOKENS = 40
UNUSED = {"opt": 2 * 32}  # the first rows of its table of positions
LOOSER = dict.fromkeys(
    ("qwen3-next", "qwen3.5", "qwen3.5-moe"), 1e-3
)  # their state is a long sum in float32, which theirs takes in another order
ROPES = ["llama", "llama-3.1", "llama-linear", "llama-yarn"]


class Torch64(ModuleType):
    """torch, but for its float32."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def lift_to_float64(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Let transformers' code for one family compute in float64 where it says float32."""
    names = [model_class(kind).__module__, "transformers.modeling_rope_utils"]
    for name in names:
        monkeypatch.setattr(importlib.import_module(name), "torch", Torch64("torch"))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def stepwise(decoder: Decoder, ids: torch.Tensor, *, window: bool = False) -> torch.Tensor:
    """Logits of a prefill, a chunk, and single steps."""
    cache = decoder.new_cache(ids.size(1), ids.size(0), kind="window" if window else "full")
    pieces = torch.split(ids, [17, 9, *[1] * (ids.size(1) - 26)], dim=1)
    return torch.cat([decoder.forward(piece, cache) for piece in pieces], 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-9), ("float32", 1e-4)])
def test_logits_equal_those_of_transformers(
    name: str, dtype: str, atol: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, changes = MODELS[name]
    if dtype == "float64":
        lift_to_float64(monkeypatch, kind)
    theirs = save_random(kind, changes, tmp_path, getattr(torch, dtype))
    ours = load_checkpoint(tmp_path, dtype=dtype).decoder
    ids = torch.randint(61, (2, N_TOKENS), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode(), dtype_by_default(getattr(torch, dtype)):
        expected = theirs(ids, use_cache=False).logits
        short = theirs(ids[1:, 11:], use_cache=False).logits
    assert expected.dtype == getattr(torch, dtype)
    assert expected.std() > 0.5
    close = {"rtol": 0, "atol": max(atol, LOOSER.get(name, 0)) if dtype == "float32" else atol}
    torch.testing.assert_close(ours.forward(ids), expected, **close)
    torch.testing.assert_close(stepwise(ours, ids), expected, **close)
    if ours.config.latent is None:
        torch.testing.assert_close(stepwise(ours, ids, window=True), expected, **close)
    ragged = ours.new_cache(N_TOKENS, 2, padding=[0, 11])
    pieces = [ours.forward(piece, ragged) for piece in torch.split(ids, [20, *[1] * 20], dim=1)]
    together = torch.cat(pieces, 1)
    torch.testing.assert_close(together[:1], expected[:1], **close)
    torch.testing.assert_close(together[1:, 11:], short, **close)
    assert ours.n_parameters + UNUSED.get(name, 0) == sum(p.numel() for p in theirs.parameters())


LONGROPE = {"rope_parameters": LONG, "original_max_position_embeddings": 24}


def greedy(decoder: Decoder, prompt: list[int], n: int, **options: Any) -> list[int]:
    reused = options.pop("reused", None)
    made = GenerationOptions(max_new_tokens=n, stop_at_eos=False, **options)
    *_, last = generate(decoder, prompt, made, reused=reused)
    assert isinstance(last, GenerationFinished)
    return list(last.ids)


@pytest.mark.parametrize("n_prompt", [12, 24, 25, 40])
def test_longrope_goes_by_the_whole_text(n_prompt: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts within the original context of 24 tokens and beyond it, whole and in chunks; decoding across it."""
    lift_to_float64(monkeypatch, "Phi3")
    theirs = save_random("Phi3", LONGROPE, tmp_path, torch.float64)
    ours = load_checkpoint(tmp_path, dtype="float64").decoder
    assert rope_magnitude(ours.config.rope_scaling) > 1.1
    ids = torch.randint(61, (1, n_prompt), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        logits = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(ours.forward(ids), logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        cached_logits(ours, ids, [5] * (n_prompt // 5) + [n_prompt % 5 or 5][: n_prompt % 5]), logits
    )
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False)[0, n_prompt:].tolist()
    prompt = ids[0].tolist()
    assert greedy(ours, prompt, 20) == expected
    for options in ({"prefill_chunk": 7}, {"use_cache": False}, {"cache": "window"}):
        assert greedy(ours, prompt, 20, **options) == expected


@pytest.fixture
def default_dtype() -> Iterator[None]:
    """A test may change it: transformers divides a text's length as whole numbers, which gives this dtype."""
    yield
    torch.set_default_dtype(torch.float32)


DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 24}


@pytest.mark.parametrize("n_prompt", [12, 24, 25, 28])
def test_a_dynamic_base_grows_with_the_text(
    n_prompt: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_dtype: None
) -> None:
    """A prompt by its whole length, in whatever chunks; each token after it by the text up to it."""
    lift_to_float64(monkeypatch, "Llama")
    theirs = save_random("Llama", DYNAMIC, tmp_path, torch.float64)
    torch.set_default_dtype(torch.float64)
    theirs.generation_config.eos_token_id = None
    ours = load_checkpoint(tmp_path, dtype="float64").decoder
    assert ours.config.max_positions == 48
    ids = torch.randint(61, (1, n_prompt), generator=torch.Generator().manual_seed(3))
    prompt = ids[0].tolist()

    def generated(**options: Any) -> Any:
        theirs(ids[:, :2])  # their tables forget the last text only when a short one comes
        return theirs.generate(ids, max_new_tokens=20, do_sample=False, **options)[0, n_prompt:].tolist()

    expected = generated()
    theirs(ids[:, :2])
    with torch.inference_mode():
        logits = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(ours.forward(ids), logits, rtol=0, atol=1e-9)
    pieces = [len(piece) for piece in torch.split(ids[0], 5)]
    torch.testing.assert_close(cached_logits(ours, ids, pieces), logits, rtol=0, atol=1e-9)
    for options in ({}, {"prefill_chunk": 7}, {"cache": "window"}):
        assert greedy(ours, prompt, 20, **options) == expected
    assert greedy(ours, prompt, 20, use_cache=False) == generated(use_cache=False)
    reused = ReusableCache()
    for n in (10, n_prompt, 20, n_prompt):
        assert greedy(ours, prompt[:n], 3, reused=reused) == greedy(ours, prompt[:n], 3)
    cache = ours.new_cache(n_prompt, 2, padding=[0, 9])
    cache.seen.whole = n_prompt
    together = ours.forward(ids.expand(2, -1), cache)
    torch.testing.assert_close(together[1:, 9:], ours.forward(ids[:, 9:]), rtol=0, atol=1e-9)


def test_longrope_between_turns_and_in_rows_of_unequal_length(tmp_path: Path) -> None:
    """A cache of a short text is no use to a long one, nor the other way round; each row goes by its own length."""
    save_random("Phi3", LONGROPE, tmp_path)
    ours = load_checkpoint(tmp_path, dtype="float64").decoder
    ids = torch.randint(61, (2, 30), generator=torch.Generator().manual_seed(3))
    reused, prompt = ReusableCache(), ids[0].tolist()
    for n in (10, 28, 20, 30):
        assert greedy(ours, prompt[:n], 3, reused=reused) == greedy(ours, prompt[:n], 3)
    cache = ours.new_cache(30, 2, padding=[0, 9])
    for piece in torch.split(ids, [20, *[1] * 10], dim=1):
        together = ours.forward(piece, cache)
        for row, padding in ((0, 0), (1, 9)):
            alone = ours.forward(ids[row : row + 1, padding : cache.length])[:, -1]
            torch.testing.assert_close(together[row : row + 1, -1], alone, rtol=0, atol=1e-9)


def test_gpt_oss_as_it_is_published_with_experts_in_mxfp4(tmp_path: Path) -> None:
    """Blocks and scales as the release stores them, against transformers' own widening of the same bytes."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    theirs = make_random("GptOss", OSS | {"intermediate_size": 32})
    generator = torch.Generator().manual_seed(4)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            packed[name] = tensor.contiguous()
            continue
        n_experts, inputs, outputs = tensor.shape
        shape = (n_experts, outputs, inputs // 32)
        packed[f"{name}_blocks"] = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        packed[f"{name}_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8, generator=generator)
        wide = convert_moe_packed_tensors(packed[f"{name}_blocks"], packed[f"{name}_scales"], dtype=torch.float32)
        tensor.copy_(wide)
    save_file(packed, tmp_path / "model.safetensors")
    document = theirs.config.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        expected = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(load_checkpoint(tmp_path).decoder.forward(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # where torch.compile is imported
@pytest.mark.parametrize("way", ["bitlinear", "offline", "online"])
def test_bitnet_as_it_is_published(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ternary weights in bytes, as numbers with a scale, or rounded while they are read; inputs of 8 bits each time."""
    from transformers.integrations import bitnet

    monkeypatch.setattr("torch._dynamo.config.disable", True)
    lift_to_float64(monkeypatch, "BitNet")
    theirs, generator = make_random("BitNet", {}, torch.float64), torch.Generator().manual_seed(4)
    for name, linear in [*theirs.named_modules()]:
        if not isinstance(linear, torch.nn.Linear) or name == "lm_head":
            continue
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features, "bias": False}
        codes = torch.randint(-1, 2, linear.weight.shape, generator=generator).double()
        if way == "bitlinear":
            layer = bitnet.BitLinear(**sizes, dtype=torch.float64)
            layer.weight, layer.weight_scale = bitnet.pack_weights(codes), torch.tensor([5.0]).double()
        else:
            layer = bitnet.AutoBitLinear(**sizes, dtype=torch.float64, online_quant=way == "online")
            layer.weight.data = linear.weight.data if way == "online" else codes
            if way == "offline":
                layer.weight_scale.fill_(0.2)
        theirs.set_submodule(name, layer)
    save_file({name: t.contiguous() for name, t in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    stated = {"quant_method": "bitnet", "linear_class": "bitlinear" if way == "bitlinear" else "autobitlinear"}
    document = theirs.config.to_dict() | {"quantization_config": stated | {"quantization_mode": way}}
    (tmp_path / "config.json").write_text(json.dumps(document, default=str))
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        expected = theirs(ids, use_cache=False).logits
    ours = load_checkpoint(tmp_path, dtype="float64").decoder
    torch.testing.assert_close(ours.forward(ids), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(stepwise(ours, ids), expected, rtol=0, atol=1e-9)


def test_the_decoder_of_a_gemma_that_sees(tmp_path: Path) -> None:
    """Gemma 3's image models: the config's section and the decoder's weights are used, the rest is left out."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    text = transformers.Gemma3TextConfig(**(SIZES | GEMMA | {"rope_parameters": GEMMA3_ROPE}))
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(1)
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = theirs(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(load_checkpoint(tmp_path).decoder.forward(ids), expected, rtol=0, atol=1e-4)


def check_the_decoder(make: Any, config: Any, left_out: str, folder: Path) -> None:
    """The text section of a saved model of text and images gives its logits; the weights left out are named."""
    torch.manual_seed(1)
    theirs = make(config).eval()
    theirs.save_pretrained(folder)
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = theirs(input_ids=ids, use_cache=False).logits
    loaded = load_checkpoint(folder)
    torch.testing.assert_close(loaded.decoder.forward(ids), expected, rtol=0, atol=1e-4)
    assert left_out in " ".join(loaded.notes)


@pytest.mark.parametrize("kind", ["mistral", "ministral3"])
def test_the_decoder_of_a_mistral_that_sees(kind: str, tmp_path: Path) -> None:
    """Mistral Small 3.1 and later: the text section and its weights, the rest named as left out."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "model_type": "pixtral", "head_dim": 8}
    text = SIZES | {"model_type": kind, "head_dim": 6, "sliding_window": None}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    check_the_decoder(transformers.Mistral3ForConditionalGeneration, config, "multi_modal_projector", tmp_path)


def test_the_decoder_of_a_qwen_that_sees(tmp_path: Path) -> None:
    """Qwen3.5 as it is published: the text section and its weights, the rest named as left out."""
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(text_config=SIZES | DELTA, vision_config=vision, tie_word_embeddings=False)
    check_the_decoder(transformers.Qwen3_5ForConditionalGeneration, config, "visual", tmp_path)


@pytest.mark.parametrize("name", ROPES)
def test_rope_frequencies_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = save_random(*MODELS[name], tmp_path)
    config = load_checkpoint(tmp_path).config
    ours = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    torch.testing.assert_close(ours.float(), theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    assert rope_magnitude(config.rope_scaling) == pytest.approx(theirs.model.rotary_emb.attention_scaling)


def test_a_sharded_folder_and_a_bin_file_load_the_same(tmp_path: Path) -> None:
    theirs = save_random("Llama", {}, tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    theirs.config.save_pretrained(tmp_path / "bin")
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    ids = torch.arange(12)[None]
    whole, *others = (load_checkpoint(tmp_path / kind).decoder.forward(ids) for kind in ("whole", "shards", "bin"))
    assert all(torch.equal(other, whole) for other in others)
