"""Quantized checkpoints as bytes: hand-computed matrices, and what servers logged after loading them."""

import json
from dataclasses import replace

import pytest

from calc.errors import SourceError
from calc.fit.memory import memory_report
from calc.hf import read_hf_config, spec_from_config
from calc.model.count import parameters
from calc.model.quantization import integer_bytes, scheme_of
from calc.model.stored import StoredWeights
from calc.model.stored_format import stored_format
from calc.model.study import Policy, Study
from calc.sources.catalog import manual_device

GIB = 2**30
LLAMA_31_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
LINEAR = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
ROWS = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
REST = 8_030_261_248 - LINEAR
FP8_DYNAMIC = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip
W4A16 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
    }},
}  # fmt: skip


def spec(quantization=None, **changes):
    config = {**LLAMA_31_8B, **changes}
    if quantization is not None:
        config["quantization_config"] = quantization
    return spec_from_config(config, name="m", source="m/config.json")


def stored(quantization, **changes):
    return spec(quantization, **changes).stored


class TestExact:
    def test_plain_16_bit_weights_need_no_record(self):
        assert spec().stored is None
        assert spec(torch_dtype="float16").stored is None

    def test_float32(self):
        assert stored(None, torch_dtype="float32").total_bytes == 4 * 8_030_261_248

    def test_fp8_by_channel(self):
        assert stored(FP8_DYNAMIC).total_bytes == LINEAR + 2 * ROWS + 2 * REST

    def test_fp8_in_blocks(self):
        quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        assert stored(quantization).total_bytes == LINEAR + 4 * LINEAR // 128**2 + 2 * REST

    def test_fp8_in_blocks_that_do_not_divide(self):
        scheme = scheme_of({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "c")
        assert scheme.matrix_bytes(576, 7168) == 576 * 7168 + 4 * 5 * 56

    def test_fp8_by_tensor(self):
        assert stored({"quant_method": "fp8"}).total_bytes == LINEAR + 4 * 7 * 32 + 2 * REST

    def test_int4_in_groups(self):
        shape_words = 16 * 7 * 32
        assert stored(W4A16).total_bytes == LINEAR // 2 + 2 * LINEAR // 128 + shape_words + 2 * REST

    def test_awq(self):
        quantization = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
        assert stored(quantization).total_bytes == LINEAR // 2 + 2 * LINEAR // 128 + LINEAR // 256 + 2 * REST

    def test_gptq_has_an_index_a_column(self):
        quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128}
        columns = 32 * (6 * 4096 + 14336)
        expected = LINEAR // 2 + 2 * LINEAR // 128 + LINEAR // 256 + 4 * columns + 2 * REST
        assert stored(quantization).total_bytes == expected

    def test_nvfp4(self):
        quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
        assert stored(quantization).total_bytes == LINEAR // 2 + LINEAR // 16 + 8 * 7 * 32 + 2 * REST

    def test_bitsandbytes(self):
        nested = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}
        plain = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        tables = 64 * 7 * 32
        assert stored(plain).total_bytes == LINEAR // 2 + LINEAR // 16 + tables + 2 * REST
        assert stored(nested).total_bytes < stored(plain).total_bytes
        eight = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        assert stored(eight).total_bytes == LINEAR + 4 * ROWS + 2 * REST

    def test_mxfp4_holds_experts_alone(self):
        config = {
            "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
            "sliding_window": 128, "num_local_experts": 32, "num_experts_per_tok": 4, "attention_bias": True,
            "tie_word_embeddings": False, "quantization_config": {"quant_method": "mxfp4"},
        }  # fmt: skip
        model = spec_from_config(config, name="gpt-oss-20b", source="c")
        experts = 24 * 32 * 3 * 2880 * 2880
        rest = 20_914_757_184 - experts
        assert model.stored.total_bytes == experts // 32 * 17 + 2 * rest
        # The published files: 12.8 GiB of blocks, scales and 16-bit weights (13.76 GB).
        assert model.stored.total_bytes / 1e9 == pytest.approx(13.76, rel=2e-3)

    def test_integer_words_are_whole(self):
        assert integer_bytes(3, 5, bits=4, group=-1, zeros=False, order=False, scale=2) == 3 * 4 + 3 * 2


