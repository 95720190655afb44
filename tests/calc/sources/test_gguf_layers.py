"""Layers of GGUF headers: what each architecture of llama.cpp keeps, windows, odd layers, contradictions."""

import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from calc.commands.intensity import run_intensity
from calc.commands.memory import memory_document, run_memory
from calc.commands.tables import component_table
from calc.errors import CacheUnknown, SpecError
from calc.fit.memory import memory_report
from calc.model.cache import cache_elements, index_elements, state_elements
from calc.model.count import parameters
from calc.model.stored import stored_document, stored_from_document
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Study
from calc.sources import load_model
from calc.sources.gguf.architectures import BY_LAYERS, OTHERWISE
from tests.calc import gguf_headers as g
from tests.calc.gguf_headers import MLA, Published, heads, moe, refusal
from tests.examples import examples

H, INNER, VOCAB = 64, 96, 128
PLAIN = g.attention(H, 64, 32) | g.mlp(H, INNER) | g.norms(H)
FOUR = heads(4, 2)
DEVICE = DeviceSpec(name="d", memory_bytes=10**9, reading="1 GB")


def small(tmp_path, arch, layers, meta, **more):
    """The model of a small header; elements of a plain layer: 2 KV heads of 16, K and V."""
    return load_model(str(Published(arch, 0, layers, H, VOCAB, meta, **more).write(tmp_path / "m.gguf")))


class TestEveryArchitecture:
    @pytest.mark.parametrize("arch", sorted(BY_LAYERS))
    def test_plain_layers_are_answered(self, tmp_path, arch):
        """The tensors say what each layer has; no list of architectures is needed for that."""
        meta = FOUR | {"attention.sliding_window_pattern": [True, True, True, False]}
        model = small(tmp_path, arch, [PLAIN] * 4, meta)
        assert parameters(model).total == 2 * VOCAB * H + H + 4 * (2 * 64 * H + 2 * 32 * H + 3 * H * INNER + 2 * H)
        assert cache_elements(model).per_token == 4 * 64 or arch == "minimax-01"

    def test_the_list_is_that_of_the_gguf_package(self):
        """Every name of gguf-py is read by its layers or has its reason."""
        gguf = pytest.importorskip("gguf")
        names = set(gguf.MODEL_ARCH_NAMES.values()) - {"mmproj"}
        others = {"clip", "wavtokenizer-dec"}
        assert names - BY_LAYERS - set(OTHERWISE) <= others

    @pytest.mark.parametrize("arch", [*sorted(OTHERWISE), "hyena"])
    def test_an_unknown_cache_is_said_beside_the_weights(self, tmp_path, arch):
        with pytest.raises(CacheUnknown, match="its cache is not known") as caught:
            small(tmp_path, arch, [PLAIN] * 4, FOUR)
        total = 2 * VOCAB * H + H + 4 * (2 * 64 * H + 2 * 32 * H + 3 * H * INNER + 2 * H)
        assert caught.value.parameters == total
        assert caught.value.weight_bytes == 2 * total + 2 * 9 * H  # norms take four bytes
        assert f"{total:,} parameters" in str(caught.value)


class TestWeightsAlone:
    """`memory` answers with the weights, exit code 0; every other command refuses with the sentence."""

    def path(self, tmp_path):
        return str(Published("hyena", 0, [PLAIN] * 4, H, VOCAB, FOUR).write(tmp_path / "m.gguf"))

    def test_as_text(self, tmp_path, capsys):
        assert run_memory(["--model", self.path(tmp_path)], "kvscope memory") == 0
        out = capsys.readouterr().out
        assert out.startswith("m: weights only")
        assert "architecture 'hyena' is not one that kvscope reads from GGUF" in out
        assert "80.00 GB more than the weights" in out

    @pytest.mark.parametrize(("memory", "fits"), [("1GB", None), ("1kB", False)])
    def test_as_json(self, tmp_path, capsys, memory, fits):
        assert run_memory(["--model", self.path(tmp_path), "--json", "--gpu-memory", memory], "kvscope memory") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["parameters"]["total"] == 2 * VOCAB * H + H + 4 * (96 * 2 * H + 3 * H * INNER + 2 * H)
        assert sum(document["weight_bytes_by_component"].values()) == document["weight_bytes"]
        assert (document["kv_bytes_per_token"], document["max_batch"], document["fits"]) == (None, None, fits)

    def test_other_commands_refuse(self, tmp_path):
        with pytest.raises(CacheUnknown, match="its cache is not known"):
            run_intensity(["--model", self.path(tmp_path)], "kvscope intensity")


