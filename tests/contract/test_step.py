"""calc's operators of a pass against what the engine's own pass multiplies and reads, counted while it runs.

Every product is seen where torch carries it out: by a weight of the decoder, or by keys and values of its cache. The
two packages read the same config.json with readers of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from calc.model.spec import ModelSpec
from calc.sources import load_model
from calc.speed.kernels import PRODUCTS
from calc.step.model import pass_operators
from calc.step.operators import Kind, Operator, Pass, Phase
from calc.step.weights import one_format
from engine.families.registry import config_from_hf
from engine.model.cache_choice import make_cache
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from tests.engine.hf_configs import document

FOUR = 4
"""Bytes of a float32, which everything is here."""
aten = torch.ops.aten
FACTORS_AT = {aten.mm: 0, aten.matmul: 0, aten.bmm: 0, aten.linear: 0, aten.addmm: 1, aten.baddbmm: 1}
"""Products of torch, and where their factors begin among the arguments."""


class Counter(TorchDispatchMode):
    """FLOPs and bytes of products with weights, and of attention: everything else that is multiplied."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.product_flops = self.weight_bytes = self.attention_flops = self.cache_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in FACTORS_AT:
            a, b = args[FACTORS_AT[packet] :][:2]
            self.product(a, b.transpose(0, 1) if packet is aten.linear else b)
        elif "scaled_dot_product" in str(packet):
            self.attention(*args[:3])
        return func(*args, **(kwargs or {}))

    def product(self, a: Tensor, b: Tensor) -> None:
        """(…, m, k) times (…, k, n)."""
        flops = 2 * a.numel() * b.size(-1)
        if held := [one for one in (a, b) if one.untyped_storage().data_ptr() in self.weights]:
            self.product_flops += flops
            self.weight_bytes += sum(one.numel() * one.element_size() for one in held)
        else:
            self.attention_flops += flops
            self.cache_bytes += b.numel() * b.element_size()

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Scores and weighted values. Values that are the first columns of the keys are read with them."""
        self.attention_flops += 2 * q.numel() * k.size(-2) + 2 * (q.numel() // q.size(-1)) * v.size(-1) * k.size(-2)
        self.cache_bytes += k.numel() * k.element_size()
        self.cache_bytes += 0 if v.data_ptr() == k.data_ptr() else v.numel() * v.element_size()


def tensors_of(part: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that a decoder holds."""
    if isinstance(part, Tensor):
        yield part
    elif id(part) not in seen:
        seen.add(id(part))
        seen.add(id(part))
        held = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
        names = {*getattr(part, "__dict__", {}), *(n for c in type(part).__mro__ for n in getattr(c, "__slots__", ()))}
        for one in (*held, *(getattr(part, name, None) for name in names)):
            yield from tensors_of(one, seen)


def both(family: str, folder: Path) -> tuple[ModelSpec, Decoder]:
    file = folder / "config.json"
    file.write_text(json.dumps(document(family)), encoding="utf-8")
    config = config_from_hf(document(family))
    return load_model(str(file)), Decoder(config, random_weights(config))


def counted(decoder: Decoder, batch: int, context: int, *, prefill: bool) -> Counter:
    """What the engine does in a prompt of `context` tokens, or in the step that follows one less."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(decoder, set())}
    cache = make_cache(decoder.config, context, kind="full", batch_size=batch, dtype=torch.float32)
    ids = torch.arange(batch * context).view(batch, context) % decoder.config.vocab_size
    counter = Counter(weights)
    if not prefill:
        decoder.forward(ids[:, :-1], cache, last_only=True)
    with counter:
        decoder.forward(ids if prefill else ids[:, -1:], cache, last_only=True)
    return counter


def predicted(spec: ModelSpec, batch: int, context: int, phase: Phase) -> tuple[list[Operator], list[Operator]]:
    """The products with weights and the attention of a pass."""
    work = Pass(
        phase=phase,
        batch=batch,
        context=context,
        causal=False,  # as the kernels of a processor multiply: all scores of a prompt
        softmax_flops=0,
        kv_element_bytes=FOUR,
        weight_bytes=one_format(FOUR),
    )
    operators = pass_operators(spec, work)
    products = [one for one in operators if one.kind in PRODUCTS or one.kind is Kind.EXPERTS]
    return products, [one for one in operators if one.kind is Kind.ATTENTION]


def total(operators: list[Operator], what: str) -> Any:
    return sum(getattr(one, what) for one in operators)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3", "mixtral", "qwen3-moe", "deepseek-v3"])
@pytest.mark.parametrize("context", [9, 40])
def test_a_step_of_one_sequence(family: str, context: int, tmp_path: Path) -> None:
    """Dense, windows of 16 before and beyond them, experts of one token, latent attention absorbed: to the byte."""
    spec, decoder = both(family, tmp_path)
    found = counted(decoder, 1, context, prefill=False)
    products, attention = predicted(spec, 1, context, Phase.DECODE)
    assert found.product_flops == total(products, "flops")
    assert found.weight_bytes == total(products, "weight_bytes")
    assert found.attention_flops == total(attention, "flops")
    assert found.cache_bytes == total(attention, "cache_bytes")


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral", "deepseek-v3"])
def test_a_step_of_a_batch(family: str, tmp_path: Path) -> None:
    """FLOPs and caches of three sequences; the weights of a dense model once, of experts no more than all of them."""
    spec, decoder = both(family, tmp_path)
    found = counted(decoder, 3, 40, prefill=False)
    products, attention = predicted(spec, 3, 40, Phase.DECODE)
    assert found.product_flops == total(products, "flops")
    assert (found.attention_flops, found.cache_bytes) == (total(attention, "flops"), total(attention, "cache_bytes"))
    dense = [one for one in products if one.kind is not Kind.EXPERTS]
    assert found.weight_bytes >= total(dense, "weight_bytes")
    if dense == products:
        assert found.weight_bytes == total(products, "weight_bytes")


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_a_prompt(family: str, tmp_path: Path) -> None:
    """Weights once for all tokens, the head for the last token alone, every score of every head."""
    spec, decoder = both(family, tmp_path)
    found = counted(decoder, 2, 24, prefill=True)
    products, attention = predicted(spec, 2, 24, Phase.PREFILL)
    assert found.product_flops == total(products, "flops")
    assert found.attention_flops == total(attention, "flops")
    if family != "mixtral":
        assert found.weight_bytes == total(products, "weight_bytes")
