"""Weight formats by the names people use, and K and V in formats of their own."""

import json
from fractions import Fraction

import pytest

from calc.__main__ import main
from calc.errors import QuantityError
from calc.model.cache_pair import cache_as, pair_format
from calc.model.named import NamedFormat, named_format, weight_names, weights_as
from calc.model.storage import FORMATS
from calc.model.typed_formats import parse_cache, parse_weights
from calc.sources.catalog import find_model, models

LLAMA = find_model("llama-3-8b")
LINEAR = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
REST = 8_030_261_248 - LINEAR


def memory(capsys, *words):
    assert main(["memory", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


class TestNames:
    @pytest.mark.parametrize("text", ["Q4_K_M", "q4_k_m", "Q4-K-M", "q4km", " q4_K_m ", "gguf-q4_k_m"])
    def test_case_and_separators_do_not_matter(self, text):
        assert parse_weights(text) == NamedFormat("Q4_K_M")

    def test_names_of_one_size_keep_their_meaning(self):
        """``q8_0`` is 34 bytes for 32 weights, as before; the file of that name has another name here."""
        assert parse_weights("Q8_0") is FORMATS["q8_0"]
        assert parse_weights("gguf-q8_0") == NamedFormat("Q8_0")
        assert weights_as(NamedFormat("Q8_0"), LLAMA).name == "gguf-Q8_0"

    @pytest.mark.parametrize(("text", "name"), [("f16", "fp16"), ("F32", "fp32"), ("fp8-e4m3", "fp8_e4m3")])
    def test_other_names_of_formats(self, text, name):
        assert parse_weights(text) is parse_cache(text) is FORMATS[name]

    def test_auto_is_as_if_nothing_was_said(self, capsys):
        assert parse_weights("auto") is parse_cache("AUTO") is None
        for key in ("llama-3-8b", "gpt-oss-20b"):
            assert memory(capsys, "--model", key, "--weight-format", "auto") == memory(capsys, "--model", key)

    @pytest.mark.parametrize(
        ("text", "near"), [("q4_k_n", "Q4_K_M"), ("gtpq", "gptq"), ("bf61", "bf16"), ("npf4", "nf4")]
    )
    def test_near_names_are_offered(self, text, near):
        with pytest.raises(QuantityError, match=rf"unknown storage format '{text}'; did you mean .*{near}"):
            parse_weights(text)

    def test_a_name_that_is_near_nothing_lists_them_all(self):
        with pytest.raises(QuantityError, match=r"known: fp32, bf16, .*awq.*Q4_K_M"):
            parse_weights("zzzzzz")

    def test_dynamic_mixes_follow_no_rule(self):
        with pytest.raises(QuantityError, match=r"pass the \.gguf file"):
            parse_weights("UD-Q4_K_XL")

    @pytest.mark.parametrize("name", weight_names())
    def test_every_listed_name_is_read(self, name, capsys):
        assert memory(capsys, "--model", "gpt2", "--weight-format", name)["weight_bytes"] > 0


class TestCheckpoints:
    """Llama-3-8B by hand: 224 linear matrices quantized, embedding, head and norms in 16 bits."""

    def test_awq(self):
        assert weights_as(named_format("awq"), LLAMA).stored.total_bytes == (
            LINEAR // 2 + 2 * LINEAR // 128 + LINEAR // 256 + 2 * REST
        )

    def test_gptq_has_an_index_of_the_inputs(self):
        order = 4 * 32 * (6 * 4096 + 14336)
        awq, gptq = (weights_as(named_format(name), LLAMA).stored.total_bytes for name in ("awq", "gptq"))
        assert gptq == awq + order

    def test_nf4_with_double_quantization(self):
        blocks = LINEAR // 64  # every matrix is whole blocks of 64, and of 256 of those
        tables = 32 * 7 * (64 + 1024 + 4)
        assert weights_as(named_format("nf4"), LLAMA).stored.total_bytes == (
            LINEAR // 2 + blocks + 4 * blocks // 256 + tables + 2 * REST
        )

    def test_llm_int8(self):
        rows = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
        assert weights_as(named_format("llm.int8"), LLAMA).stored.total_bytes == LINEAR + 4 * rows + 2 * REST

    def test_of_llm_compressor_and_mlx(self):
        rows = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
        found = {
            name: weights_as(named_format(name), LLAMA).stored.total_bytes
            for name in ("w4a16", "W8A8", "FP8-dynamic", "fp8_block", "mlx-4bit")
        }
        everything = 8_030_261_248 - 65 * 4096
        assert found == {
            "w4a16": LINEAR // 2 + 2 * LINEAR // 128 + 16 * 224 + 2 * REST,
            "W8A8": LINEAR + 2 * rows + 2 * REST,
            "FP8-dynamic": LINEAR + 2 * rows + 2 * REST,
            "fp8_block": LINEAR + 4 * LINEAR // 128**2 + 2 * REST,
            "mlx-4bit": everything // 2 + 4 * everything // 64 + 2 * 65 * 4096,
        }

    def test_eight_and_three_bits(self):
        order, rows = 4 * 32 * (6 * 4096 + 14336), 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)
        found = {
            name: weights_as(named_format(name), LLAMA).stored.total_bytes - 2 * REST
            for name in ("gptq-8bit", "w8a16", "autoround", "fp8-static", "eetq", "exl3-4.0bpw", "EXL2_6")
        }
        assert found == {
            "gptq-8bit": LINEAR + 2 * LINEAR // 128 + LINEAR // 128 + order,
            "w8a16": LINEAR + 2 * rows + 16 * 224,
            "autoround": LINEAR // 2 + 2 * LINEAR // 128 + LINEAR // 256,
            "fp8-static": LINEAR + 8 * 224,
            "eetq": LINEAR + 2 * rows,
            "exl3-4.0bpw": LINEAR // 2 + 128256 * 4096 * 6 // 8 - 2 * 128256 * 4096,
            "EXL2_6": LINEAR * 6 // 8 + 128256 * 4096 * 6 // 8 - 2 * 128256 * 4096,
        }

    @pytest.mark.parametrize("name", ["exl2", "EXL3"])
    def test_an_exllama_file_needs_its_bits(self, name):
        with pytest.raises(QuantityError, match=r"add the bits per weight: exl[23]-4\.0bpw"):
            parse_weights(name)

    def test_the_note_says_what_stays(self, capsys):
        notes = memory(capsys, "--weight-format", "awq")["notes"]
        assert any("embedding, head, norms and routers stay in 16 bits" in note for note in notes)
        assert any("bytes per parameter on average" in note for note in notes)

    def test_a_server_is_told_that_another_file_is_served(self, capsys):
        found = memory(capsys, "--weight-format", "awq", "--policy", "vllm", "--tp", "1")
        assert any("a file or repository with the weights as awq" in note for note in found["notes"])
        found = memory(capsys, "--weight-format", "Q4_K_M", "--policy", "llamacpp", "--tp", "1")
        assert "--model Meta-Llama-3-8B-Q4_K_M.gguf" in found["launch"]

    def test_a_catalog_model_that_is_quantized_already(self):
        """The name given counts, not the repository's own format."""
        kept = find_model("gpt-oss-20b").stored.total_bytes
        assert weights_as(named_format("Q4_K_M"), find_model("gpt-oss-20b")).stored.total_bytes != kept


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q2_K", "IQ3_XS", "gguf-bf16"])
def test_every_catalog_model_has_every_mix(mix):
    """Elements are those of the model, so the bytes lie between the smallest and the largest type."""
    for entry in models().values():
        found = weights_as(named_format(mix), entry.spec)
        assert 0.25 < float(found.bytes_per_element) < 2.2, entry.id


class TestPairs:
    """Llama-3-8B: 32,768 elements of K and as many of V per token."""

    def test_bytes(self, capsys):
        found = memory(capsys, "--kv-format", "q8_0/q4_0")
        assert found["kv_bytes_per_token"] == 32_768 * 34 // 32 + 32_768 * 18 // 32 == 53_248
        assert found["kv_bytes_per_request"] == 8192 * 53_248

    def test_the_steps_say_where_the_mean_comes_from(self, capsys):
        steps = {step["name"]: step for step in memory(capsys, "--kv-format", "bf16/fp8")["steps"]}
        mean = steps["Bytes per cache element"]
        assert mean["value"] == 1.5
        assert mean["substituted"] == "(32,768 · 2 + 32,768 · 1) / (32,768 + 32,768)"

    def test_two_of_one_kind_are_one(self):
        assert parse_cache("fp8/FP8") is FORMATS["fp8"]

    def test_k_wider_than_v(self):
        """MiMo-V2-Flash: keys of 192, values of 128 in every layer."""
        found = cache_as(pair_format("bf16/fp8"), find_model("mimo-v2-flash"))
        assert found.bytes_per_element == Fraction(192 * 2 + 128, 192 + 128)

    def test_a_latent_takes_the_format_of_k(self):
        assert cache_as(pair_format("fp8/bf16"), find_model("deepseek-v3")).bytes_per_element == 1

    @pytest.mark.parametrize("text", ["q8_0/", "/q4_0", "a/b/c", "bf16/nonsense"])
    def test_refused(self, text):
        with pytest.raises(QuantityError):
            parse_cache(text)

    def test_a_server_that_has_one_format_says_so(self, capsys):
        assert main(["memory", "--kv-format", "bf16/fp8", "--policy", "vllm"]) == 2
        assert "vllm caches K and V in one format" in capsys.readouterr().err

    def test_llama_cpp_starts_with_both(self, capsys):
        found = memory(capsys, "--kv-format", "q8_0/q4_0", "--policy", "llamacpp", "--tp", "1")
        assert "--cache-type-k q8_0 --cache-type-v q4_0" in found["launch"]

    def test_in_every_command(self, capsys):
        assert main(["sweep", "--kv-formats", "bf16,q8_0/q4_0", "--weight-formats", "Q4_K_M,awq"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert len(rows) == 5
        assert "Q4_K_M,q8_0/q4_0,4912898048,436207616" in rows[2]
        assert main(["solve", "--kv-format", "q8_0/q4_0", "--find", "batch", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kv_format"] == "q8_0/q4_0"
        assert main(["intensity", "--kv-format", "bf16/fp8", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["element_bytes"] == 1.5
