"""Feed-forwards of a layer, dense, shared and routed, from the shapes of their matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calc.errors import SpecError
from calc.model.parts import Dense, Mlp
from calc.sources.gguf.facts import Block, Facts, Undetermined
from calc.sources.gguf.roles import OLD_EXPERT, Role, layer_role

if TYPE_CHECKING:
    from calc.model.experts import Experts
    from calc.model.layers import FeedForward


def feed_forwards(facts: Facts, block: Block, hidden_size: int) -> tuple[FeedForward, ...]:
    """What a layer's tensors make of feed-forwards; a part's further parameters are not in it. Raises Undetermined."""
    found: list[FeedForward] = []
    try:
        if "channel_mix_key" in block:
            found.append(Dense(intermediate_size=block.rows("channel_mix_key"), mlp=Mlp.PLAIN))
        if block.has("ffn_down", "ffn_up"):
            found.append(_dense(block, ""))
        if any(layer_role(name) is Role.EXPERTS for name in block.tensors):
            found.append(_experts(facts, block, hidden_size))
        if "ffn_down_shexp" in block:
            found.append(_dense(block, "_shexp"))
    except SpecError as error:
        raise Undetermined(f"layer {block.index}: {error}") from None
    return tuple(found)


def _dense(block: Block, ending: str) -> Dense:
    gate, up, down = (f"ffn_{name}{ending}" for name in ("gate", "up", "down"))
    inner = block.columns(down)
    gated = gate in block or block.rows(up) == 2 * inner
    bias = block.biased(gate, up, down)
    return Dense(intermediate_size=inner, mlp=Mlp.GATED if gated else Mlp.PLAIN, bias=bias)


def _experts(facts: Facts, block: Block, hidden_size: int) -> Experts:
    from calc.model.experts import Experts

    old = {int(found[2]) for name in block.tensors if (found := OLD_EXPERT.fullmatch(name))}
    ending = f".{min(old)}" if old else "_exps"
    gate, up, down = (f"ffn_{name}{ending}" for name in ("gate", "up", "down"))
    fused = "ffn_gate_up_exps"
    if not (top_k := facts.at("expert_used_count", block.index)):
        raise facts.missing("expert_used_count")
    width = block.columns(fused if fused in block else up)
    return Experts(
        n_experts=len(old) or block.copies(down),
        top_k=top_k,
        expert_size=block.columns(down),
        router_params=0,
        mlp=Mlp.GATED if block.has(gate, fused) else Mlp.PLAIN,
        bias=block.biased(gate, up, fused, down),
        input_size=None if width == hidden_size else width,
    )
