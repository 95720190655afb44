"""Configs from config.json and from the assignment's shapes; every refusal names what is wrong."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families.registry import config_from_hf
from engine.model.config import Llama3RopeScaling
from engine.model.decoder import Decoder
from engine.model.made_weights import empty_weights
from engine.model.reference import config_from_reference, from_reference_name, to_reference_name
from engine.model.shapes import parameter_shapes
from tests.engine import oracle
from tests.engine.hf_configs import FAMILIES, document
from tests.engine.models import llama_config
from tests.examples import examples

LLAMA_3_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
LLAMA_31_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def hf(**changes: Any) -> dict[str, Any]:
    """Llama-3-8B's config.json with changes; None removes a key."""
    return {key: value for key, value in (LLAMA_3_8B | changes).items() if value is not None}


# --- config.json ------------------------------------------------------------------------------------------


def test_llama_3_8b() -> None:
    assert config_from_hf(LLAMA_3_8B) == llama_config(
        n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, hidden_size=4096, intermediate_size=14336,
        vocab_size=128256, max_positions=8192, norm_eps=1e-5, rope_theta=500_000.0,
        attention_scale=1 / math.sqrt(128), bos_id=128000, eos_ids=(128001,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"num_key_value_heads": None}, "n_kv_heads", 32),
        ({"head_dim": 64}, "head_dim", 64),
        ({"head_dim": 64}, "attention_scale", 0.125),
        ({"rms_norm_eps": None}, "norm_eps", 1e-6),
        ({"rope_theta": None}, "rope_theta", 10_000.0),
        ({"tie_word_embeddings": True}, "tied", True),
        ({"eos_token_id": [1, 2]}, "eos_ids", (1, 2)),
        ({"eos_token_id": None}, "eos_ids", ()),
        ({"bos_token_id": None}, "bos_id", None),
        ({"attention_bias": True}, "qkv_bias", True),
        ({"attention_bias": True}, "o_bias", True),
        ({"mlp_bias": True}, "mlp_bias", True),
        ({"sliding_window": 4096}, "sliding_window", None),  # Llama has none, whatever the file says
        ({"rope_scaling": {"rope_type": "default"}}, "rope_scaling", None),
        ({"rope_scaling": LLAMA_31_ROPE}, "rope_scaling", Llama3RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)),
        # transformers 5 writes one object
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}, "rope_theta", 7e5),
    ],
)  # fmt: skip
def test_llama_keys(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(config_from_hf(hf(**changes)), field) == value


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("mistral", {}, {"sliding_window": 4096, "qkv_bias": False}),  # the class default
        (
            "mistral",
            {"sliding_window": 512, "attention_bias": True},
            {"sliding_window": 512, "qkv_bias": False},
        ),
        ("qwen2", {}, {"qkv_bias": True, "o_bias": False, "qk_norm": False}),
        ("qwen2", {"sliding_window": 512, "use_sliding_window": False}, {"sliding_window": None}),
        (
            "qwen2",
            {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 0},
            {"sliding_window": 512},
        ),
        ("qwen3", {}, {"qk_norm": True, "head_dim": 128, "qkv_bias": False}),
        (
            "qwen3",
            {"head_dim": 80, "attention_bias": True},
            {"head_dim": 80, "qkv_bias": True, "o_bias": True},
        ),
    ],
)
def test_other_families(model_type: str, changes: dict[str, Any], expected: dict[str, object]) -> None:
    config = config_from_hf(hf(model_type=model_type, **changes))
    assert {field: getattr(config, field) for field in expected} == expected


def test_a_null_window_switches_mistrals_off() -> None:
    assert config_from_hf(LLAMA_3_8B | {"model_type": "mistral", "sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "whisper"}, '"whisper".*it supports llama, mistral, .*smollm3, qwen2, qwen3'),
        ({"hidden_act": "swiglu_oai"}, '"swiglu_oai".*relu, silu, swish, gelu'),
        ({"rope_scaling": {"type": "ntk", "factor": 4.0}}, "'ntk' is not supported; use default, llama3"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9,
          "layer_types": ["linear_attention"] * 32}, "layer_types has 'linear_attention'"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=words):
        config_from_hf(hf(**changes))


ROPES: list[Any] = [
    {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    for kind in ("linear", "yarn", "longrope", "llama3", ["x"], 3)
]  # fmt: skip
ODD: list[Any] = [None, 0, 1, -1, 7, 2**70, 10**400, 1.5, float("inf"), float("nan"), True, "x", [], [1], [None] * 7,
                  {}, {"factor": 1}, ["full_attention"] * 7, *ROPES]  # fmt: skip


@given(family=st.sampled_from(sorted(FAMILIES)), data=st.data())
@examples(200)
def test_odd_values_are_refused_in_a_sentence(family: str, data: st.DataObject) -> None:
    """Whatever stands in a config.json, it is refused by name or makes a model that can be set up."""
    raw = document(family)
    names = [*sorted(raw), "rope_scaling", "rope_parameters", "rope_theta", "layer_types", "hidden_act", "head_dim",
             "norm_topk_prob", "partial_rotary_factor", "original_max_position_embeddings", "no_rope_layers",
             "query_pre_attn_scalar", "final_logit_softcapping", "topk_method", "n_group", "n_inner", "text_config",
             "mlp_only_layers", "eos_token_id", "rms_norm_eps", "sliding_window"]  # fmt: skip
    raw = raw | data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(ODD), min_size=1, max_size=2))
    try:
        config = config_from_hf(raw)
    except ConfigError as refusal:
        said = refusal.message
    else:
        said = ""
        if math.prod((config.n_layers, config.vocab_size, config.hidden_size, config.head_dim)) < 10**9:
            Decoder(config, empty_weights(config))
    assert said.isprintable()