class TestOddLayers:
    def test_rwkv7_keeps_a_state_alone(self, tmp_path):
        mixing = {f"time_mix_{name}.weight": (H, H) for name in ("key", "value", "receptance", "output")}
        channel = {"channel_mix_key.weight": (H, 4 * H), "channel_mix_value.weight": (4 * H, H)}
        layer = mixing | channel | {"time_mix_w1.weight": (H, 8), "attn_norm.weight": (H,), "attn_norm_2.weight": (H,)}
        model = small(tmp_path, "rwkv7", [layer] * 2, {"wkv.head_size": 16, "attention.head_count": 0})
        assert (cache_elements(model).per_token, state_elements(model)) == (0, 2 * (H * 16 + 2 * H))
        assert parameters(model).mlp == 2 * 8 * H * H

    def test_lfm2_has_short_convolutions_and_a_norm_of_another_name(self, tmp_path):
        layers = [g.short_conv(H, 3) | g.mlp(H, INNER) | g.norms(H), PLAIN]
        outer = {"output_norm.weight": (), "token_embd_norm.weight": (H,)}
        model = small(tmp_path, "lfm2moe", layers, heads(4, [0, 2]), outer=outer)
        assert (cache_elements(model).full, state_elements(model), model.final_norm_size) == (64, 3 * H, H)
        assert parameters(model).other == 0

    def test_deci_layers_without_attention_keep_nothing(self, tmp_path):
        linear = {"attn_output.weight": (H, H), **g.mlp(H, INNER), **g.norms(H)}
        layers = [PLAIN, linear, g.mlp(H, INNER) | {"ffn_norm.weight": (H,)}]
        model = small(tmp_path, "deci", layers, heads([4, 4, 0], [2, 0, 0]))
        assert (cache_elements(model).full, parameters(model).other) == (64, H * H)

    def test_minimax_01_has_lightning_attention_but_for_each_eighth(self, tmp_path):
        lightning = {"attn_qkv.weight": (H, 3 * H), "attn_gate.weight": (H, H), "attn_output.weight": (H, H)}
        layers = [lightning | g.experts(H, INNER, 4) | g.norms(H, "attn_norm_2")] * 7
        layers += [g.attention(H, 64, 32) | g.experts(H, INNER, 4) | g.norms(H)]
        model = small(tmp_path, "minimax-01", layers, FOUR | moe(4, 2) | {"attention.key_length": 16})
        assert (cache_elements(model).full, state_elements(model)) == (64, 7 * 4 * 16 * 16)

    def test_minimax_m3_keeps_keys_of_an_indexer(self, tmp_path):
        index = {"indexer.q_proj.weight": (H, 2 * 8), "indexer.k_proj.weight": (H, 8), "indexer.k_norm.weight": (8,)}
        model = small(tmp_path, "minimax-m3", [PLAIN, PLAIN | index], FOUR)
        assert (cache_elements(model).full, index_elements(model)) == (128, 8)

    def test_kimi_k3_experts_read_a_smaller_input(self, tmp_path):
        sparse = g.experts(H, INNER, 4, width=32) | g.norms(H)
        sparse |= {"ffn_routed_down.weight": (H, 32), "ffn_routed_up.weight": (32, H), "ffn_routed_norm.weight": (32,)}
        delta = g.kimi_delta(H, 4, 16, 4)
        del delta["ssm_g_a.weight"], delta["ssm_g_b.weight"]
        latent = g.latent(H, 4, 32, 16, 8, 16)
        layers = [delta | {"ssm_g.weight": (H, H)} | sparse, latent | {"attn_gate.weight": (H, H)} | sparse]
        model = small(tmp_path, "kimi-k3", layers, heads(4, [0, 4]) | moe(4, 2) | MLA)
        assert (cache_elements(model).latent, state_elements(model)) == (40, 4 * (16 * 16 + 3 * 16 * 4))
        assert parameters(model).experts == 2 * 4 * 3 * 32 * INNER
        assert parameters(model).idle == 2 * 2 * 3 * 32 * INNER

    def test_plamo2_has_a_state_by_heads(self, tmp_path):
        state = {
            "ssm_in.weight": (H, 2 * H), "ssm_conv1d.weight": (4, H), "ssm_x.weight": (H, 64 + 2 * 8),
            "ssm_dt.weight": (64, 4), "ssm_a": (4,), "ssm_d": (4,), "ssm_out.weight": (H, H),
        }  # fmt: skip
        model = small(tmp_path, "plamo2", [state | g.norms(H), PLAIN], heads(4, [0, 2]) | {"ssm.state_size": 8})
        assert (cache_elements(model).full, state_elements(model)) == (64, H * (8 + 4))

    def test_layers_gone_through_again_have_caches_of_their_own(self, tmp_path):
        once = small(tmp_path, "nanbeige", [PLAIN] * 2, FOUR)
        twice = small(tmp_path, "nanbeige", [PLAIN] * 2, FOUR | {"num_loops": 2})
        assert parameters(twice).total == parameters(once).total
        assert cache_elements(twice).full == 2 * cache_elements(once).full == 256

    def test_codeshell_has_its_embedding_as_its_head(self, tmp_path):
        model = small(tmp_path, "codeshell", [PLAIN], FOUR, outer={"token_embd.weight": ()})
        assert (model.tied, parameters(model).embedding, parameters(model).head) == (True, VOCAB * H, 0)

    def test_the_first_mixtrals_have_a_tensor_for_each_expert(self, tmp_path):
        old = {f"ffn_{name}.{e}.weight": (H, INNER) for name in ("gate", "up") for e in range(4)}
        old |= {f"ffn_down.{e}.weight": (INNER, H) for e in range(4)} | {"ffn_gate_inp.weight": (H, 4)}
        layer = g.attention(H, 64, 32) | old | g.norms(H)
        counts = parameters(small(tmp_path, "llama", [layer], FOUR | moe(4, 2)))
        assert (counts.experts, counts.other, counts.idle) == (4 * 3 * H * INNER, 4 * H, 2 * 3 * H * INNER)

    def test_multi_token_prediction_is_left_out_and_said(self, tmp_path):
        extra = PLAIN | {"nextn.eh_proj.weight": (2 * H, H)}
        model = small(tmp_path, "glm4moe", [PLAIN, extra], FOUR | {"nextn_predict_layers": 1})
        assert model.n_layers == 1
        assert parameters(model).total == parameters(small(tmp_path, "glm4moe", [PLAIN], FOUR)).total
        assert any("multi-token-prediction layers" in note for note in model.notes)

    def test_an_adapter_is_no_model(self, tmp_path):
        tensors = [("blk.0.attn_q.weight.lora_a", (8, 8), g.F32)]
        path = g.write_header(tmp_path / "m.gguf", "llama", {"general.type": "adapter"}, tensors)
        with pytest.raises(CacheUnknown, match=r"general\.type is 'adapter', not a model"):
            load_model(str(path))

    def test_an_encoder_in_the_same_file_is_said(self, tmp_path):
        model = small(tmp_path, "gemma3", [PLAIN], FOUR, outer={"v.patch_embd.weight": (H, 9)})
        assert parameters(model).other == 9 * H
        assert any("also has an image or audio encoder: 576 parameters" in note for note in model.notes)

    def test_an_encoder_beside_the_model_is_said(self, tmp_path):
        alone = small(tmp_path, "gemma3", [PLAIN], FOUR)
        g.write_header(tmp_path / "mmproj-F16.gguf", "clip", {}, [("v.patch_embd.weight", (H, 9), g.F16)])
        model = load_model(str(tmp_path))
        assert (model.layers, model.stored) == (alone.layers, alone.stored)
        assert model.notes[-1] == "mmproj-F16.gguf beside it, 576 parameters in 1,152 B, is not counted"

    def test_scales_of_quantized_matrices_are_no_parameters(self, tmp_path):
        scaled = PLAIN | {"attn_q.scale": (1,), "ffn_up.input_scale": (1,)}
        tensors = [
            (name, shape, 40 if name.endswith(("attn_q.weight", "ffn_up.weight")) else kind)
            for name, shape, kind in g.model_tensors([scaled], H, VOCAB)
        ]
        path = g.write_header(tmp_path / "m.gguf", "llama", FOUR | {"embedding_length": H}, tensors)
        assert parameters(load_model(str(path))).total == parameters(small(tmp_path, "llama", [PLAIN], FOUR)).total


