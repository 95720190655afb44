"""Tensor parallelism with real processes: the same logits, shares that calc predicts, no orphan when a rank dies."""

import os
import signal

import pytest
import torch

from calc.fit.memory import memory_report
from calc.model.storage import StorageFormat
from calc.model.study import Policy, Study
from calc.sources import load_model
from calc.sources.catalog import manual_device
from engine.errors import EngineFailure, OptionError
from engine.model.config import ModelConfig
from engine.model.generate import GenerationOptions, generate
from engine.model.made_weights import random_weights
from engine.parallel.launch import load_parallel
from engine.parallel.shard import Shard, check_tp, cut, shard_config
from engine.weights.checkpoint import load_checkpoint
from tests.engine.models import VARIANTS, llama_config
from tests.engine.processes import exists
from tests.patience import wait_until

FLOAT64 = StorageFormat("float64", 1, 8)
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": {"model_type": "llama", **SIZES},
    "qwen2": {"model_type": "qwen2", **SIZES, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 16},
    "gemma2": {
        "model_type": "gemma2", **SIZES, "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 12,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "model_type": "mixtral", **SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None,
    },
    "gpt-oss": {
        "model_type": "gpt_oss", **SIZES, "head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 16,
    },
    "deepseek-v2": {
        "model_type": "deepseek_v2", **SIZES, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 24,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 12, "n_routed_experts": 4, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def save(family, folder):
    """A folder with random weights of the family, written by transformers."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    document = dict(FAMILIES[family])
    torch.manual_seed(3)
    config = CONFIG_MAPPING[document.pop("model_type")](**document)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_together_are_the_model(family, tp, tmp_path):
    folder = save(family, tmp_path / family)
    whole = load_checkpoint(folder, dtype="float64")
    shared = load_parallel(folder, dtype="float64", tp=tp, threads=1)
    leader = shared.decoder
    try:
        ids = torch.randint(0, 96, (3, 21), generator=torch.Generator().manual_seed(1))
        expected = whole.decoder.forward(ids)
        assert (leader.forward(ids) - expected).abs().max() < 1e-9
        # With a cache: chunks, then token by token, rows that differ.
        cache = leader.new_cache(32, 3)
        steps = [leader.forward(part, cache) for part in torch.split(ids, [7, 9, 1, 1, 1, 1, 1], dim=1)]
        assert (torch.cat(steps, 1) - expected).abs().max() < 1e-9
        # A cache cut back, as when a chat's prompt shares its beginning.
        cache.truncate(7)
        again = leader.forward(ids[:, 7:], cache)
        assert (again - expected[:, 7:]).abs().max() < 1e-9
        assert leader.communication_ns > 0
        predicted = row_of(folder, tp)
        assert leader.rank_weight_bytes == predicted.weight_bytes_per_gpu
        window = leader.new_cache(40, 1, kind="window" if family in ("gemma2", "gpt-oss") else "full")
        assert window.nbytes == predicted.kv_bytes_per_request_per_gpu
        options = GenerationOptions(max_new_tokens=8)
        one, many = (list(generate(d, [5, 6, 7], options))[-1].ids for d in (whole.decoder, leader))
        assert one == many
    finally:
        leader.close()


def row_of(folder, tp):
    """calc's row of the whole-head table, 8 bytes per element, 40 tokens."""
    study = Study(
        model=load_model(str(folder / "config.json")),
        device=manual_device(10**12),
        context=40,
        weight_format=FLOAT64,
        kv_format=FLOAT64,
        tps=(tp,),
        policy=Policy.REPLICATED,
    )
    return memory_report(study).tp[0]


@pytest.fixture
def bundled():
    model = load_parallel(None, dtype="float64", tp=2, threads=1)
    yield model.decoder
    model.decoder.close()


def test_the_bundled_model_on_two_ranks(bundled):
    whole = load_checkpoint(None, dtype="float64").decoder
    ids = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6]])
    assert (bundled.forward(ids) - whole.forward(ids)).abs().max() < 1e-9


def test_a_rank_that_dies_ends_the_run_with_a_sentence_and_no_orphan():
    model = load_parallel(None, dtype="float32", tp=2, threads=1)
    ranks = children()
    assert len(ranks) == 1
    os.kill(ranks[0], signal.SIGKILL)
    with pytest.raises(EngineFailure, match=r"rank 1 of 2 ended \(signal 9\)"):
        run_often(model.decoder)
    model.decoder.close()
    assert not exists(ranks[0])


def run_often(decoder):
    for _ in range(20):
        decoder.forward(torch.tensor([[1, 2, 3]]))


@pytest.mark.slow
def test_closing_leaves_no_process():
    model = load_parallel(None, dtype="float32", tp=2, threads=1)
    ranks = children()
    model.decoder.close()
    wait_until(lambda: not any(map(exists, ranks)))


def children():
    """Process ids of this process's ranks."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as line:
                    mine = stat.read().rpartition(")")[2].split()[1] == str(os.getpid())
                    if mine and "engine.parallel" in line.read():
                        found.append(int(entry))
            except OSError:
                continue
    return found


class TestShards:
    """Without processes: the parts of all ranks put together are the whole."""

    @pytest.mark.parametrize("tp", [2, 4])
    @pytest.mark.parametrize("variant", ["llama", "qwen2", "mixed", "experts", "latent"])
    def test_parts_have_the_shapes_of_the_local_config(self, variant, tp):
        config = llama_config(**VARIANTS[variant])
        try:
            check_tp(config, tp)
        except OptionError:
            pytest.skip("this variant does not divide so")
        weights = random_weights(config)
        local = random_weights(shard_config(config, tp))
        for rank in range(tp):
            for name, tensor in weights.items():
                assert cut(name, tensor, config, Shard(rank, tp)).shape == local[name].shape, name

    def test_rows_of_the_vocabulary_are_filled_up_with_zeros(self):
        config = llama_config()  # 29 words on 2 ranks: 15 each, the last row is empty
        whole = torch.arange(1.0, 30.0)[:, None].expand(29, 16)
        parts = [cut("model.embed_tokens.weight", whole, config, Shard(rank, 2)) for rank in range(2)]
        assert torch.equal(torch.cat(parts)[:29], whole)
        assert parts[1][-1].abs().sum() == 0

    def test_a_repeated_kv_head_goes_to_the_ranks_of_its_queries(self):
        config = llama_config()  # 4 query heads, 2 KV heads
        rows = torch.arange(12.0)[:, None].expand(12, 16)
        heads = [cut("model.layers.0.self_attn.k_proj.weight", rows, config, Shard(r, 4))[0, 0] for r in range(4)]
        assert heads == [0, 0, 6, 6]


@pytest.mark.parametrize(
    ("changes", "tp", "what"),
    [
        ({}, 3, "4 query heads are not divisible by 3; this model runs on 1, 2, 4 ranks"),
        ({"n_heads": 12, "n_kv_heads": 6}, 4, "6 KV heads are not divisible by 4"),
        ({"intermediate_size": 26}, 4, "the inner dimension 26 is not divisible by 4"),
        ({"positions": "alibi"}, 2, "the ALiBi slopes"),
        ({}, 0, "from 1 to"),
        ({}, 1000, "from 1 to"),
    ],
)
def test_degrees_that_do_not_fit_are_refused_with_those_that_do(changes, tp, what):
    config: ModelConfig = llama_config(**changes)
    with pytest.raises(OptionError, match=what):
        check_tp(config, tp)