@pytest.mark.parametrize("key", [k for k in LLAMA_3_8B if k.endswith(("_size", "_layers", "_embeddings", "model_type"))
                                 and k != "tie_word_embeddings"] + ["num_attention_heads"])  # fmt: skip
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {key} is missing"):
        config_from_hf(hf(**{key: None}))


def test_kv_heads_are_not_guessed_for_families_whose_default_is_another() -> None:
    with pytest.raises(ConfigError, match="num_key_value_heads is missing"):
        config_from_hf(hf(model_type="qwen2", num_key_value_heads=None))


def test_numbers_in_other_spellings_are_read() -> None:
    spelled = {"hidden_size": "4096", "num_attention_heads": 32.0, "rope_theta": "5e5", "eos_token_id": -1}
    config = config_from_hf(LLAMA_3_8B | spelled)
    assert (config.hidden_size, config.n_heads, config.rope_theta, config.eos_ids) == (4096, 32, 5e5, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"hidden_size": 4096.5}, "hidden_size is 4096.5"),
        ({"hidden_size": "4096 wide"}, "hidden_size is '4096 wide'"),
        ({"vocab_size": True}, "vocab_size is True"),
        (
            {"num_attention_heads": 30},
            r"hidden_size \(4096\) is not a multiple of num_attention_heads \(30\)",
        ),
        ({"num_key_value_heads": 5}, r"n_heads \(32\) is not a multiple of n_kv_heads \(5\)"),
        ({"head_dim": 7}, "head_dim is 7; rotary positions need an even number"),
        ({"num_hidden_layers": 10**9}, "at most 10000"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rope_theta": math.inf}, "rope_theta is inf"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'; expected an object"),
        ({"rope_scaling": LLAMA_31_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor 1 must exceed"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "low_freq_factor is missing"),
    ],
)
def test_impossible_values_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_hf(hf(**changes))


@pytest.mark.parametrize("document", [[], "llama", None, 3])
def test_a_config_must_be_an_object(document: object) -> None:
    with pytest.raises(ConfigError, match="one JSON object"):
        config_from_hf(document)


# --- the assignment's shapes ------------------------------------------------------------------------------


def test_sizes_come_from_the_shapes() -> None:
    state = oracle.random_state_dict(n_layers=3, d_model=10, d_ff=6, vocab=17, positions=9)
    config = config_from_reference({name: values.shape for name, values in state.items()})
    sizes = (
        config.n_layers,
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
        config.max_positions,
    )
    assert sizes == (3, 10, 6, 17, 9)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (1, 1, 10)
    assert config.attention_scale == pytest.approx(1 / math.sqrt(10))
    assert (config.mlp_bias, config.head_bias, config.qkv_bias, config.o_bias) == (True, True, False, False)


def test_the_config_asks_for_exactly_the_weights_of_the_file() -> None:
    state = oracle.random_state_dict()
    shapes = {name: values.shape for name, values in state.items()}
    asked = parameter_shapes(config_from_reference(shapes))
    assert {to_reference_name(name): shape for name, shape in asked.items()} == shapes
    assert {from_reference_name(name) for name in shapes} == set(asked)


@pytest.mark.parametrize("name", ["token_embedding.weight", "pos_embedding.weight", "layers.0.feed_forward.fc1.weight"])
def test_a_file_without_sizes_is_refused(name: str) -> None:
    shapes = {n: v.shape for n, v in oracle.random_state_dict().items() if n != name}
    with pytest.raises(ConfigError, match=f"no {name}"):
        config_from_reference(shapes)


def test_names_we_do_not_know_are_left_alone() -> None:
    for name in ("layers.0.attention.W_z.weight", "layers.x.norm1.weight", "something", "norm3.weight", ""):
        assert from_reference_name(name) == name
