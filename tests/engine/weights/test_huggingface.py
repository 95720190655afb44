"""The engine against transformers: tiny random models of every family, saved by it and loaded by us.

transformers computes norms, rotary angles, softmax and routers in float32 whatever the model's dtype. For the
comparison in float64 its modules are shown a torch whose float32 is float64, so that its own code, unchanged,
runs in double precision and everything can be compared to 1e-9.
"""

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.measure.runners.evaluate import cached_logits
from engine.model.decoder import Decoder
from engine.model.generate import GenerationOptions, ReusableCache, generate
from engine.model.rotary import rope_frequencies, rope_magnitude
from engine.model.shapes import CHOICE_BIAS
from engine.process.events import GenerationFinished
from engine.weights.checkpoint import load_checkpoint

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

N_TOKENS = 40
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
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
}
DEEPSEEK_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.5, "beta_fast": 8, "beta_slow": 2, "factor": 40.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1],
    "long_factor": [1.5, 4.0],
    "original_max_position_embeddings": 24,
    "partial_rotary_factor": 0.5,
}
GEMMA = {"head_dim": 10, "num_hidden_layers": 4, "sliding_window": 7, "query_pre_attn_scalar": 20}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
LATENT = {
    "kv_lora_rank": 12,
    "q_lora_rank": None,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "num_key_value_heads": 4,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 10,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10}