class TestWindows:
    """Which layers slide: of a period the last is full, or the first; a list of flags goes before the period."""

    @pytest.mark.parametrize(
        ("arch", "meta", "slides"),
        [
            ("gemma2", {}, "10101010"),
            ("gemma3", {"attention.sliding_window": 4096}, "11111011"),
            ("gemma3", {}, "00000000"),
            ("gemma3", {"attention.sliding_window": 4096, "attention.sliding_window_pattern": 2}, "10101010"),
            ("cohere2", {"attention.sliding_window": 4096}, "11101110"),
            ("cohere2moe", {"attention.sliding_window": 4096}, "01110111"),
            ("gpt-oss", {"attention.sliding_window": 4096}, "10101010"),
            ("olmo2", {"attention.sliding_window": 4096}, "11101110"),
            ("olmo2", {}, "00000000"),
            ("phi3", {"attention.sliding_window": 4096}, "00000000"),
            ("llama", {"attention.sliding_window": 4096}, "00000000"),
            ("qwen2", {"attention.sliding_window": 4096}, "00000000"),
            ("exaone4", {"attention.sliding_window": 4096}, "00000000"),
            ("smallthinker", {"attention.sliding_window": 4096}, "01110111"),
            ("plamo3", {"attention.sliding_window": 4096}, "11111110"),
            (
                "step35",
                {"attention.sliding_window": 4096, "attention.sliding_window_pattern": [False, True] * 4},
                "01010101",
            ),
        ],
    )
    def test_pattern(self, tmp_path, arch, meta, slides):
        model = small(tmp_path, arch, [PLAIN] * 8, FOUR | meta)
        windows = [layer.mixers[0].window for layer in model.layers]
        assert windows == [4096 if slide == "1" else None for slide in slides]
        unused = any("is not used" in note for note in model.notes)
        assert unused is ("attention.sliding_window" in meta and "1" not in slides)

    def test_llama4_chunks_whatever_the_file_says(self, tmp_path):
        model = small(tmp_path, "llama4", [PLAIN] * 4, FOUR)
        assert [(layer.mixers[0].window, layer.mixers[0].chunked) for layer in model.layers] == [
            (8192, True), (8192, True), (8192, True), (None, False),
        ]  # fmt: skip
        whole = small(tmp_path, "llama4", [PLAIN] * 4, FOUR | {"attention.sliding_window": 0})
        assert whole.n_sliding_layers == 0

    def test_a_list_that_must_be_there_is_named(self, tmp_path):
        with pytest.raises(CacheUnknown, match=r"gemma4\.attention\.sliding_window_pattern missing"):
            small(tmp_path, "gemma4", [PLAIN], FOUR | {"attention.sliding_window": 512})


