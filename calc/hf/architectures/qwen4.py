"""Qwen4-Exp: a Qwen3.5 with experts, several residual streams, indexers and embeddings of n-grams."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture, Outer
from calc.hf.attention import full_attention
from calc.hf.feed_forward import feed_forwards
from calc.hf.layer_kinds import DELTA, LINEAR_TYPE
from calc.hf.layers import stack
from calc.hf.reader import HIDDEN_SIZE, Reader, shown
from calc.hf.recurrences import recurrent_mixer
from calc.model.layers import Attention, LayerSpec, Mixer, Stated

FULL_TYPES = ("indexed_attention", "full_attention")
"""Both mean attention over the tokens that an indexer selects."""
MAX_NGRAM_ROWS = 10**12
WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Bases that decide whether a number below 3 x 10^24 is prime (Sorenson and Webster 2015)."""


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    types = _types(reader, n_layers)
    of: dict[bool, tuple[Mixer, ...]] = {True: (recurrent_mixer(reader, arch, DELTA, hidden_size),)}
    if not all(types):
        of[False] = (_indexed(reader, full_attention(reader, arch), hidden_size),)
    ngrams = _ngram_layer(reader, hidden_size)
    with_ngrams = _ngram_layers(reader)
    mixers = [of[linear] + ((ngrams,) if i + 1 in with_ngrams else ()) for i, linear in enumerate(types)]
    mixed = replace(arch, extra_params=2 * _residual(reader, hidden_size, inject=True))
    return stack(reader, mixed, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


def _types(reader: Reader, n_layers: int) -> list[bool]:
    """Whether each layer is linear: by layer_types, else all but every fourth."""
    listed = reader.per_layer("layer_types", n_layers)
    interval = reader.maybe("full_attention_interval") or 4
    if listed is None:
        return [bool((i + 1) % interval) for i in range(n_layers)]
    if unknown := [kind for kind in listed if kind not in (LINEAR_TYPE, *FULL_TYPES)]:
        raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows {', '.join((LINEAR_TYPE, *FULL_TYPES))}")
    return [kind == LINEAR_TYPE for kind in listed]


def _indexed(reader: Reader, full: Attention, hidden_size: int) -> Attention:
    """The indexer's queries and its single key come from one projection; it selects blocks up to a budget of tokens."""
    heads, head_dim = reader.count("indexer_n_heads"), reader.count("indexer_head_dim")
    if (keys := reader.count("indexer_kv_heads")) != 1:
        raise reader.fail(f"indexer_kv_heads is {keys}: kvscope only supports indexers with one key")
    reader.ignore("indexer_compress_ratio")
    return replace(
        full,
        index_heads=heads,
        index_dim=head_dim,
        index_topk=reader.count("indexer_budget"),
        extra_params=full.extra_params + hidden_size * (heads + 1) * head_dim + 2 * head_dim,
    )


def _residual(reader: Reader, hidden_size: int, *, inject: bool) -> int:
    """Parameters that mix the residual streams: a norm, a low-rank product, and weights back into the streams."""
    streams = reader.count("hc_count")
    wide = streams * hidden_size
    return wide + 2 * wide * reader.count("hc_lowrank") + (wide * streams if inject else 0)


def _ngram_layers(reader: Reader) -> frozenset[int]:
    """Numbers, from 1, of the layers that add n-gram embeddings."""
    return reader.indices("ple_layer_ids")


def _ngram_layer(reader: Reader, hidden_size: int) -> Stated:
    """Keys of every stream, one value, three norms and a dilated convolution; the table is outside the layers."""
    streams, order = reader.count("hc_count"), reader.count("ngram_size", minimum=2)
    kernel, width = reader.count("ple_conv_kernel_size"), reader.maybe("ple_embed_dim") or hidden_size
    wide = streams * hidden_size
    params = width * (wide + hidden_size) + (3 + kernel) * wide
    return Stated(label="hashed n-gram", params=params, state_elements=(kernel - 1) * order * wide + order - 1)


def _outer(reader: Reader) -> Outer:
    """Parameters that combine the streams at the end, and the n-gram tables with a prime number of rows per head."""
    hidden_size = reader.count(*HIDDEN_SIZE)
    n_tables = len(_ngram_layers(reader))
    heads = (reader.count("ngram_size", minimum=2) - 1) * reader.count("heads_per_ngram")
    width = (reader.maybe("ple_embed_dim") or hidden_size) // heads
    multiple, first = reader.count("make_ngram_vocab_size_divisible_by"), reader.count("ngram_vocab_size_base")
    if first > MAX_NGRAM_ROWS or n_tables * heads > 10_000:
        raise reader.fail("ngram_vocab_size_base, ngram_size or ple_layer_ids is too large for an embedding table")
    reader.ignore("split_ngram_parts")
    rows, start = 0, first - 1
    for _ in range(n_tables):
        table = 0
        for _ in range(heads):
            start = next_prime(start)
            table += start
        rows += -(-table // multiple) * multiple
    if rows:
        reader.notes.append(
            f"n-gram embeddings have {rows * width:,} parameters, counted as active; a token reads {n_tables * heads} "
            "rows"
        )
    return Outer(_residual(reader, hidden_size, inject=False) + rows * width)


def next_prime(number: int) -> int:
    """The smallest prime above `number`.

    >>> next_prime(19_999_999)
    20000003
    """
    number += 1
    while not _is_prime(number):
        number += 1
    return number


def _is_prime(number: int) -> bool:
    """The Miller-Rabin primality test."""
    if number < 2 or any(number % base == 0 for base in WITNESSES):
        return number in WITNESSES
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(pow(base, odd, number), number, twos) for base in WITNESSES)


def _passes(power: int, number: int, twos: int) -> bool:
    if power == 1:
        return True
    for _ in range(twos):
        if power == number - 1:
            return True
        power = power * power % number
    return False


ARCHITECTURES = (
    replace(
        BIASED,
        names=("qwen4_exp_text",),
        unused=("number_of_conv_states",),
        norm="none",
        qk_norm="head",
        gated_attention=True,
        shared_gate=True,
        split_delta=True,
        final_norm=False,
        needs_inner=False,
        layers=_layers,
        outer=_outer,
    ),
)
