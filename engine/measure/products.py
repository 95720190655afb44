"""Products of a large matrix with few or many rows, each as a thing to time, in the ways that the engine has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from engine.compiled.attach import attach
from engine.compiled.build import BuildError, build_library
from engine.measure.kinds.machine import ROWS
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.devices import synchronize
from engine.model.layers import Linear, LinearLike
from engine.model.made_weights import random_weights
from engine.weights.formats import GROUP, GroupedLinear, Packed, compute_dtype
from engine.weights.panels import FORMS
from engine.weights.panels import ROWS as PANEL

COLUMNS = 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 34 / GROUP, "int4": 20 / GROUP}
"""As the engine keeps them: int8 and int4 have scales for 32."""
READING_ROWS = 16
"""Up to so many rows the whole matrix is read; on a CPU products of more rows are bound by arithmetic, and take a part
of it. A GPU does all of it in a millisecond."""
LARGE_FLOPS = 2e9
"""Work of a product of many rows: some tens of milliseconds on a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product to time. `way`: by the layers or by the compiled step."""

    way: str
    rows: int
    weight_bytes: float
    flops: float
    run: Callable[[], object]


def products(dtype: str, device: torch.device, matrix_bytes: int) -> Iterator[Product]:
    """The products of a dtype on a device, over a matrix of about `matrix_bytes`."""
    outputs = _in_panels(int(matrix_bytes / WEIGHT_BYTES[dtype]) // COLUMNS)
    matrix = _matrix(dtype, outputs, device)
    compute = DTYPES.get(dtype) or compute_dtype(device)
    compiled = _compiled(matrix, outputs, compute) if device.type == "cpu" and dtype != "fp16" else None
    grouped = isinstance(matrix, GroupedLinear)
    for rows in ROWS:
        if rows > READING_ROWS and device.type == "cpu":
            part = _in_panels(min(outputs, int(LARGE_FLOPS / (2 * rows * COLUMNS))))
            yield _by_layers(first_rows(matrix, part), dtype, rows, part, compute, device)
        elif not grouped or compiled is None:
            yield _by_layers(matrix, dtype, rows, outputs, compute, device)
        if compiled is not None and rows <= READING_ROWS:
            yield _product("compiled", dtype, rows, outputs, compiled(rows))


def _in_panels(rows: int) -> int:
    """So many rows or a few fewer, in whole panels."""
    return max(GROUP, rows // PANEL * PANEL)


def _product(way: str, dtype: str, rows: int, outputs: int, run: Callable[[], object]) -> Product:
    weights = outputs * COLUMNS
    return Product(way=way, rows=rows, weight_bytes=weights * WEIGHT_BYTES[dtype], flops=2.0 * rows * weights, run=run)


def _by_layers(
    layer: LinearLike, dtype: str, rows: int, outputs: int, compute: torch.dtype, device: torch.device
) -> Product:
    x = torch.ones(rows, COLUMNS, dtype=compute, device=device)

    def run() -> None:
        with torch.inference_mode():
            layer(x)
        synchronize(device)

    return _product("layers", dtype, rows, outputs, run)


def _matrix(dtype: str, outputs: int, device: torch.device) -> Linear | GroupedLinear:
    """A matrix (outputs, COLUMNS) of small numbers, kept as the engine keeps that dtype."""
    if dtype in DTYPES:
        return Linear(torch.full((outputs, COLUMNS), 0.01, dtype=DTYPES[dtype], device=device))
    name: Literal["int8", "int4"] = "int8" if dtype == "int8" else "int4"
    form, n_panels = FORMS[name], outputs // PANEL
    return GroupedLinear(
        Packed(
            format=name,
            rows=outputs,
            cols=COLUMNS,
            values=torch.full((n_panels, COLUMNS // GROUP * form.block_bytes), 3, dtype=torch.uint8),
            scales=torch.full((n_panels, PANEL * form.numbers(COLUMNS)), 0.01, dtype=torch.float16),
        )
    )


def first_rows(layer: Linear | GroupedLinear, outputs: int) -> LinearLike:
    """The first rows of a matrix, in whole panels and of its first part, as a matrix."""
    if isinstance(layer, Linear):
        return Linear(layer.weight[:outputs], None if layer.bias is None else layer.bias[:outputs])
    whole, widen = layer.parts[0], layer.unpack[0]  # the compiled step's, where there is one
    n_panels = outputs // PANEL
    part = GroupedLinear(
        replace(
            whole,
            rows=outputs,
            values=whole.values[:n_panels],
            scales=None if whole.scales is None else whole.scales[:n_panels],
            bias=None if whole.bias is None else whole.bias[:outputs],
        )
    )
    part.unpack = [
        lambda dtype, start=0, stop=None: widen(dtype, start, outputs if stop is None else min(stop, outputs))
    ]
    return part


def _compiled(matrix: LinearLike, outputs: int, compute: torch.dtype) -> Callable[[int], Callable[[], Tensor]] | None:
    """The head of a model whose one layer is tiny, run as a compiled step; None where there is no compiler."""
    try:
        build_library()
    except BuildError:
        return None
    decoder = _tiny_decoder(compute)
    decoder.head = matrix
    decoder.config = _config(vocab_size=outputs)
    attach(decoder)
    if decoder.decode_step is None:
        return None

    def of(rows: int) -> Callable[[], Tensor]:
        cache, ids = decoder.new_cache(8, rows), torch.zeros(rows, 1, dtype=torch.int64)

        def run() -> Tensor:
            cache.truncate(0)
            return decoder.forward(ids, cache)

        return run

    return of


def _tiny_decoder(compute: torch.dtype) -> Decoder:
    config = _config(vocab_size=GROUP)
    return Decoder(config, random_weights(config, dtype=compute))


def _config(*, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=GROUP,
        hidden_size=COLUMNS,
        intermediate_size=GROUP,
        vocab_size=vocab_size,
        max_positions=GROUP,
        norm="rmsnorm",
        norm_eps=1e-5,
        positions="rope",
        activation="silu",
        gated_mlp=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        head_bias=False,
        qk_norm=False,
        tied=False,
        attention_scale=GROUP**-0.5,
    )