OSS = {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 10, "sliding_window": 7, "num_hidden_layers": 3}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN, "head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 6}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
    "qwen3-bias": ("Qwen3", {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-uncapped": ("Gemma2", GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("Gemma3", GEMMA | {"rope_parameters": GEMMA3_ROPE, "sliding_window_pattern": 3}),
    "gpt2": ("GPT2", {}),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "phi3-partial": ("Phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3-moe-mixed": ("Qwen3Moe", EXPERTS | {"head_dim": 6, "mlp_only_layers": [0], "attention_bias": True}),
    "gpt-oss": ("GptOss", OSS),
    "gpt-oss-plain": ("GptOss", OSS | {"attention_bias": False, "rope_parameters": PLAIN_ROPE, "swiglu_limit": 0.5}),
    "deepseek-v2-lite": ("DeepseekV2", LATENT | {"rope_parameters": DEEPSEEK_YARN}),
    "deepseek-v2": (
        "DeepseekV2",
        LATENT
        | {"q_lora_rank": 14, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2}
        | {"routed_scaling_factor": 16.0, "attention_bias": True},
    ),
}
PARTLY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
MINISTRAL = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 7, "head_dim": 10}
MODELS |= {
    "ministral": ("Ministral", MINISTRAL),
    "arcee": ("Arcee", {"mlp_bias": True}),
    "seed-oss": ("SeedOss", {"head_dim": 10, "attention_out_bias": True}),
    "ernie": ("Ernie4_5", {"head_dim": 10, "use_bias": True}),
    "gemma": ("Gemma", {"head_dim": 10, "hidden_act": "gelu"}),
    "olmo2": ("Olmo2", {"attention_bias": True}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 7}),
    "olmo3-yarn": ("Olmo3", {"sliding_window": 7, "rope_scaling": YARN | {"rope_theta": 5e5}, "num_hidden_layers": 4}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 0.5},
    ),
    "stablelm": ("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm2": ("StableLm", PARTLY | {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"sliding_window": 7}),
    "cohere": ("Cohere", {"use_qk_norm": True, "logit_scale": 1.5}),
    "cohere-plain": ("Cohere", {"attention_bias": True, "logit_scale": 1.5}),
    "cohere2": ("Cohere2", {"sliding_window": 7, "num_hidden_layers": 5, "logit_scale": 1.5}),
    "glm": ("Glm", PARTLY | {"head_dim": 12, "eos_token_id": [2]}),
    "glm4": ("Glm4", PARTLY | {"head_dim": 12, "attention_bias": False, "eos_token_id": [2]}),
    "exaone4": ("Exaone4", {"sliding_window": 7, "num_hidden_layers": 5}),
    "exaone4-full": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "phi": ("Phi", {}),
    "falcon": ("Falcon", {"multi_query": True, "activation": "gelu"}),
    "falcon-grouped": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-rows": ("Falcon", {"multi_query": False, "parallel_attn": False, "num_kv_heads": 4}),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5, "hidden_act": "gelu"}),
    "gpt-neox-serial": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "nanochat": ("NanoChat", {}),
    "qwen2-moe": ("Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 14, "mlp_only_layers": [1]}),
    "qwen2-moe-sliding": ("Qwen2Moe", EXPERTS | {"use_sliding_window": True, "sliding_window": 7, "qkv_bias": False}),
    "deepseek-v3": (
        "DeepseekV3",
        LATENT | {"q_lora_rank": 14, "n_group": 3, "topk_group": 2, "rope_parameters": DEEPSEEK_YARN},
    ),
    "deepseek-v3-plain": ("DeepseekV3", LATENT | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
    "lfm2": ("Lfm2", {"num_hidden_layers": 4, "full_attn_idxs": [2], "conv_bias": True, "block_multiple_of": 8}),
    "qwen3-next": (
        "Qwen3Next",
        EXPERTS
        | {"num_hidden_layers": 5, "head_dim": 16, "full_attention_interval": 2, "shared_expert_intermediate_size": 14}
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 5,
        },
    ),
}
SIGMOID = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 10, "first_k_dense_replace": 1}
MODELS |= {
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}),
    "gpt-neo": ("GPTNeo", {"attention_types": [[["local", "global"], 1]], "window_size": 7}),
    "gpt-bigcode": ("GPTBigCode", {"n_inner": 48}),
    "gpt-bigcode-rows": ("GPTBigCode", {"multi_query": False}),
    "gptj": ("GPTJ", {"rotary_dim": 4, "n_inner": 48}),
    "nemotron": ("Nemotron", PARTLY | {"head_dim": 8}),
    "olmo": ("Olmo", {}),
    "olmoe": ("Olmoe", EXPERTS),
    "helium": ("Helium", {"head_dim": 8}),
    "cwm": ("Cwm", {"head_dim": 10, "sliding_window": 7, "rope_parameters": LLAMA3, "num_hidden_layers": 5}),
    "glm4-moe": ("Glm4Moe", SIGMOID | PARTLY | {"head_dim": 12, "use_qk_norm": True, "attention_bias": True}),
    "bloom": ("Bloom", {"n_head": 4, "seq_length": 96}),
    "bloom-six-heads": ("Bloom", {"hidden_size": 48, "n_head": 6, "seq_length": 96}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96}),
    "mpt-six-heads": ("Mpt", {"d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 96}),
    "dots1": ("Dots1", SIGMOID | {"n_shared_experts": 2, "n_group": 3, "topk_group": 2, "head_dim": 10}),
}
UNUSED = {"opt": 2 * 32}  # the first rows of its table of positions
LOOSER = {"qwen3-next": 1e-3}  # its state is a long sum in float32, which theirs takes in another order
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


def model_class(kind: str) -> Any:
    """The class of transformers that continues text."""
    return getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")


def make_random(kind: str, changes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A model of transformers with random weights, norms and biases too."""
    class_name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{class_name}Config")(
        **(SIZES | changes),
        attn_implementation="eager" if kind in ("Gemma2", "GptOss", "GPTJ", "GPTNeo", "Bloom", "Mpt") else "sdpa",
        experts_implementation="eager",
    )
    torch.set_default_dtype(dtype)
    try:
        model = model_class(kind)(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.dim() == 1 else 1.5 / math.sqrt(parameter.shape[-1])
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name or ".ln_" in name else 0.0, spread)
    for name, buffer in model.named_buffers():
        if name.endswith(CHOICE_BIAS):
            torch.nn.init.normal_(buffer, 0.0, 0.3)
    return model


def save_random(kind: str, changes: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """`make_random`, and its files in ``folder``."""
    model = make_random(kind, changes, dtype)
    model.save_pretrained(folder)
    return model


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
    with torch.inference_mode():
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


def test_the_decoder_of_a_mistral_that_sees(tmp_path: Path) -> None:
    """Mistral Small 3.1 and later: the text section and its weights, the rest named as left out."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "model_type": "pixtral", "head_dim": 8}
    text = SIZES | {"model_type": "mistral", "head_dim": 6, "sliding_window": None}
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    torch.manual_seed(1)
    theirs = transformers.Mistral3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = theirs(input_ids=ids, use_cache=False).logits
    loaded = load_checkpoint(tmp_path)
    torch.testing.assert_close(loaded.decoder.forward(ids), expected, rtol=0, atol=1e-4)
    assert "multi_modal_projector" in " ".join(loaded.notes)


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
