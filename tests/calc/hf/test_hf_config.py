"""calc.sources: config.json, spec TOML and paths; what the transformers classes assume, and one-sentence refusals."""

import contextlib
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SourceError, UnknownName, UnsupportedArchitecture
from calc.hf import MAX_CONFIG_BYTES, read_hf_config, spec_from_config
from calc.model.count import parameters
from calc.model.parts import Mlp, Norm
from calc.model.spec import DIMENSIONS
from calc.sources import load_model

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the collected configs are not beside the project")

# meta-llama/Meta-Llama-3-8B, as published.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
# Qwen/Qwen2.5-3B: a window that is switched off, a tied head.
QWEN2 = {
    **LLAMA,
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_window_layers": 36,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 4096, "vocab_size": 32000}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 128, "hidden_size": 2560, "num_key_value_heads": 8}


def spec(config, **changes):
    return spec_from_config({**config, **changes}, name="m", source="m/config.json")


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def refusal(config, kind=SourceError):
    with pytest.raises(kind) as caught:
        spec(config)
    message = str(caught.value)
    assert message.startswith("m/config.json: ")
    assert "\n" not in message
    return message.removeprefix("m/config.json: ")


def write(folder, value, name="config.json"):
    file = folder / name
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


class TestAgainstTransformers:
    """Sizes as the transformers classes make them."""

    def test_llama(self):
        m = spec(LLAMA)
        assert [getattr(m, name) for name in DIMENSIONS] == [32, 32, 8, 128, 4096, 14336, 128256]
        assert (m.mlp, m.norm, m.tied, m.qkv_bias, m.o_bias, m.qk_norm) == (
            Mlp.GATED,
            Norm.RMS,
            False,
            False,
            False,
            False,
        )
        assert (m.max_context, m.n_sliding_layers, m.window, m.notes) == (8192, 0, None, ())
        assert parameters(m).total == 8_030_261_248

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "olmo2", "glm", "starcoder2", "phi3"]
    )
    def test_silent_configs_mean_what_the_class_says(self, model_type):
        from transformers import AutoConfig

        sizes = {
            "num_hidden_layers": 30,
            "num_attention_heads": 32,
            "hidden_size": 2048,
            "intermediate_size": 512,
            "vocab_size": 99,
        }
        theirs = AutoConfig.for_model(model_type, **sizes)
        ours = spec({"model_type": model_type, **sizes})
        assert ours.n_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 2048 // 32)
        assert ours.tied == theirs.tie_word_embeddings
        assert ours.window == getattr(theirs, "sliding_window", None)


class TestAssumptions:
    """Where the config is silent, the class default, and a note."""

    @pytest.mark.parametrize(
        ("config", "n_kv_heads"), [(LLAMA, 32), (MISTRAL, 8), ({**QWEN2, "num_attention_heads": 64}, 32)]
    )
    def test_absent_kv_heads(self, config, n_kv_heads):
        m = spec(without(config, "num_key_value_heads"))
        assert m.n_kv_heads == n_kv_heads
        assert any(f"num_key_value_heads is not in the config: {n_kv_heads}" in note for note in m.notes)

    @pytest.mark.parametrize("config", [LLAMA, MISTRAL, QWEN2, QWEN3])
    def test_null_kv_heads_mean_multi_head(self, config):
        m = spec(config, num_key_value_heads=None)
        assert m.group_size == 1
        assert any("num_key_value_heads is null" in note for note in m.notes)

    def test_absent_tying_is_false_with_a_note(self):
        m = spec(without(LLAMA, "tie_word_embeddings"))
        assert m.tied is False
        assert m.notes == ("tie_word_embeddings is not in the config: false, as the llama class assumes",)

    def test_head_dim_is_taken_before_it_is_derived(self):
        assert spec(LLAMA).head_dim == 128
        assert spec(LLAMA, head_dim=64).head_dim == 64
        assert spec(LLAMA, head_dim=None).head_dim == 128
        # Mistral Nemo: 5120 / 32 = 160, but head_dim says 128.
        assert spec(MISTRAL, hidden_size=5120, head_dim=128).head_dim == 128

    def test_qwen3_without_head_dim_has_128_whatever_the_width(self):
        m = spec(without(QWEN3, "head_dim"))
        assert m.head_dim == 128 != m.hidden_size // m.n_heads
        assert any(note.startswith("head_dim is not in the config: 128") for note in m.notes)
        assert "head_dim must be a whole number, not null" in refusal({**QWEN3, "head_dim": None})

    def test_head_dim_must_come_out_whole(self):
        message = refusal({**LLAMA, "hidden_size": 4100})
        assert message == "head_dim missing, and hidden_size 4100 is not a multiple of num_attention_heads 32"

    def test_unknown_context_stays_unknown(self):
        assert spec(without(LLAMA, "max_position_embeddings")).max_context is None

    def test_quantization_is_noted(self):
        m = spec(LLAMA, quantization_config={"quant_method": "fp8"})
        assert m.notes == (f"weights as the config states: fp8, {m.stored.total_bytes:,} B",)
        assert parameters(m).total == 8_030_261_248


