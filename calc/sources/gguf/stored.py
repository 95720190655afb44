"""Parameters and bytes of a GGUF file's weights, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator

from calc.model.stored import LayerBytes, StoredWeights, named_formats
from calc.model.tensors import KV, SPLIT, WHOLE
from calc.sources.gguf.facts import Facts, is_predictor, predictors
from calc.sources.gguf.header import Tensor
from calc.sources.gguf.roles import Role, layer_role, outer_role, share

COMPONENTS = {Role.ROUTER: "other"}
"""Components of `calc.model.count.Parameters` where they are not the role's own name."""


def held_tensors(facts: Facts) -> Iterator[tuple[str, Role, Tensor]]:
    """(Full name, role, tensor) of all that a server loads: those that predict further tokens are left out."""
    for name, tensor in facts.outer.items():
        yield name, outer_role(name), tensor
    for block in facts.blocks:
        if not is_predictor(block):
            for name, tensor in block.tensors.items():
                yield tensor.name, layer_role(name), tensor


def stored_weights(facts: Facts) -> StoredWeights:
    """The bytes of all weights: how they fall on ranks, on components and on layers. Raises SpecError."""
    shares, components = {SPLIT: 0, KV: 0, WHOLE: 0}, dict.fromkeys(map(_component, Role), 0)
    formats: dict[str, int] = {}
    for name, role, tensor in held_tensors(facts):
        shares[share(name)] += tensor.n_bytes
        components[_component(role)] += tensor.n_bytes
        formats[tensor.type_name] = formats.get(tensor.type_name, 0) + tensor.n_bytes
    return StoredWeights(
        name=named_formats(formats),
        split_bytes=shares[SPLIT],
        kv_bytes=shares[KV],
        whole_bytes=shares[WHOLE],
        components=tuple(components.items()),
        layers=tuple(_layer_bytes(facts)),
    )


def _component(role: Role) -> str:
    return COMPONENTS.get(role, str(role))


def _layer_bytes(facts: Facts) -> Iterator[LayerBytes]:
    for block in facts.blocks:
        if not is_predictor(block):
            sizes = [(layer_role(name), tensor.n_bytes) for name, tensor in block.tensors.items()]
            experts = sum(n for role, n in sizes if role is Role.EXPERTS)
            yield LayerBytes(total=sum(n for _, n in sizes), experts=experts)


def total_params(facts: Facts) -> int:
    """Parameters of all tensors that a server loads."""
    return sum(facts.params(tensor) for _, _, tensor in held_tensors(facts))


def predictor_bytes(facts: Facts) -> int:
    """Bytes of the layers that predict further tokens."""
    return sum(tensor.n_bytes for block in predictors(facts) for tensor in block.tensors.values())
