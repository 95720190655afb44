"""Components: a tensor belongs to the one that counts it; stored bytes by component are all that is stored."""

from __future__ import annotations

from calc.model.components import component_of
from calc.model.count import model_tensors, parameters
from calc.model.stored import StoredWeights, stored_document, stored_from_document
from calc.sources.catalog import ModelEntry, find_model, models
from tests.each import each


@each("entry", models().values())
def test_tensors_by_component_are_the_count(entry: ModelEntry) -> None:
    model = entry.spec
    found = dict.fromkeys(parameters(model).components, 0)
    for tensor in model_tensors(model):
        found[component_of(tensor)] += tensor.params
    assert found == parameters(model).components
    if model.stored is not None:
        assert sum(n_bytes for _, n_bytes in model.stored.components) == model.stored.total_bytes


def test_only_the_experts_of_gpt_oss_are_packed() -> None:
    """MXFP4: 17 bytes for 32 elements; biases of the experts, attention, embedding and head stay in 16 bits."""
    model = find_model("gpt-oss-20b")
    assert model.stored is not None
    stored, counts = dict(model.stored.components), parameters(model).components
    matrices, biases = 24 * 32 * 3 * 2880 * 2880, 24 * 32 * 3 * 2880
    assert counts["experts"] == matrices + biases
    assert stored["experts"] == matrices * 17 // 32 + biases * 2
    assert all(stored[part] == 2 * counts[part] for part in counts if part != "experts")


def test_a_document_keeps_components() -> None:
    stored = StoredWeights(
        name="fp8", split_bytes=5, kv_bytes=2, whole_bytes=1, components=(("attention", 6), ("head", 2))
    )
    assert stored_from_document(stored_document(stored)) == stored
    plain = StoredWeights(name="fp8", split_bytes=5, kv_bytes=2, whole_bytes=1)
    assert "components" not in stored_document(plain)
    assert stored_from_document(stored_document(plain)) == plain
