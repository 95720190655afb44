"""Every quantization method that transformers names: exact bytes by hand, or a refusal that says what is missing.

Llama-3.1-8B by its seven matrices per layer; layouts are those of the methods' own packages (named in
calc/model/quantization), a few of them held against bytes that were published.
"""

import json

import pytest

from calc.__main__ import main
from calc.errors import SourceError, UnknownStorage
from calc.hf import spec_from_config
from calc.model.quantization.methods import FAMILIES, WHILE_LOADING
from tests.calc.model.test_quantization import LINEAR, LLAMA_31_8B, REST, ROWS, spec, stored

MATRICES = 32 * 7
COLUMNS = 32 * (6 * 4096 + 14336)
HEAD = 128256 * 4096


def total(quantization, **changes):
    return stored(quantization, **changes).total_bytes


class TestIntegers:
    GPTQ_LIKE = LINEAR // 2 + 2 * LINEAR // 128 + LINEAR // 256
    """Packed weights, 16-bit scales and packed zero points."""

    def test_auto_round_is_gptq_without_an_index(self):
        auto = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128}
        assert total(auto) == self.GPTQ_LIKE + 2 * REST
        assert total({**auto, "packing_format": "auto_round:auto_awq"}) == total(auto)
        assert total({**auto, "quant_method": "intel/auto-round"}) == total(auto)
        assert total({"quant_method": "gptq", "bits": 4, "group_size": 128}) == total(auto) + 4 * COLUMNS

    def test_auto_round_with_layers_of_their_own(self):
        auto = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "data_type": "int", "sym": True}
        query = 4096 * 4096
        extra = {
            "model.layers.0.self_attn.q_proj": {"bits": 16, "data_type": "float"},
            "model.layers.1.self_attn.q_proj": {"bits": 8},
        }
        packed = query // 2 + 2 * query // 128 + query // 256
        wider = query // 2 + query // 256  # twice the bits of weights and zero points
        assert total({**auto, "extra_config": extra}) - total(auto) == 2 * query - packed + wider

    def test_auto_round_floats(self):
        auto = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "mx_fp"}
        assert total(auto) == LINEAR // 32 * 17 + 2 * REST

    @pytest.mark.parametrize(("bits", "packed"), [(4, LINEAR // 2), (8, LINEAR), (2, LINEAR // 4)])
    def test_hqq(self, bits, packed):
        """state_dict of hqq 0.2.8: 4 B of scale and zero for each group, 68 B of records, 69 with bfloat16."""
        params = {"nbits": bits, "group_size": 64, "axis": 1, "channel_wise": True}
        quantization = {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": params},
            "skip_modules": ["lm_head"],
        }
        assert total(quantization) == packed + 4 * LINEAR // 64 + 69 * MATRICES + 2 * REST

    def test_hqq_3_bits_as_it_packs_them(self):
        """256 x 512 in groups of 64: 2,048 rows in 205 words of ten, 64 wide; measured with hqq: 60,740 B in fp16."""
        from calc.model.quantization.methods import scheme_of

        params = {"weight_quant_params": {"nbits": 3, "group_size": 64}}
        config = {"torch_dtype": "float16", "quantization_config": {"quant_method": "hqq", "quant_config": params}}
        assert scheme_of(config, "c").matrix_bytes(256, 512) == 60_740

    def test_hqq_by_the_name_of_a_layer(self):
        four = {"weight_quant_params": {"nbits": 4, "group_size": 64}}
        quantization = {"quant_method": "hqq", "quant_config": {"mlp.down_proj": four}}
        down = 32 * 4096 * 14336
        assert total(quantization) == 2 * (8_030_261_248 - down) + down // 2 + 4 * down // 64 + 69 * 32

    def test_eetq(self):
        assert total({"quant_method": "eetq", "weights": "int8"}) == LINEAR + 2 * ROWS + 2 * REST

    def test_mlx_quantizes_embedding_and_head(self):
        """The config of mlx-community has bits and group_size alone; its Llama-3-8B-4bit is 4.52 GB."""
        everything = LINEAR + 2 * HEAD
        norms = 8_030_261_248 - everything
        found = total({"group_size": 64, "bits": 4})
        assert found == everything // 2 + 4 * everything // 64 + 2 * norms
        assert round(found / 1e9, 2) == 4.52

    def test_mlx_layers_of_their_own(self):
        plain = {"group_size": 64, "bits": 4}
        eight = {**plain, "lm_head": {"group_size": 64, "bits": 8}, "model.layers.0.mlp.up_proj": False}
        up = 14336 * 4096
        assert total(eight) - total(plain) == HEAD // 2 + 2 * up - (up // 2 + 4 * up // 64)

    def test_mlx_by_its_own_key(self):
        """Older files say quantization alone."""
        plain = {"group_size": 64, "bits": 4}
        found = spec_from_config({**LLAMA_31_8B, "quantization": plain}, name="m", source="c")
        assert found.stored.total_bytes == total(plain)
        mx = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        everything = LINEAR + 2 * HEAD
        assert total(mx) == everything // 32 * 17 + 2 * (8_030_261_248 - everything)

    def test_mlx_routers(self):
        """Qwen3-30B-A3B: the router of a layer is a matrix like any other."""
        moe = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
        four = {"group_size": 64, "bits": 4}
        gates = {f"model.layers.{i}.mlp.gate": {"group_size": 64, "bits": 8} for i in range(32)}
        assert total({**four, **gates}, **moe) - total(four, **moe) == 32 * 8 * 4096 // 2

    def test_exl2_and_exl3_say_the_average(self):
        found = stored({"quant_method": "exl2", "bits": 4.0, "head_bits": 6})
        assert found.total_bytes == LINEAR // 2 + HEAD * 6 // 8 + 2 * (REST - HEAD)
        assert "on average" in found.name
        assert total({"quant_method": "exl3", "bits": 2.5, "head_bits": 6}) == (
            LINEAR * 5 // 16 + HEAD * 6 // 8 + 2 * (REST - HEAD)
        )


class TestFloats:
    def test_mxfp8(self):
        assert total({"quant_method": "mxfp8"}) == LINEAR + LINEAR // 32 + 2 * REST
        assert total({"quant_method": "modelopt", "quant_algo": "MXFP8", "ignore": ["lm_head"]}) == (
            LINEAR + LINEAR // 32 + 2 * REST
        )

    def test_fp_quant(self):
        mx = {"quant_method": "fp_quant", "forward_dtype": "mxfp4", "hadamard_group_size": 32}
        assert total(mx) == LINEAR // 32 * 17 + MATRICES * (4 + 2 * 32 * 32 * 2) + 2 * REST
        with pytest.raises(SourceError, match="quantized weights with 16-bit copies"):
            spec({**mx, "pseudoquantization": True})

    def test_fbgemm(self):
        """Meta's own FP8 files name what stays: the matrices of the first layer here."""
        kept = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
        found = total({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": kept})
        mlp, rows = 3 * 4096 * 14336, 2 * 14336 + 4096
        assert found == (LINEAR - mlp) + 4 * (ROWS - rows) + 2 * (REST + mlp)

    def test_quark_patterns_have_formats_of_their_own(self):
        mx = {"weight": {"dtype": "fp4", "group_size": 32, "qscheme": "per_group"}}
        fp8 = {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}}
        quark = {"quant_method": "quark", "global_quant_config": mx, "exclude": ["lm_head"]}
        attention = LINEAR - 32 * 3 * 4096 * 14336
        rows = 32 * (4096 + 1024 + 1024 + 4096)
        mixed = {**quark, "layer_quant_config": {"*self_attn*": fp8}}
        assert total(mixed) - total(quark) == attention + 4 * rows - attention // 32 * 17
        assert stored(mixed).name == "mxfp4 and fp8 by row"
        kept = {**quark, "layer_quant_config": {"*self_attn*": {"weight": None}}}
        assert total(kept) - total(quark) == 2 * attention - attention // 32 * 17


class TestCodebooks:
    def test_aqlm_as_published(self):
        """ISTA-DASLab/Llama-2-7b-AQLM-2Bit-1x16-hf is 2.38 GB: a 16-bit number for 8 weights, 65,536 vectors of 8."""
        llama_2 = {
            "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32000, "torch_dtype": "float16",
        }  # fmt: skip
        aqlm = {
            "quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1, "num_codebooks": 1,
            "nbits_per_codebook": 16, "linear_weights_not_to_quantize": ["lm_head.weight", "model.norm.weight"],
        }  # fmt: skip
        linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
        rows = 32 * (5 * 4096 + 2 * 11008)
        found = total(aqlm, **llama_2)
        assert found == linear // 4 + MATRICES * 65536 * 8 * 2 + 2 * rows + 2 * (6_738_415_616 - linear)
        assert round(found / 1e9, 2) == 2.38

    def test_vptq(self):
        """v8-k65536-256: 24 bits for 8 weights packed in words, two codebooks, permutation and norm of the inputs."""
        layer = {
            "vector_lens": [-1, 8], "num_centroids": [-1, 65536], "num_res_centroids": [-1, 256], "group_num": 1,
            "group_size": 4096, "outlier_size": 0, "enable_norm": True, "enable_perm": True, "is_indice_packed": True,
        }  # fmt: skip
        name = "model.layers.0.self_attn.q_proj"
        query = 4096 * 4096
        one = 4096 // 8 * (4096 * 24 // 32) * 4 + (65536 + 256) * 8 * 2 + 4096 * 2 + 4096 * 4
        found = total({"quant_method": "vptq", "config_for_layers": {name: layer}})
        assert found == 2 * (8_030_261_248 - query) + one
        with pytest.raises(SourceError, match="config_for_layers missing"):
            spec({"quant_method": "vptq"})

    def test_spqr_states_its_shapes(self):
        name = "model.layers.0.self_attn.q_proj"
        shapes = {
            f"{name}.dense_weights.shape": 1000, f"{name}.row_offsets.shape": 4097, f"{name}.col_vals.shape": 50,
            f"{name}.in_perm.shape": [2048],
        }  # fmt: skip
        found = total({"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16, "shapes": shapes})
        assert found == 2 * (8_030_261_248 - 4096 * 4096) + 8 * 1000 + 4 * (4097 + 50 + 2048)
        with pytest.raises(SourceError, match="shapes missing"):
            spec({"quant_method": "spqr", "bits": 3})

    def test_higgs(self):
        tables = 2 * 16 + 4 * 256
        found = total({"quant_method": "higgs", "bits": 4, "p": 2, "group_size": 256})
        assert found == LINEAR // 2 + 2 * LINEAR // 256 + tables * MATRICES + 2 * REST

    def test_bitnet(self):
        assert total({"quant_method": "bitnet"}) == LINEAR // 4 + 2 * MATRICES + 2 * REST
        assert total({"quant_method": "bitnet", "quantization_mode": "online"}) == 2 * 8_030_261_248


def torchao(kind, version=2, **data):
    record = {"default": {"_type": kind, "_version": version, "_data": data}}
    return {"quant_method": "torchao", "quant_type": record}


class TestTorchao:
    """The tensors that torchao 0.18 makes of a linear layer; a quantized one of 256 x 512 has 132,352 B at int8."""

    INT4 = LINEAR // 2 + 4 * LINEAR // 128 + 2 * REST

    def test_int4_by_every_form(self):
        assert total(torchao("Int4WeightOnlyConfig", group_size=128)) == self.INT4
        assert total({"quant_method": "torchao", "quant_type": "int4wo-128"}) == self.INT4
        by_name = {"quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 128}}
        assert total({"quant_method": "torchao", **by_name}) == self.INT4

    def test_int8_and_float8(self):
        assert total(torchao("Int8WeightOnlyConfig", group_size=None)) == LINEAR + 5 * ROWS + 2 * REST
        assert total(torchao("Int8WeightOnlyConfig", version=1)) == LINEAR + 10 * ROWS + 2 * REST
        assert total(torchao("Float8WeightOnlyConfig")) == LINEAR + 4 * ROWS + 2 * REST
        rows = {"granularity": [{"_type": "PerRow"}, {"_type": "PerRow"}]}
        assert total(torchao("Float8DynamicActivationFloat8WeightConfig", **rows)) == LINEAR + 4 * ROWS + 2 * REST

    def test_by_module(self):
        int8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
        int4 = {"_type": "Int4WeightOnlyConfig", "_version": 2, "_data": {"group_size": 128}}
        listed = {"_default": int4, "model.layers.0.mlp.up_proj": int8, "model.layers.1.mlp.up_proj": None}
        record = {"default": {"_type": "ModuleFqnToConfig", "_data": {"module_fqn_to_config": listed}}}
        up = 14336 * 4096
        packed = up // 2 + 4 * up // 128
        expected = self.INT4 - 2 * packed + up + 5 * 14336 + 2 * up
        assert total({"quant_method": "torchao", "quant_type": record}) == expected

    @pytest.mark.parametrize(
        ("quantization", "what"),
        [
            ({"quant_type": "fp6"}, "kvscope does not support quant_type 'fp6'"),
            ({"quant_type": {"default": {"_type": "UIntXWeightOnlyConfig", "_data": {}}}}, "UIntXWeightOnlyConfig"),
            ({}, "quant_type must be a name"),
            ({"quant_type": "int8wo", "include_input_output_embeddings": True}, "a quantized embedding"),
        ],
    )
    def test_refused(self, quantization, what):
        with pytest.raises(SourceError, match=what):
            spec({"quant_method": "torchao", **quantization})


class TestWithoutAMethod:
    @pytest.mark.parametrize(
        ("quantization", "same_as"),
        [
            ({"bits": 4, "group_size": 128, "desc_act": True}, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
            ({"w_bit": 4, "q_group_size": 128}, {"quant_method": "awq", "bits": 4, "group_size": 128}),
            ({"weight_block_size": [128, 128]}, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
            ({"load_in_4bit": True}, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ],
    )
    def test_keys_that_one_method_alone_writes(self, quantization, same_as):
        assert total(quantization) == total(same_as)

    def test_inside_the_text_model(self):
        """Where a multimodal config says it of its text model alone."""
        awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
        text = {**LLAMA_31_8B, "quantization_config": awq}
        found = spec_from_config(
            {"model_type": "llava", "text_config": text, "vision_config": {}}, name="m", source="c"
        )
        assert found.stored.total_bytes == total(awq)


@pytest.mark.parametrize("method", WHILE_LOADING)
def test_methods_whose_bytes_no_config_says_are_refused(method):
    with pytest.raises(UnknownStorage, match=f"the bytes of {method} are not known from a config"):
        spec({"quant_method": method})


def test_every_method_of_transformers_is_counted_or_refused():
    """QuantizationMethod of transformers 5.23."""
    methods = (
        "bitsandbytes gptq awq aqlm vptq quanto eetq higgs hqq compressed-tensors fbgemm_fp8 torchao gguf bitnet spqr "
        "fp8 quark fp_quant auto-round mxfp4 nvfp4 mxfp8 metal fouroversix sinq gemma"
    )
    assert {name.replace("_", "-") for name in methods.split()} <= {*FAMILIES, *WHILE_LOADING}


class TestWeightFormatHelps:
    """A quantization that is not counted is no dead end: --weight-format answers, and a note says what was assumed."""

    @pytest.fixture
    def config(self, tmp_path):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**LLAMA_31_8B, "quantization_config": {"quant_method": "qqq"}}))
        return str(file)

    def test_refused_without_it(self, config, capsys):
        assert main(["memory", "--model", config]) == 2
        assert capsys.readouterr().err.rstrip().endswith("give --weight-format")

    @pytest.mark.parametrize("words", [["memory"], ["solve", "--find", "batch"], ["intensity"]])
    def test_answered_with_it(self, config, words, capsys):
        assert main([*words, "--model", config, "--weight-format", "int4", "--json"]) == 0
        assert capsys.readouterr().err == ""

    def test_the_note_says_what_was_assumed(self, config, capsys):
        assert main(["memory", "--model", config, "--weight-format", "awq", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["weight_bytes"] == total({"quant_method": "awq", "bits": 4, "group_size": 128})
        assert any("The checkpoint's storage is not supported" in note and "'qqq'" in note for note in found["notes"])

    def test_in_a_sweep(self, config, capsys):
        assert main(["sweep", "--models", config, "--weight-formats", "bf16,Q4_K_M"]) == 0
        assert main(["sweep", "--models", config]) == 2
