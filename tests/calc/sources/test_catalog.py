"""calc.sources.catalog: every record against independent counts, every name to one record, devices as facts."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.__main__ import main
from calc.errors import SpecError, UnknownName
from calc.model.cache import cache_elements
from calc.model.count import parameters
from calc.sources import load_model
from calc.sources.catalog import (
    devices,
    find_device,
    find_model,
    manual_device,
    memory_reading,
    models,
    search_devices,
    search_models,
)
from tests.each import each

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"

# Totals of the published weight files (no buffers, a tied head once), typed in by hand: neither calc's nor the
# catalog's. Those in oracle.csv were read from there, the others are the well-known figures of the model pages.
PUBLISHED = {
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "phi-3.5-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "gemma-2b": 2_506_172_416,
    "yi-6b": 6_061_035_520,
    "yi-34b": 34_388_917_248,
    "deepseek-llm-7b": 6_910_365_696,
    "gpt2": 124_439_808,
    "starcoder2-3b": 3_030_371_328,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "deepseek-v3.1": 671_026_404_352,
    "gemma-2-27b": 27_227_128_320,
    "gpt-oss-20b": 20_914_757_184,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-next-80b-a3b": 79_674_391_296,
}

# Models of 2026, in billions as their makers and servers print them: all, active (0: dense, or not printed), and where.
# Encoders and multi-token prediction are not in the catalog's count.
PRINTED = {
    "deepseek-v4-flash": (284, 13, "vLLM's recipe and NVIDIA's lists: 284B"),
    "deepseek-v4-pro": (1_600, 49, "vLLM's announcement: 1.6T; active recalled"),
    "kimi-k2.6": (1_000, 32, "its model card: 1T, 32B active"),
    "kimi-k3": (2_800, 104, "lablup/mlxcel#1331: 2.8T, 104B active"),
    "glm-4.6": (355, 32, "zai-org/GLM-4.5 README: 355B-A32B"),
    "glm-4.7": (355, 32, "zai-org/GLM-4.5 README: 355B-A32B"),
    "glm-4.7-flash": (30, 3, "its model card, recalled: 30B-A3B"),
    "minimax-m2": (229, 10, "public listings: 229B-A10B"),
    "minimax-m3": (428, 23, "docs.nvidia.com/nemo/megatron-bridge: 428B with its encoder, about 23B active"),
    "step-3.7-flash": (198, 11, "NVIDIA's lists: 198B with its encoder, 11B active"),
    "qwen3.8-2.4t-a95b": (2_400, 95, "its model card: 2.4T, 95B active"),
    "mistral-small-4-119b": (119, 6.63, "Raschka's gallery of architectures: 119B, 6.63B active"),
    "mistral-medium-3.5-128b": (128, 0, "docs.nvidia.com/nemo/automodel: 128B with its encoder"),
    "mistral-large-3-675b": (673, 39, "its model card, recalled: 673B, 39B active, and an encoder of 2.5B"),
    "nemotron-3-super-120b-a12b": (120, 12, "its name"),
    "nemotron-3-ultra-550b-a55b-nvfp4": (550, 55, "its name"),
    "gemma-4-12b": (12, 0, "its name"),
    "glm-5.3-flash": (321, 18, "public notes: 321B-A18B with its encoder and multi-token prediction"),
    "qwen3.8-flash-next": (176, 57, "public notes: 125B-A6B and 51B of n-grams, which count as active"),
    "nemotron-3.5-lightning-30b-a3b-nvfp4": (30, 3, "its name"),
}


def test_enough_models_and_devices():
    assert len(models()) >= 157
    assert len(devices()) >= 141


@each("key", models())
def test_calc_counts_what_was_counted_independently(key):
    entry = models()[key]
    assert parameters(entry.spec).total == entry.parameters
    assert entry.spec.name == entry.id == key
    assert entry.source
    assert entry.parameters_source
    assert entry.date


@pytest.mark.parametrize(("key", "total"), PUBLISHED.items())
def test_published_totals(key, total):
    assert models()[key].parameters == total


@pytest.mark.parametrize(("key", "printed"), PRINTED.items())
def test_models_of_2026_have_the_size_that_is_printed(key, printed):
    """Within 6 % in all; active counts differ by whether embedding and head are in them: 30 %, or a billion."""
    total, active, _ = printed
    found = parameters(models()[key].spec)
    assert found.total / 1e9 == pytest.approx(total, rel=0.06)
    assert found.active / 1e9 == pytest.approx(active or total, rel=0.3, abs=1)


# Totals that the Hugging Face API lists for the files, encoder and one prediction layer (MTP) included; heads, KV heads
# and feed-forward parameters of that layer.
EXPERTS_OF_2_4T = 513 * 3 * 8192 * 2048 + 512 * 8192 + 8192
TOTALS_OF_QWEN = {
    "qwen3.5-0.8b": (873_438_784, 8, 2, 3 * 1024 * 3584),
    "qwen3.5-2b": (2_274_069_824, 8, 2, 3 * 2048 * 6144),
    "qwen3.5-4b": (4_659_865_088, 16, 4, 3 * 2560 * 9216),
    "qwen3.5-9b": (9_653_104_368, 16, 4, 3 * 4096 * 12288),
    "qwen3.5-122b-a10b": (125_086_497_008, 32, 2, 257 * 3 * 3072 * 1024 + 256 * 3072 + 3072),
    "qwen3.5-397b-a17b": (403_397_928_944, 32, 2, 513 * 3 * 4096 * 1024 + 512 * 4096 + 4096),
    "qwen3.6-27b": (27_781_427_952, 24, 4, 3 * 5120 * 17408),
    "qwen3.6-35b-a3b": (35_951_822_704, 16, 2, 257 * 3 * 2048 * 512 + 256 * 2048 + 2048),
    "qwen3.8-27b": (27_781_427_952, 24, 4, 3 * 5120 * 17408),
    "qwen3.8-2.4t-a95b": (2_446_182_725_504, 64, 4, EXPERTS_OF_2_4T),
}


@pytest.mark.parametrize(("key", "published"), TOTALS_OF_QWEN.items())
def test_totals_of_the_files_of_qwen(key, published):
    """The prediction layer: full attention with a gate, a matrix over two hidden states, five norms."""
    total, heads, kv_heads, feed_forward = published
    spec = models()[key].spec
    hidden = spec.hidden_size
    attention = hidden * 256 * (3 * heads + 2 * kv_heads) + 2 * 256
    prediction_layer = attention + feed_forward + 2 * hidden * hidden + 5 * hidden
    assert parameters(spec).total + spec.encoder_params + prediction_layer == total


def test_totals_of_the_files_of_gemma_4():
    """Files of E2B and E4B also hold K and V of layers that share them, a scalar per layer, and the same encoders.

    Their encoders differ by what maps 768 (image) and 1,536 (sound) features to the hidden size.
    """

    def encoders(key: str, total: int, n_layers: int, n_shared: int, every: int, kv_heads: int) -> int:
        spec = models()[key].spec
        widths = [512 if (i + 1) % every == 0 else 256 for i in range(n_layers - n_shared, n_layers)]
        unused = sum(2 * spec.hidden_size * kv_heads * width + width for width in widths)
        return total - parameters(spec).total - unused - n_layers

    e2b = encoders("gemma-4-e2b", 5_123_178_051, 35, 20, 5, 1)
    e4b = encoders("gemma-4-e4b", 7_996_156_490, 42, 18, 6, 2)
    assert e4b - e2b == (2560 - 1536) * (768 + 1536)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [(), ("--policy", "vllm", "--device", "h200-sxm")], ids=["equal-split", "vllm"])
def test_memory_answers_every_name_or_refuses_in_a_sentence(policy, capsys):
    for key in models():
        code = main(["memory", "--model", key, "--json", *policy])
        said = capsys.readouterr()
        if code == 0:
            assert json.loads(said.out)["parameters"]["total"] == models()[key].parameters, key
        else:
            assert policy, key
            assert (code, said.out, len(said.err.splitlines())) == (2, "", 1), key
            assert "is not counted" in said.err or "is not known" in said.err, key


def test_shapes_that_are_easily_got_wrong():
    nemo, qwen3, mistral = find_model("mistral-nemo-12b"), find_model("qwen3-0.6b"), find_model("mistral-7b-v0.1")
    assert (nemo.head_dim, nemo.hidden_size // nemo.n_heads) == (128, 160)
    assert (qwen3.head_dim, qwen3.hidden_size // qwen3.n_heads, qwen3.qk_norm) == (128, 64, True)
    assert (mistral.n_sliding_layers, mistral.window) == (32, 4096)
    assert find_model("mistral-7b-v0.3").n_sliding_layers == 0
    assert find_model("qwen2.5-7b").n_sliding_layers == 0
    assert find_model("gpt2").n_learned_positions == 1024


@pytest.mark.skipif(not DATA.is_dir(), reason="the collected configs are not beside the project")
def test_records_agree_with_the_oracle():
    with (DATA / "oracle.csv").open(newline="", encoding="utf-8") as stream:
        oracle = {row["file"].removesuffix(".json").replace("__", "/"): row for row in csv.DictReader(stream)}
    compared = 0
    for entry in models().values():
        row = oracle.get(entry.hf_id)
        if row is None or entry.id == "codellama-34b":  # that config copy has another vocabulary: see the source
            continue
        compared += 1
        spec = entry.spec
        assert entry.parameters == int(row["total_params"]), entry.id
        token = cache_elements(spec).per_token if spec.layers else 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim
        kinds = [int(row[f"kv_elements_per_token_{kind}"]) for kind in ("full_attention_layers", "sliding_layers")]
        assert token == int(row["kv_formula_elements_per_token"] or sum(kinds)), entry.id
    assert compared >= 65


# Bytes of the published checkpoints, scales included, worked out apart from the catalog. DeepSeek-V3: the case of a
# public report (its own config.json, FP8 in blocks of 128 x 128 but for norms, routers, embedding and head).
PUBLISHED_BYTES = {
    "deepseek-v3": 673_150_552_416,
    "deepseek-r1": 673_150_552_416,
    "gpt-oss-120b": 65_248_815_744,
    "gpt-oss-20b": 13_761_264_768,  # also metadata.total_size of the published index
    "kimi-k3": 1_559_937_995_968,  # lablup/mlxcel#1331: 1.56 TB on disk
    # MLPs of 124 layers in fp8 with a float32 scale per row, all else in 16 bits.
    "llama-3.1-405b-fp8": 2 * 405_853_388_800 - 124 * (3 * 16_384 * 53_248 - 4 * (2 * 53_248 + 16_384)),
}
FLOAT32 = {
    *("gemma-2-2b", "gemma-2-9b", "olmo-2-7b", "olmo-2-32b", "exaone-3-7.8b"),
    *("gpt2", "gpt2-medium", "gpt2-xl"),
}
"""Their published config.json says torch_dtype float32, or (GPT-2) their weight files have 4 bytes per element."""
QUANTIZED = {
    *PUBLISHED_BYTES, "deepseek-v3.2", "kimi-k2", "kimi-k2.5", "devstral-2-123b", "devstral-small-2-24b", "glm-5-fp8",
    "glm-5.1-fp8", "glm-5.2-fp8", "minimax-m2.5", "minimax-m2.7", "mimo-v2-flash", "qwen3-32b-fp8", "qwen3-30b-a3b-fp8",
    "qwen3-235b-a22b-fp8", "deepseek-v3.1", "deepseek-v4-flash", "deepseek-v4-pro", "kimi-k2.6", "minimax-m2",
    "mistral-small-4-119b", "mistral-medium-3.5-128b", "mistral-large-3-675b", "nemotron-3.5-lightning-30b-a3b-nvfp4",
    "nemotron-3-super-120b-a12b-fp8", "nemotron-3-super-120b-a12b-nvfp4", "nemotron-3-ultra-550b-a55b-fp8",
    "nemotron-3-ultra-550b-a55b-nvfp4", "gemma-4-31b-nvfp4", "glm-5.2-nvfp4",
}  # fmt: skip


def memory_json(capsys, *words: str) -> dict:
    """What ``kvscope memory --json`` prints."""
    assert main(["memory", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


class TestStoredWeights:
    """A name that prints ``vllm serve org/name`` counts what that repository stores."""

    def test_which_records_are_not_16_bit(self):
        assert {key for key, entry in models().items() if entry.spec.stored is not None} == QUANTIZED | FLOAT32

    def test_gpt2_as_its_file_has_it(self):
        """model.safetensors: 548,105,171 B, 8 + 14,283 of them header; twelve masks of 1,024 x 1,024."""
        held = find_model("gpt2").stored.total_bytes
        assert held + 4 * 12 * 1024 * 1024 == 548_105_171 - 8 - 14_283

    @pytest.mark.parametrize("key", sorted(FLOAT32))
    def test_float32_takes_four_bytes_per_parameter(self, key, capsys):
        found = memory_json(capsys, "--model", key)
        assert found["weight_bytes"] == 4 * models()[key].parameters
        assert any("eights as in" in note and "float32" in note for note in found["notes"])
        assert memory_json(capsys, "--model", key, "--weight-format", "bf16")["weight_bytes"] == (
            2 * models()[key].parameters
        )

    @pytest.mark.parametrize(("key", "n_bytes"), PUBLISHED_BYTES.items())
    def test_bytes_of_the_published_checkpoint(self, key, n_bytes, capsys):
        assert find_model(key).stored.total_bytes == n_bytes
        assert memory_json(capsys, "--model", key)["weight_bytes"] == n_bytes

    @pytest.mark.parametrize(("key", "layers", "experts"), [("gpt-oss-120b", 36, 128), ("gpt-oss-20b", 24, 32)])
    def test_mxfp4_by_hand(self, key, layers, experts):
        """Expert matrices: 32 elements in 17 bytes; everything else, expert biases included, in 2 bytes each."""
        quantized = layers * experts * 3 * 2880 * 2880
        plain = models()[key].parameters - quantized
        assert find_model(key).stored.total_bytes == quantized // 32 * 17 + 2 * plain

    def test_fp8_with_one_scale_per_matrix_by_hand(self):
        """Devstral: one byte per element of every linear layer and two float32 scales (weight and activation)."""
        width, inner, layers = 5120, 32768, 40
        shapes = [(32 * 128, width), (8 * 128, width), (8 * 128, width), (width, 32 * 128)]
        shapes += [(inner, width), (inner, width), (width, inner)]
        quantized = layers * sum(rows * columns for rows, columns in shapes)
        entry = models()["devstral-small-2-24b"]
        plain = entry.parameters - quantized
        assert entry.spec.stored.total_bytes == quantized + layers * len(shapes) * 8 + 2 * plain

    def test_int4_experts_by_hand(self):
        """Kimi-K2.5: routed experts in packed groups of 32 with 16-bit scales, everything else in 16 bits."""
        width, inner, layers, experts = 7168, 2048, 60, 384
        matrices = layers * experts * 3
        quantized = matrices * inner * width
        plain = models()["kimi-k2.5"].parameters - quantized
        packed = quantized // 2 + 2 * quantized // 32 + 16 * matrices  # 16: the shape of each matrix, two int64
        assert find_model("kimi-k2.5").stored.total_bytes == packed + 2 * plain

    def test_fp8_in_blocks_with_the_first_projections_left_out_by_hand(self):
        """Mistral Large 3: q_a and kv_a, router, embedding and head in 16 bits; else a byte, a scale per block."""
        width, heads, experts, inner = 7168, 128, 128, 4096
        attention = [(heads * 192, 1536), (heads * 256, 512), (width, heads * 128)]
        gated = {size: [(size, width), (size, width), (width, size)] for size in (16_384, inner)}
        shapes = 61 * attention + 3 * gated[16_384] + 58 * (experts + 1) * gated[inner]
        quantized = sum(rows * columns for rows, columns in shapes)
        scales = sum(-(-rows // 128) * -(-columns // 128) for rows, columns in shapes)
        entry = models()["mistral-large-3-675b"]
        found = entry.spec.stored.total_bytes - (quantized + 2 * (entry.parameters - quantized))
        assert found == 4 * scales

    def test_modules_named_one_by_one_are_patterns(self):
        """Nemotron 3.5 Lightning: 579,000 characters of module names say what seven patterns do."""
        scheme = models()["nemotron-3.5-lightning-30b-a3b-nvfp4"].stored["quantization_config"]["quantization"]
        assert len(scheme["quantized_layers"]) == 7
        assert find_model("nemotron-3.5-lightning-30b-a3b-nvfp4").stored.total_bytes == 18_873_122_408

    def test_a_model_that_is_published_twice_has_two_names(self):
        assert find_model("zai-org/GLM-5").stored is None
        assert find_model("zai-org/GLM-5-FP8").stored.total_bytes == 746_129_978_112

    def test_the_note_names_the_repository_and_the_option(self, capsys):
        notes = memory_json(capsys, "--model", "deepseek-v3")["notes"]
        assert (
            "Weights as in deepseek-ai/DeepSeek-V3: fp8, blocks of 128 x 128, 673,150,552,416 B; "
            "--weight-format overrides."
        ) in notes

    @pytest.mark.parametrize(("weight_format", "num", "den"), [("bf16", 2, 1), ("mxfp4", 17, 32), ("fp8", 1, 1)])
    def test_weight_format_overrides(self, weight_format, num, den, capsys):
        """Also by the name that the checkpoint's own format has: ``mxfp4`` then counts every parameter so."""
        found = memory_json(capsys, "--model", "gpt-oss-120b", "--weight-format", weight_format)
        assert found["weight_bytes"] == 116_829_156_672 * num // den

    def test_a_server_starts_with_it(self, capsys):
        """Eight H200 serve the repository as it is: 79.31 GiB of weights on each GPU."""
        found = memory_json(capsys, "--model", "deepseek-v3", "--device", "h200-sxm", "--tp", "8", "--policy", "vllm")
        assert found["fits"] is True
        assert found["engine"]["weight_bytes_per_gpu"] == pytest.approx(673_150_552_416 / 8, rel=0.02)

    @pytest.mark.parametrize(
        ("key", "device", "fewest"), [("gpt-oss-120b", "h100-sxm", 1), ("deepseek-v3", "h200-sxm", 8)]
    )
    def test_fewest_devices(self, key, device, fewest, capsys):
        """People run DeepSeek-V3 on 8 H200 at TP 8; six stages of a pipeline would hold it too."""
        assert main(["solve", "--model", key, "--device", device, "--find", "devices", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["answers"]["devices"]["devices"] == fewest

    def test_an_edited_model_keeps_nothing_of_the_checkpoint(self, capsys):
        found = memory_json(capsys, "--model", "deepseek-v3", "--vocab-size", "1024")
        assert found["weight_bytes"] == 2 * found["parameters"]["total"]
        assert found["notes"][-1] == (
            "Edited: its checkpoint's bytes no longer apply; weights are in the given format, or 16 bits."
        )
        assert not any(note.startswith("Weights as") for note in found["notes"])


class TestNames:
    @pytest.mark.parametrize("entries", [models(), devices()], ids=["models", "devices"])
    def test_every_name_leads_to_one_record(self, entries):
        owners: dict[str, str] = {}
        for entry in entries.values():
            for key in entry.keys:
                assert owners.setdefault(key, entry.id) == entry.id, key

    @each("entry", models().values())
    def test_a_model_answers_to_all_its_names(self, entry):
        for name in (entry.id, entry.hf_id, entry.hf_id.upper(), entry.name, *entry.aliases):
            assert load_model(name).name == entry.id, name

    @each("entry", devices().values())
    def test_a_device_answers_to_all_its_names(self, entry):
        for name in (entry.id, entry.name, entry.name.lower().replace(" ", "_"), *entry.aliases):
            assert find_device(name) == entry.spec, name

    @pytest.mark.parametrize(
        ("name", "found"),
        [("Meta-Llama-3-8B", "llama-3-8b"), (" llama 3 8b ", "llama-3-8b"), ("LLAMA_3_8B", "llama-3-8b")],
    )
    def test_spelling(self, name, found):
        assert find_model(name).name == found

    def test_a_start_that_fits_one_name_is_enough(self):
        assert find_device("h200").name == "NVIDIA H200 SXM"
        assert find_model("mistral-small").name == "mistral-small-24b"

    def test_a_start_that_fits_several_is_refused_with_their_names(self):
        with pytest.raises(UnknownName, match=r"device 'h100' could be h100-pcie, h100-sxm or h100-nvl"):
            find_device("h100")
        with pytest.raises(UnknownName, match=r"model 'mistral-7b' could be mistral-7b-v0.1 or mistral-7b-v0.3"):
            find_model("mistral-7b")

    def test_part_of_a_word_is_no_start(self):
        with pytest.raises(UnknownName, match=r"did you mean .*llama-3-8b"):
            find_model("llama-3-8")

    def test_names_that_contain_the_word_are_offered_first(self):
        """By their own name before an alias, and before names that are merely spelled alike."""
        with pytest.raises(UnknownName, match=r"'deepseek' could be deepseek-llm-7b, deepseek-r1, deepseek-v2"):
            find_model("deepseek")
        with pytest.raises(UnknownName, match=r"unknown model 'qwen': did you mean qwen2-7b, qwen2.5-0.5b"):
            find_model("qwen")
        with pytest.raises(UnknownName, match=r"unknown device 'gb': did you mean gb200, gb300, gb10"):
            find_device("gb")

    def test_near_names_are_offered(self):
        with pytest.raises(UnknownName, match=r"unknown model 'lama3-8b': did you mean llama-3-8b"):
            find_model("lama3-8b")
        with pytest.raises(UnknownName, match=r"did you mean rtx-4090"):
            find_device("rtx4090")

    @pytest.mark.parametrize("name", ["", "-", "%", "q" * 10_000])
    def test_nothing_near(self, name):
        with pytest.raises(UnknownName, match=r"the catalog lists \d+ models") as caught:
            find_model(name)
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("what", ["models", "devices"])
class TestNothingMatches:
    def test_a_text_says_so(self, what, capsys):
        assert main([what, "xyzzy"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"No {what[:-1]} in the catalog matches 'xyzzy': the catalog lists ")
        assert len(out.splitlines()) == 1

    def test_a_program_gets_no_rows(self, what, capsys):
        assert main([what, "xyzzy", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rows"] == []
        assert main([what, "xyzzy", "--format", "csv"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1


class TestSearch:
    def test_nothing_typed_lists_all_in_order(self):
        assert [entry.id for entry in search_models("")] == list(models())
        assert [entry.id for entry in search_devices("  ")] == list(devices())

    def test_every_word_must_occur(self):
        assert [entry.id for entry in search_models("llama 8b")] == ["llama-3-8b", "llama-3.1-8b"]
        assert [entry.id for entry in search_devices("amd 300")] == ["mi300x"]
        assert search_models("llama zebra") == []

    def test_the_name_itself_comes_first_then_starts(self):
        assert search_models("gpt2")[0].id == "gpt2"
        assert search_models("mistralai/Mistral-7B-v0.3")[0].id == "mistral-7b-v0.3"
        assert [entry.id for entry in search_devices("h100")] == ["h100-pcie", "h100-sxm", "h100-nvl"]
        assert search_models("phi-4")[0].id == "phi-4"
        # The distilled Llamas come earlier in the catalog and only have aliases that start so.
        assert search_models("deepseek")[0].id == "deepseek-llm-7b"

    @given(st.text(max_size=12))
    def test_any_text_gives_a_subset(self, text):
        found = [entry.id for entry in search_models(text)]
        assert len(set(found)) == len(found)
        assert set(found) <= set(models())


class TestDevices:
    def test_h100_uses_what_cuda_reports_and_says_so(self):
        h100 = find_device("h100-sxm")
        assert h100.memory_bytes == 85_029_615_042  # 79.19 x 2^30, rounded down
        assert h100.reading.startswith("79.19 GiB as CUDA reports it")
        assert "the label says 80 GB" in h100.reading
        assert h100.bandwidth_bytes_per_s == 3.35e12
        assert h100.ridge() == pytest.approx(295.3, abs=0.1)
        assert h100.interconnect_bytes_per_s == 450e9

    def test_known_figures(self):
        a100 = find_device("a100-80gb")
        assert (a100.bandwidth_bytes_per_s, a100.peak_flops_per_s["bf16"]) == (2.039e12, 312e12)
        assert "fp8" not in a100.peak_flops_per_s
        assert find_device("a100-sxm-80gb") == a100
        assert find_device("mi300x").reading == "192 GB on the label, read as 192 x 10^9 B = 178.81 GiB"

    @each("entry", devices().values())
    def test_facts_are_plausible(self, entry):
        spec = entry.spec
        assert 0.7 < spec.memory_bytes / entry.label_bytes < 1.08
        assert set(spec.peak_flops_per_s) <= {"bf16", "fp8", "int8", "fp4", "fp32"}
        assert 50e9 < (spec.bandwidth_bytes_per_s or 0) < 20e12
        assert 1 < (spec.ridge() or 100) < 1000
        assert spec.source
        assert entry.confidence
        assert "GB" in spec.reading

    @pytest.mark.parametrize(
        ("name", "gib", "gb_per_s", "tflops"),
        [
            ("h20-141gb", 140.4, 4800, 148), ("h20-3e", 140.4, 4800, 148), ("h20", 95.58, 4000, 148),
            ("p100-pcie-12gb", 11.18, 549, 19.1), ("p100-sxm2-16gb", 14.90, 732, 21.2), ("p100", 14.90, 732, 19.1),
            ("mi50-32gb", 29.80, 1024, 26.8), ("p40", 22.5, 347, None), ("m1-8gb", 16 / 3, 68.25, 2.6),
            ("apple m2 ultra 64gb", 48, 800, 27.2), ("m3-max-36gb", 27, 300, 10.7), ("m3-max-64gb", 48, 400, 14.3),
            ("m4-max", 96, 546, 17.2), ("m4-max-128gb", 96, 546, 17.2), ("m4-max-36gb", 27, 410, 13.8),
            ("m5-pro-24gb", 16, 307, 11.4), ("m5-ultra-256gb", 192, 1200, 45.6),
        ],
    )  # fmt: skip
    def test_devices_that_came_later(self, name, gib, gb_per_s, tflops):
        device = find_device(name)
        assert device.memory_bytes / 2**30 == pytest.approx(gib, abs=0.006)
        assert device.bandwidth_bytes_per_s == gb_per_s * 1e9
        assert device.peak_flops_per_s.get("bf16", 0) == pytest.approx((tflops or 0) * 1e12)

    def test_every_memory_size_of_a_mac(self):
        sizes: dict[str, set[int]] = {}
        for entry in devices().values():
            if entry.vendor == "Apple":
                chip = " ".join(word for word in entry.name.split("(")[0].split() if not word.endswith("GB"))
                sizes.setdefault(chip, set()).add(entry.label_bytes // 10**9)
                share = 2 / 3 if entry.label_bytes <= 32e9 else 3 / 4
                assert entry.memory_bytes == pytest.approx(entry.label_bytes / 10**9 * 2**30 * share, rel=0.001), (
                    entry.id
                )
        assert {chip.removeprefix("Apple "): sorted(found) for chip, found in sizes.items()} == {
            "M1": [8, 16], "M1 Pro": [16, 32], "M1 Max": [32, 64], "M1 Ultra": [64, 128],
            "M2": [8, 16, 24], "M2 Pro": [16, 32], "M2 Max": [32, 64, 96], "M2 Ultra": [64, 128, 192],
            "M3": [8, 16, 24], "M3 Pro": [18, 36], "M3 Max": [36, 48, 64, 96, 128], "M3 Ultra": [96, 256, 512],
            "M4": [16, 24, 32], "M4 Pro": [24, 48, 64], "M4 Max": [36, 48, 64, 128],
            "M5": [16, 24, 32], "M5 Pro": [24, 48, 64], "M5 Max": [36, 48, 64, 128], "M5 Ultra": [96, 256, 512],
        }  # fmt: skip

    def test_sources_say_what_was_recalled_and_nothing_of_how_they_were_collected(self):
        for entry in devices().values():
            assert "find_string" not in entry.source, entry.id
        assert "recalled" in devices()["h20-141gb"].confidence

    def test_dense_peaks_double_with_half_the_width(self):
        for entry in devices().values():
            bf16, fp8 = (entry.peak_flops_per_s.get(dtype) for dtype in ("bf16", "fp8"))
            if bf16 and fp8 and entry.id != "trainium3":  # documented as 671 and 2,517
                assert fp8 / bf16 == pytest.approx(2, rel=0.1) or fp8 / bf16 == 1, entry.id

    def test_peaks_cannot_be_changed_by_a_caller(self):
        with pytest.raises(TypeError):
            find_device("h100-sxm").peak_flops_per_s["bf16"] = 1.0

    @pytest.mark.parametrize(
        ("n_bytes", "name", "reading"),
        [
            (80 * 10**9, "a device with 80 GB", "80 GB read as 80 x 10^9 B = 74.51 GiB"),
            (80 * 2**30, "a device with 80 GiB", "80 GiB read as 80 x 2^30 B = 85.90 GB"),
            (85_029_615_042, "a device with 85.03 GB", "85,029,615,042 B = 85.03 GB = 79.19 GiB"),
        ],
    )
    def test_manual_device_states_the_reading(self, n_bytes, name, reading):
        device = manual_device(n_bytes)
        assert (device.name, device.memory_bytes, device.reading) == (name, n_bytes, reading)
        assert memory_reading(n_bytes) == reading
        assert device.ridge() is None

    def test_manual_device_takes_a_reading_and_refuses_nothing_at_all(self):
        assert manual_device(10**9, "as typed").reading == "as typed"
        with pytest.raises(SpecError):
            manual_device(0)


def test_a_name_that_is_found_loads_neither_devices_nor_the_other_readers():
    code = (
        "import sys; from calc.sources import load_model; load_model('llama-3-8b');"
        "from calc.sources import catalog; assert catalog.devices.cache_info().currsize == 0;"
        "print([m for m in ('difflib', 'csv', 'tomllib', 'importlib.metadata', 'calc.hf',"
        " 'numpy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