class TestBiases:
    def test_llama_bias_is_on_all_four_projections(self):
        m = spec(LLAMA, attention_bias=True, mlp_bias=True)
        assert (m.qkv_bias, m.o_bias, m.mlp_bias) == (True, True, True)

    def test_qwen2_has_bias_on_qkv_alone_and_mistral_none(self):
        assert (spec(QWEN2).qkv_bias, spec(QWEN2).o_bias) == (True, False)
        assert spec(MISTRAL, attention_bias=True).qkv_bias is False

    def test_qwen3_norms_q_and_k(self):
        assert (spec(QWEN3).qk_norm, spec(QWEN3).qkv_bias) == (True, False)
        assert spec(QWEN3, attention_bias=True).o_bias is True


class TestWindows:
    def test_mistral_slides_everywhere_or_nowhere(self):
        assert (spec(MISTRAL).n_sliding_layers, spec(MISTRAL).window) == (32, 4096)
        m = spec(MISTRAL, sliding_window=None)
        assert (m.n_sliding_layers, m.window) == (0, None)

    def test_mistral_without_the_key_slides_as_its_class_does(self):
        m = spec(without(MISTRAL, "sliding_window"))
        assert (m.n_sliding_layers, m.window) == (32, 4096)
        assert any("sliding_window is not in the config: 4096" in note for note in m.notes)

    def test_llama_never_slides(self):
        assert spec(LLAMA, sliding_window=4096).n_sliding_layers == 0

    def test_qwen_window_that_is_off_is_ignored_and_noted(self):
        m = spec(QWEN2)
        assert (m.n_sliding_layers, m.window) == (0, None)
        assert m.notes == ("sliding_window is off: use_sliding_window is not true",)

    @pytest.mark.parametrize(("first", "n_sliding"), [(0, 36), (21, 15), (35, 1), (36, 0), (70, 0)])
    def test_qwen_layers_from_max_window_layers_up_slide(self, first, n_sliding):
        m = spec(QWEN2, use_sliding_window=True, sliding_window=1000, max_window_layers=first)
        assert m.n_sliding_layers == n_sliding
        assert m.window == (1000 if n_sliding else None)

    def test_layer_types_count_before_max_window_layers(self):
        kinds = ["sliding_attention"] * 5 + ["full_attention"] * 31
        m = spec(QWEN3, use_sliding_window=True, layer_types=kinds)
        assert (m.n_sliding_layers, m.window) == (5, 32768)
        assert spec(QWEN3, use_sliding_window=False, layer_types=kinds).n_sliding_layers == 0

    def test_layer_types_must_fit(self):
        assert "list of 36 values" in refusal({**QWEN3, "layer_types": ["full_attention"]})
        assert "recurrent layers need linear_num_value_heads" in refusal(
            {**QWEN3, "layer_types": ["linear_attention"] * 36}
        )
        assert 'layer_types has "hyena"' in refusal({**QWEN3, "layer_types": ["hyena"] * 36})


