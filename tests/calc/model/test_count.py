"""calc.model.count: published counts exactly, and every weight of a model listed one by one."""

import csv
from math import prod
from pathlib import Path

import pytest
from hypothesis import given

from calc.errors import CalcError
from calc.explain.terms import evaluate
from calc.hf import read_hf_config
from calc.model.count import parameters
from calc.model.edit import edit
from calc.model.parts import Mlp, Norm
from tests.calc.strategies import LLAMA, QUICK, REFERENCE, models, read_text

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def weights(model):
    """Shapes of every weight, as a framework would allocate them: the oracle that knows no formula."""
    m = model
    q, kv = m.n_heads * m.head_dim, m.n_kv_heads * m.head_dim
    norm = [(m.hidden_size,)] * (1 if m.norm is Norm.RMS else 2)
    layer = [*norm, *norm, (q, m.hidden_size), (kv, m.hidden_size), (kv, m.hidden_size), (m.hidden_size, q)]
    layer += [(q,), (kv,), (kv,)] * m.qkv_bias + [(m.hidden_size,)] * m.o_bias + [(m.head_dim,)] * 2 * m.qk_norm
    layer += [(m.intermediate_size, m.hidden_size)] * (2 if m.mlp is Mlp.GATED else 1)
    layer += [(m.hidden_size, m.intermediate_size)]
    layer += ([(m.intermediate_size,)] * (2 if m.mlp is Mlp.GATED else 1) + [(m.hidden_size,)]) * m.mlp_bias
    shapes = [(m.vocab_size, m.hidden_size), (m.n_learned_positions, m.hidden_size), *norm]
    shapes += [(m.vocab_size, m.hidden_size)] * (not m.tied) + [(m.vocab_size,)] * m.head_bias
    return shapes + layer * m.n_layers


def test_llama_3_8b_to_the_unit():
    """FACTS section 0."""
    counts = parameters(LLAMA)
    assert counts.total == 8_030_261_248
    assert (counts.embedding, counts.head) == (525_336_576, 525_336_576)
    assert (counts.attention, counts.mlp) == (32 * 41_943_040, 32 * 176_160_768)
    assert counts.norms == 32 * 8_192 + 4_096


def test_the_assignments_model_written_out():
    """Vocabulary 1000, d_model 50, d_ff 100, 2 layers, 128 positions; biases in fc1, fc2 and the head."""
    layer = 4 * 50 * 50 + (100 * 50 + 100) + (50 * 100 + 50) + 4 * 50
    assert parameters(REFERENCE).total == 1000 * 50 + 128 * 50 + 2 * layer + 2 * 50 + 1000 * 50 + 1000


@QUICK
@given(models())
def test_every_weight_one_by_one(model):
    assert parameters(model).total == sum(prod(shape) for shape in weights(model))


@QUICK
@given(models())
def test_components_sum_to_the_total(model):
    counts = parameters(model)
    assert sum(counts.components.values()) == counts.total
    assert counts.components["experts"] == 0
    assert all(n >= 0 for n in counts.components.values())


@QUICK
@given(models())
def test_every_shown_step_has_its_value(model):
    for term in parameters(model).steps:
        assert evaluate(term.expression, term.values) == term.value
        assert read_text(term.substituted) == term.value
        assert term.unit == "parameters"


@QUICK
@given(models())
def test_the_last_step_adds_the_others(model):
    """The total is put together from the values of the steps above it, none left out."""
    *parts, total = parameters(model).steps
    used = sorted(v for name, v in total.values.items() if name != "n_layers")
    assert used == sorted(part.value for part in parts if part.value)
    assert total.value == parameters(model).total


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"tied": True}, -128_256 * 4096),
        ({"mlp": Mlp.PLAIN}, -32 * 4096 * 14336),
        ({"norm": Norm.LAYER}, 65 * 4096),
        ({"qkv_bias": True}, 32 * (4096 + 2 * 1024)),
        ({"o_bias": True}, 32 * 4096),
        ({"mlp_bias": True}, 32 * (2 * 14336 + 4096)),
        ({"head_bias": True}, 128_256),
        ({"qk_norm": True}, 32 * 256),
        ({"n_learned_positions": 1024}, 1024 * 4096),
        ({"n_kv_heads": 32}, 32 * 2 * 4096 * 24 * 128),
    ],
)
def test_each_switch_adds_what_it_is(change, difference):
    assert parameters(edit(LLAMA, **change)).total - 8_030_261_248 == difference


def oracle():
    if not (SHARED / "oracle.csv").exists():
        return []
    with (SHARED / "oracle.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["model_type"] in ("llama", "mistral", "qwen2", "qwen3")]


@pytest.mark.skipif(not oracle(), reason="the facts beside the project are not here")
@pytest.mark.parametrize("row", oracle(), ids=lambda row: row["file"])
def test_against_counts_from_transformers(row):
    try:
        model = read_hf_config(SHARED / "configs" / row["file"])
    except CalcError as error:
        pytest.fail(str(error))
    counts = parameters(model)
    assert counts.total == int(row["total_params"])
    assert counts.embedding == int(row["embedding_params"])
    assert 2 * model.n_layers * model.n_kv_heads * model.head_dim == int(row["kv_formula_elements_per_token"])
    assert model.tied == (row["tied"] == "True")
    assert model.n_sliding_layers == int(row["n_sliding_layers"])