HYBRID = [
    g.gated_delta(H, 2, 4, 16, 4) | g.experts(H, INNER, 4, shared=8) | g.norms(H),
    g.kimi_delta(H, 4, 16, 4) | g.mlp(H, INNER) | g.norms(H),
    g.latent(H, 4, 32, 16, 8, 16, 24) | g.indexer(H, 2, 8, 24) | g.mlp(H, INNER) | g.norms(H),
    g.mamba2(H, 128, 4, 2, 16, 4) | g.fused(H, 64, 32) | g.mlp(H, INNER, gated=False) | g.norms(H),
    g.mamba(H, 128, 16, 4, 8) | g.norms(H),
    g.short_conv(H, 3) | g.norms(H),
    g.compressed(H, 4, 16, 24, 2, 8, 4) | g.norms(H),
]


@given(at=st.integers(0, 20_000), change=st.binary(min_size=1, max_size=8))
@examples(400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_headers_are_read_or_refused_in_one_sentence(tmp_path, at, change):
    """Layers of every kind, every number of which may be any other."""
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        meta = heads([4, 4, 4, 4, 0, 0, 4], [0, 0, 1, 2, 0, 0, 1]) | moe(4, 2) | MLA | g.SSM_KEYS
        Published("qwen3moe", 0, HYBRID, H, VOCAB, meta).write(whole)
        assert parameters(load_model(str(whole))).total > 0
    data = bytearray(whole.read_bytes())
    at %= len(data)
    data[at : at + len(change)] = change
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(data))
    message = refusal(lambda: load_model(str(path)))
    assert message is None or message.startswith(str(path))
    assert "\n" not in (message or "")