BRAND_NEW = LLAMA | {"model_type": "brand_new", "architectures": ["BrandNewForCausalLM"]}


class TestRefusals:
    def test_all_missing_keys_are_named_at_once(self):
        assert refusal(without(LLAMA, "hidden_size", "vocab_size", "num_hidden_layers")) == (
            "num_hidden_layers, hidden_size, vocab_size missing"
        )
        assert refusal({**LLAMA, "vocab_size": None}) == "vocab_size missing"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("32", '"32"'),
            (32.0, "32.0"),
            (True, "true"),
            ([32], "a list"),
            ({}, "an object"),
            (float("nan"), "NaN"),
            ("x" * 99, '"' + "x" * 36 + "..."),
        ],
    )
    @pytest.mark.parametrize(
        "key", ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"]
    )
    def test_wrong_types(self, key, value, shown):
        assert refusal({**LLAMA, key: value}) == f"{key} must be a whole number, not {shown}"

    @pytest.mark.parametrize(
        ("value", "shown"),
        [(0, "0"), (-4, "-4"), (10**13, "1" + "0" * 13), (10**400, "a number of more than 30 digits")],
    )
    def test_impossible_numbers(self, value, shown):
        message = refusal({**LLAMA, "intermediate_size": value})
        assert message == f"intermediate_size must lie between 1 and 1,000,000,000,000, not {shown}"

    @pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
    def test_flags_are_true_or_false(self, key):
        assert refusal({**LLAMA, key: 1}) == f"{key} must be true or false, not 1"
        assert spec(LLAMA, **{key: None}) == spec(LLAMA, **{key: False})  # null is false, not what the class assumes

    def test_heads_that_do_not_divide(self):
        assert "num_key_value_heads 7 does not divide num_attention_heads 32" in refusal(
            {**LLAMA, "num_key_value_heads": 7}
        )

    @pytest.mark.parametrize("model_type", ["bert", "t5", "whisper"])
    def test_what_is_no_decoder_is_refused_by_name(self, model_type):
        assert f'"{model_type}" is not a decoder-only' in refusal(
            {**LLAMA, "model_type": model_type}, UnsupportedArchitecture
        )

    def test_known_to_be_more_than_its_fields_is_refused_by_name_with_the_way_out(self):
        message = refusal({**LLAMA, "model_type": "blt"}, UnsupportedArchitecture)
        assert message.startswith('model_type "blt" has layers that kvscope does not support')
        assert all(f"--{name.replace('_', '-')}" in message for name in DIMENSIONS)

    @pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu2"), ("post_norm_eps", 1e-8)])
    def test_unknown_with_a_hint_at_other_parts_is_refused(self, key, value):
        assert key in refusal({**BRAND_NEW, key: value}, UnsupportedArchitecture)

    def test_unknown_is_read_by_its_fields_and_says_so(self):
        m = spec(BRAND_NEW)
        assert parameters(m).total == 8_030_261_248
        assert any('does not know model_type "brand_new"' in note for note in m.notes)

    @pytest.mark.parametrize("key", ["ssm_state_size", "num_memory_slots", "adapter_dim"])
    def test_unknown_with_a_field_that_may_add_weights_is_refused(self, key):
        message = refusal({**BRAND_NEW, key: 64}, UnsupportedArchitecture)
        assert '"brand_new"' in message
        assert key in message

    def test_unknown_with_a_window_must_say_which_layers_slide(self):
        assert "nothing says which layers are sliding" in refusal({**BRAND_NEW, "sliding_window": 9})

    def test_unknown_whose_class_is_known_is_that(self):
        m = spec(LLAMA, model_type="my_llama")
        assert m.layers == spec(LLAMA).layers
        assert any('does not know model_type "my_llama": it is read as llama' in note for note in m.notes)

    @pytest.mark.parametrize(
        ("named", "model_type"),
        [("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"), ("GPTNeoXForCausalLM", "gpt_neox")],
    )
    def test_a_class_of_language_models_stands_for_its_model_type(self, named, model_type):
        config = without(LLAMA, "model_type") | {"architectures": [named]}
        assert spec(config) == spec(LLAMA, model_type=model_type)

    @pytest.mark.parametrize(
        "named", [["NoSuchForSequenceClassification"], ["NoSuchForCausalLM"], ["A", "B"], "x", [3], []]
    )
    def test_other_classes_stand_for_none(self, named):
        assert "model_type missing" in refusal(without(LLAMA, "model_type") | {"architectures": named})

    def test_model_type_must_be_there_and_be_a_name(self):
        assert refusal(without(LLAMA, "model_type", "architectures")).startswith("model_type missing: it determines")
        assert "must be a name" in refusal({**LLAMA, "model_type": 3})