class TestWhatServersLogged:
    """GiB after loading, vLLM 0.19 on one H100 (RedHatAI's checkpoints of Llama-3.1-8B)."""

    @pytest.mark.parametrize(("quantization", "logged"), [(FP8_DYNAMIC, 8.49), (W4A16, 5.38)])
    def test_weights(self, quantization, logged):
        # Within 1 %: kernels of 4-bit weights keep workspaces of their own.
        # The server holds rotary tables as well: 131,072 positions x 128 x 2 B.
        tables = 131_072 * 128 * 2
        assert (stored(quantization).total_bytes + tables) / GIB == pytest.approx(logged, rel=1e-2)


class TestIgnored:
    def test_named_modules_stay(self):
        kept = {**FP8_DYNAMIC, "ignore": ["lm_head", "model.layers.0.mlp.down_proj"]}
        matrix = 4096 * 14336
        assert stored(kept).total_bytes - stored(FP8_DYNAMIC).total_bytes == 2 * matrix - (matrix + 2 * 4096)

    def test_patterns_stay(self):
        kept = {**FP8_DYNAMIC, "ignore": ["lm_head", "re:.*self_attn.*"]}
        attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
        rows = 32 * (4096 + 1024 + 1024 + 4096)
        assert stored(kept).total_bytes - stored(FP8_DYNAMIC).total_bytes == attention - 2 * rows

    @pytest.mark.parametrize("pattern", ["re:(a+)+$", "re:(.*)*x", "re:((((", "re:a**"])
    def test_patterns_that_could_hang_are_refused(self, pattern):
        with pytest.raises(SourceError, match=r"m/config\.json: .*the pattern"):
            spec({**FP8_DYNAMIC, "ignore": [pattern]})

    @pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model.", "backbone."])
    @pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj", "layers.0.self_attn.q*", "layers.0.*q_proj"])
    def test_whatever_stands_before_the_layers(self, prefix, name):
        kept = stored({**FP8_DYNAMIC, "ignore": ["lm_head", prefix + name]}).total_bytes
        assert kept - stored(FP8_DYNAMIC).total_bytes == 4096 * 4096 - 2 * 4096

    @pytest.mark.parametrize("head", ["lm_head", "language_model.lm_head", "model.lm_head", "re:.*lm_head"])
    def test_the_head_by_any_name(self, head):
        assert stored({**FP8_DYNAMIC, "ignore": [head]}) == stored(FP8_DYNAMIC)

    @pytest.mark.parametrize("name", ["vision_tower.layers.0.self_attn.q_proj", "layers.0.self_attn.k_norm", "model"])
    def test_modules_of_encoders_are_others(self, name):
        assert stored({**FP8_DYNAMIC, "ignore": ["lm_head", name]}) == stored(FP8_DYNAMIC)

    def test_recurrent_layers_by_the_name_of_their_class(self):
        delta = {
            "model_type": "qwen3_next", "layer_types": ["linear_attention"] * 32, "linear_num_key_heads": 16,
            "linear_key_head_dim": 128, "linear_num_value_heads": 32, "linear_value_head_dim": 128, "head_dim": 128,
        }  # fmt: skip
        out = 4096 * 4096
        more = stored({**FP8_DYNAMIC, "ignore": ["lm_head", "model.layers.3.linear_attn.out_proj"]}, **delta)
        assert more.total_bytes - stored(FP8_DYNAMIC, **delta).total_bytes == out - 2 * 4096


MLP = 32 * 3 * 4096 * 14336
MLP_ROWS = 32 * (14336 + 14336 + 4096)


def int4_bytes(elements, scales):
    """Half a byte per element, a 16-bit scale for each group, and 16 B of shape per matrix (96 of them)."""
    return elements // 2 + 2 * scales + 16 * 96