class TestContradictions:
    @pytest.mark.parametrize(
        ("layers", "meta", "says"),
        [
            ([PLAIN], {}, r"llama\.attention\.head_count missing"),
            ([PLAIN], heads(4, 3), r"blk\.0\.attn_k\.weight has 32 rows, the metadata says 3 heads"),
            ([PLAIN], heads(4, 2, key=32), "the metadata says 2 heads of 32"),
            ([PLAIN] * 2, heads([4], 2), "has 1 entries: none for layer 1"),
            ([PLAIN] * 2, FOUR | {"block_count": 3}, "block_count says 3 layers, the file has 2"),
            ([g.norms(H) | g.attention(H, 64, 32) | g.experts(H, 8, 4)], FOUR, "expert_used_count missing"),
            ([g.norms(H) | g.mlp(H, INNER)], FOUR, "no layer of m keeps a cache"),
            ([PLAIN, {}], FOUR, "block_count says 2 layers, the file has 1"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, layers, meta, says):
        with pytest.raises(CacheUnknown, match=says):
            small(tmp_path, "llama", layers, meta)


TYPES = {"token_embd": 8, "attn_v": 8, "ffn_down": g.Q6_K}


class TestStored:
    """SmolLM2-135M as llama.cpp makes a Q4_K_M of it: rows of 576 are no whole blocks of 256, so most tensors fall back
    to Q5_0 (22 B for 32) and Q8_0 (34 B), and ffn_down alone is Q6_K (210 B for 256)."""

    def model(self, tmp_path):
        layer = g.attention(576, 576, 192) | g.mlp(576, 1536) | g.norms(576)
        tensors = [
            (name, shape, kind if len(shape) == 1 else TYPES.get(name.split(".")[-2], 6))
            for name, shape, kind in g.model_tensors([layer] * 30, 576, 49152, tied=True)
        ]
        return load_model(str(g.write_header(tmp_path / "m.gguf", "llama", heads(9, 3), tensors)))

    def test_a_component_has_the_bytes_of_its_own_tensors(self, tmp_path):
        report = memory_report(
            Study(model=(model := self.model(tmp_path)), device=DEVICE, weight_format=stored_format(model))
        )
        attention = 30 * ((2 * 576 * 576 + 576 * 192) // 32 * 22 + 576 * 192 // 32 * 34)
        mlp = 30 * (2 * 576 * 1536 // 32 * 22 + 576 * 1536 // 256 * 210)
        assert report.component_bytes == {
            "embedding": 30_081_024, "attention": attention, "mlp": mlp, "experts": 0, "norms": 61 * 576 * 4,
            "head": 0, "other": 0,
        }  # fmt: skip
        assert sum(report.component_bytes.values()) == report.weight_bytes == model.stored.total_bytes
        assert "30.08 MB" in component_table(report).rows[0]
        assert memory_document(report)["weight_bytes_by_component"]["embedding"] == 30_081_024
        assert any(note.startswith("The stored weights take 0.") for note in memory_document(report)["notes"])

    def test_another_format_counts_every_parameter_alike(self, tmp_path):
        report = memory_report(Study(model=self.model(tmp_path), device=DEVICE))
        assert report.component_bytes["embedding"] == 2 * 49152 * 576

    def test_layers_and_their_experts(self, tmp_path):
        layers = [PLAIN, g.attention(H, 64, 32) | g.experts(H, INNER, 4, shared=8) | g.norms(H)]
        stored = small(tmp_path, "qwen3moe", layers, FOUR | moe(4, 2)).stored
        attention = 2 * (2 * 64 * H + 2 * 32 * H) + 4 * 2 * H
        experts = 2 * 4 * 3 * H * INNER
        assert stored.layers == (
            (attention + 2 * 3 * H * INNER, 0),
            (attention + experts + 2 * (4 * H + 3 * H * 8), experts),
        )

    def test_the_record_is_kept_as_a_document(self, tmp_path):
        stored = self.model(tmp_path).stored
        assert stored_from_document(stored_document(stored)) == stored
        for wrong in ({"components": {"head": -1}}, {"layers": [[1, 2, 3]]}, {"more": 1}, {"layers": 7}):
            with pytest.raises(SpecError, match="stored must be a table"):
                stored_from_document(stored_document(stored) | wrong)