class TestFiles:
    def test_config_is_named_by_its_folder_and_other_files_by_themselves(self, tmp_path):
        folder = tmp_path / "my-llama"
        folder.mkdir()
        write(folder, LLAMA)
        assert load_model(str(folder)).name == load_model(f"{folder}/config.json").name == "my-llama"
        assert load_model(str(folder)).source == str(folder / "config.json")
        assert load_model(str(write(tmp_path, LLAMA, "tiny.json"))).name == "tiny"

    def test_a_byte_order_mark_is_no_obstacle(self, tmp_path):
        assert read_hf_config(write(tmp_path, "\ufeff" + json.dumps(LLAMA))).n_layers == 32

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ("", "not JSON at line 1, column 1"),
            ('{"a": 1,\n "b" 2}', "not JSON at line 2, column 6"),
            ("[]", "holds an object {...}, not a list"),
            ("null", "holds an object {...}, not null"),
            ("[" * 100_000, "too deep"),
            ('{"hidden_size": ' + "9" * 5000 + "}", "numbers are too long"),
        ],
    )
    def test_what_is_not_a_config(self, tmp_path, content, says):
        file = write(tmp_path, content)
        with pytest.raises(SourceError, match=r"config\.json: ") as caught:
            read_hf_config(file)
        assert says in str(caught.value)
        assert str(caught.value).startswith(str(file))

    def test_binary_and_oversized_files(self, tmp_path):
        file = tmp_path / "config.json"
        file.write_bytes(b"\x80\x04\x95")
        with pytest.raises(SourceError, match="not a text file"):
            read_hf_config(file)
        file.write_bytes(b" " * MAX_CONFIG_BYTES + b"{}")
        with pytest.raises(SourceError, match="larger than 4 MiB"):
            read_hf_config(file)

    def test_no_more_than_the_limit_is_ever_in_memory(self, tmp_path):
        file = tmp_path / "config.json"
        file.touch()
        os.truncate(file, 2**26)
        tracemalloc.start()
        with pytest.raises(SourceError, match="larger than"):
            read_hf_config(file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * MAX_CONFIG_BYTES

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_does_not_hang_the_reader(self, tmp_path):
        os.mkfifo(tmp_path / "config.json")
        with pytest.raises(SourceError, match="not a file"):
            read_hf_config(tmp_path / "config.json")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
    def test_unreadable_file(self, tmp_path):
        file = write(tmp_path, LLAMA)
        file.chmod(0)
        with pytest.raises(SourceError, match="cannot be read: Permission denied"):
            read_hf_config(file)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("./nothing", "no such file or folder"),
            ("nothing/config.json", "no such file or folder"),
            ("a/\0.json", r"'a/\\x00\.json': no such file"),
            ("~nobody-of-that-name/config.json", "not a usable path"),
            ("x" * 5000 + ".json", "not a usable path"),
            ("", "no model given"),
        ],
    )
    def test_paths_that_lead_nowhere(self, text, says):
        with pytest.raises(SourceError, match=says):
            load_model(text)

    def test_neither_a_name_nor_a_path(self):
        with pytest.raises(UnknownName, match=r"unknown model 'org/thing'.*nor is there a file"):
            load_model("org/thing")

    def test_folder_without_config(self, tmp_path):
        with pytest.raises(SourceError, match=r"no config\.json or params\.json in this folder"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("m.gguf", "not a GGUF file|GGUF header is damaged"),
            ("m.safetensors", "use its config.json"),
            ("m.pt", "use its config.json"),
            ("m.txt", "not a config.json"),
        ],
    )
    def test_other_files_are_refused_plainly(self, tmp_path, name, says):
        file = tmp_path / name
        file.write_bytes(b"\x80")
        with pytest.raises(SourceError, match=says):
            load_model(str(file))