class TestGroups:
    """Formats that differ from module to module; the sums are by hand."""

    def group(self, target, **weights):
        return {"targets": [target], "weights": {"type": "int", "symmetric": True, **weights}}

    def test_targets_leave_the_others_as_they_are(self):
        group = self.group("re:.*mlp.(gate|up|down)_proj$", num_bits=4, strategy="group", group_size=128)
        quantization = {**W4A16, "config_groups": {"group_0": group}}
        # The example's right value, 7,692,887,552 B, was walked through transformers' modules.
        by_hand = 2 * (8_030_261_248 - MLP) + int4_bytes(MLP, MLP // 128)
        assert stored(quantization).total_bytes == by_hand == 7_692_887_552

    def test_two_groups(self):
        mlp = self.group("re:.*mlp.*", num_bits=4, strategy="group", group_size=128)
        attention = self.group("re:.*self_attn.*", num_bits=8, strategy="channel") | {"format": "float-quantized"}
        groups = {"group_0": mlp | {"format": "pack-quantized"}, "group_1": attention}
        found = stored({**W4A16, "format": "mixed-precision", "config_groups": groups})
        rest = 2 * REST + (LINEAR - MLP) + 2 * (ROWS - MLP_ROWS)
        assert found.total_bytes == rest + int4_bytes(MLP, MLP // 128)
        assert found.name == "int4, groups of 128 and int8 by channel"

    def test_mxfp4_has_a_scale_for_32_and_nvfp4_for_16(self):
        weights = {"num_bits": 4, "type": "float", "strategy": "group"}
        mx = self.group("Linear") | {"weights": {**weights, "group_size": 32}, "format": "mxfp4-pack-quantized"}
        nv = self.group("Linear") | {"weights": {**weights, "group_size": 16}}
        each = [stored({**W4A16, "config_groups": {"group_0": group}, "format": None}) for group in (mx, nv)]
        assert each[0].total_bytes == 2 * REST + LINEAR // 32 * 17 == 5_809_643_520
        assert each[1].total_bytes == 2 * REST + LINEAR // 16 * 9 + 8 * 224

    def test_gptq_dynamic_rules(self):
        gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
        kept = stored({**gptq, "dynamic": {"-:.*attn.*": {}, "lm_head": {}}}).total_bytes
        attention = LINEAR - MLP
        words = attention // 2 + 2 * attention // 128 + attention // 256  # packed, scales, zero points
        order = 4 * 32 * 4 * 4096  # an index of the inputs of each of four matrices
        assert kept - stored(gptq).total_bytes == 2 * attention - words - order
        wider = stored({**gptq, "dynamic": {"+:.*down_proj": {"bits": 8}}}).total_bytes
        down = MLP // 3
        assert wider - stored(gptq).total_bytes == down // 2 + down // 256

    def test_gptq_with_a_quantized_head(self):
        gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
        head = 128256 * 4096
        saved = stored(gptq).total_bytes - stored({**gptq, "lm_head": True}).total_bytes
        assert saved == 2 * head - (head // 2 + 2 * head // 128 + head // 256 + 4 * 4096)

    def test_quark(self):
        weight = {"dtype": "fp4", "group_size": 32, "qscheme": "per_group", "scale_format": "e8m0"}
        quark = {"quant_method": "quark", "global_quant_config": {"weight": weight}, "exclude": ["lm_head"]}
        assert stored(quark).total_bytes == 2 * REST + LINEAR // 32 * 17


class TestModelOpt:
    def test_projections_as_the_checkpoint_has_them(self):
        """Qwen 3.5 holds Q, K and V apart from z, each with two scales of its own."""
        delta = {
            "model_type": "qwen3_5_text", "layer_types": ["linear_attention"] * 31 + ["full_attention"],
            "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": 32,
            "linear_value_head_dim": 128, "head_dim": 128,
        }  # fmt: skip
        listed = {f"model.layers.0.linear_attn.in_proj_{part}": {"quant_algo": "FP8"} for part in ("qkv", "z")}
        quantization = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
        rows = 2 * 16 * 128 + 32 * 128 + 32 * 128
        saved = 2 * parameters(spec(**delta)).total - stored(quantization, **delta).total_bytes
        assert saved == rows * 4096 - 2 * 8

    def test_mixed_precision_names_every_module(self):
        listed = {f"model.layers.{i}.mlp.down_proj": {"quant_algo": "NVFP4"} for i in range(32)}
        listed["model.layers.0.self_attn.q_proj"] = {"quant_algo": "FP8"}
        found = stored({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed})
        down, query = MLP // 3, 4096 * 4096
        by_hand = 2 * (8_030_261_248 - down - query) + down // 16 * 9 + 32 * 8 + query + 8
        assert found.total_bytes == by_hand
        assert found.name == "nvfp4 and fp8"

    def test_gemma_4_has_its_experts_beside_the_mlp(self):
        """nvidia/Gemma-4-26B-A4B-NVFP4 leaves out every `mlp*`, router and attention: its experts alone are 4-bit."""
        gemma = {
            "model_type": "gemma4_text", "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
            "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2, "head_dim": 256,
            "global_head_dim": 512, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 128,
            "top_k_experts": 8, "moe_intermediate_size": 704, "hidden_size_per_layer_input": 0, "vocab_size": 262_144,
            "tie_word_embeddings": True, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
            "sliding_window": 1024,
        }  # fmt: skip
        left = [
            f"model.language_model.layers.{i}.{part}*" for i in range(30) for part in ("mlp", "router", "self_attn")
        ]
        scheme = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
        quantization = {
            "quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", *left],
            "config_groups": {"group_0": {"weights": scheme, "targets": ["Linear"]}},
        }  # fmt: skip
        experts = 30 * 128 * 3 * 2816 * 704
        assert parameters(spec(**gemma)).total == 25_233_141_760
        by_hand = 2 * (25_233_141_760 - experts) + experts // 16 * 9 + 30 * 128 * 3 * 8
        assert stored(quantization, **gemma).total_bytes == by_hand == 17_636_771_840

    def test_experts_are_also_called_w1_w2_and_w3(self):
        """As MiniMax and Mixtral have them: gate, down and up below block_sparse_moe."""
        mixtral = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
        inner, width = LLAMA_31_8B["intermediate_size"], LLAMA_31_8B["hidden_size"]
        listed = {
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{number}": {"quant_algo": "NVFP4"}
            for layer in range(32) for expert in range(8) for number in (1, 2)
        }  # fmt: skip
        found = stored(
            {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}, **mixtral
        )
        quantized, matrices = 32 * 8 * 2 * inner * width, 32 * 8 * 2
        plain = parameters(spec(**mixtral)).total - quantized
        assert found.total_bytes == 2 * plain + quantized // 16 * 9 + matrices * 8

    def test_its_own_file_beside_a_config_that_says_nothing(self, tmp_path):
        said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
        (tmp_path / "config.json").write_text(json.dumps(LLAMA_31_8B))
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
        assert read_hf_config(tmp_path / "config.json").stored.total_bytes == 2 * REST + LINEAR + 8 * 224

    def test_what_the_config_says_comes_first(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA_31_8B, "quantization_config": W4A16}))
        (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
        assert read_hf_config(tmp_path / "config.json").stored == stored(W4A16)


class TestRefusals:
    @pytest.mark.parametrize(
        ("quantization", "what"),
        [
            ({"quant_method": "qqq"}, "'qqq' is not one that kvscope knows"),
            ({"quant_method": "hqq"}, "quant_config must contain weight_quant_params"),
            ({"bits": 4}, "quant_method missing"),
            ({"quant_method": "awq", "bits": "four"}, "bits must be a whole number"),
            ({"quant_method": "gptq", "bits": 4}, "group_size missing"),
            ({"quant_method": "compressed-tensors"}, "config_groups"),
            ({"quant_method": "modelopt", "quant_algo": "FP7"}, "kvscope does not know quant_algo 'FP7'"),
            ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers missing"),
            ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": [1]}, "dynamic must be an object"),
            ({"quant_method": "quark"}, "global_quant_config must contain weight"),
            ([4], "must be an object"),
        ],
    )
    def test_named(self, quantization, what):
        with pytest.raises(SourceError, match="m/config.json.*" + what):
            spec(quantization)


class TestMemory:
    def test_weight_bytes_are_the_stored_ones_exactly(self):
        model = spec(W4A16)
        study = Study(model=model, device=manual_device(80 * 10**9), weight_format=stored_format(model), tps=(1, 2))
        report = memory_report(study)
        assert report.weight_bytes == model.stored.total_bytes
        assert report.parameters.total == 8_030_261_248

    def test_ranks(self):
        """Each tensor at its own bytes: norms are 2 bytes each, a mean over the model would make them 0.7."""
        model = spec(W4A16)
        study = Study(model=model, device=manual_device(80 * 10**9), weight_format=stored_format(model))
        rows = memory_report(replace(study, tps=(1, 2, 16), policy=Policy.REPLICATED)).tp
        one, two, sixteen = (row.weight_bytes_per_gpu for row in rows)
        assert one == model.stored.total_bytes
        assert two == -(-(model.stored.split_bytes + model.stored.kv_bytes) // 2) + model.stored.whole_bytes
        assert sixteen == -(-(model.stored.split_bytes + 2 * model.stored.kv_bytes) // 16) + model.stored.whole_bytes
        assert model.stored.whole_bytes == 2 * parameters(model).norms

    def test_record_refuses_what_is_no_size(self):
        with pytest.raises(ValueError, match="split_bytes"):
            StoredWeights(name="x", split_bytes=-1, kv_bytes=0, whole_bytes=0)