SPEC = """
n_layers = 2
n_heads = 1
n_kv_heads = 1
head_dim = 50
hidden_size = 50
intermediate_size = 100
vocab_size = 1000
mlp = "plain"
norm = "layer"
mlp_bias = true
head_bias = true
n_learned_positions = 128
"""


class TestSpecToml:
    def test_the_assignments_reference_model(self, tmp_path):
        m = load_model(str(write(tmp_path, SPEC, "reference.toml")))
        assert (m.name, m.mlp, m.norm, m.n_learned_positions) == ("reference", Mlp.PLAIN, Norm.LAYER, 128)
        # By hand: 50 000 + 6 400 positions, 2 x (10 000 attention + 10 150 MLP + 200 norms), 100, 51 000 head.
        assert parameters(m).total == 50_000 + 6_400 + 2 * (10_000 + 10_150 + 200) + 100 + 51_000

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("vocab_size = 1000", ""), "vocab_size missing"),
            (("vocab_size = 1000", "vocabulary = 1000"), "unknown vocabulary; the fields are name, "),
            (("vocab_size = 1000", 'vocab_size = "1000"'), "vocab_size must be a whole number"),
            (("vocab_size = 1000", "vocab_size = 1e3"), "vocab_size must be a whole number"),
            (("vocab_size = 1000", "vocab_size = 0"), "vocab_size must be at least 1"),
            (("vocab_size = 1000", "vocab_size = 1" + "0" * 400), "vocab_size must be a whole number up to"),
            (("mlp_bias = true", "mlp_bias = 1"), "mlp_bias must be true or false"),
            (('mlp = "plain"', 'mlp = "swiglu"'), "mlp must be gated or plain, not 'swiglu'"),
            (('norm = "layer"', "norm = [1]"), "norm must be rms or layer"),
            (("n_layers = 2", "n_layers = 2\nname = 3"), "name must be text"),
            (("n_layers = 2", "n_layers = 2\nmax_context = 2.5"), "max_context must be a whole number"),
            (("n_layers = 2", "n_layers = 2\nmax_context = true"), "max_context must be a whole number"),
            (("n_layers = 2", "n_layers 2"), "not TOML"),
        ],
    )
    def test_refusals(self, tmp_path, change, says):
        file = write(tmp_path, SPEC.replace(*change), "m.toml")
        with pytest.raises(SourceError) as caught:
            load_model(str(file))
        assert str(caught.value).startswith(f"{file}: ")
        assert says in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = (*QWEN3, "quantization_config", "layer_types", "mlp_bias")


def read_or_refused(config):
    """The spec, or the sentence of the SourceError; any other exception is a failure."""
    try:
        return spec_from_config(config, name="m", source="m")
    except SourceError as error:
        return str(error)


@given(st.sampled_from([LLAMA, MISTRAL, QWEN2, QWEN3]), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
def test_a_mutated_config_is_read_or_refused_in_one_sentence(config, changes):
    result = read_or_refused({**config, **changes})
    if isinstance(result, str):
        assert "\n" not in result
        assert len(result) < 600
    else:
        assert parameters(result).total > 0
        assert result.n_heads % result.n_kv_heads == 0


@given(st.dictionaries(st.text(max_size=6) | st.sampled_from(KEYS), JSON, max_size=6))
def test_an_object_of_other_things_is_read_or_refused(config):
    result = read_or_refused(config)
    assert not isinstance(result, str) or result.startswith("m: ")


@given(st.text(max_size=40))
def test_any_name_is_answered(text):
    with contextlib.suppress(SourceError):
        assert load_model(text).n_layers > 0
