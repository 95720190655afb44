"""The decode step of a decoder through step.cpp: its weights as C records, called with pointers."""

import ctypes
import weakref
from typing import Any

import torch
from torch import Tensor

from engine.compiled.matrices import CODES_OF_DTYPES, LinearRecord, record_of
from engine.compiled.records import (
    ExpertRecord,
    LatentRecord,
    LayerRecord,
    ModelRecord,
    NormRecord,
    StepRecord,
    StoreRecord,
    check_records,
)
from engine.model.block import AnyBlock
from engine.model.cache_kinds import KeysValues, Store
from engine.model.config import ExpertsConfig, ModelConfig, Rope
from engine.model.decoder import Decoder
from engine.model.experts import Experts
from engine.model.latent import LatentAttention
from engine.model.layers import MLP, Attention, Linear, Norm, QKNorm, Table
from engine.model.rotary import Rotary, rope_magnitude
from engine.weights.formats import GroupedLinear, PackedTable, packed

_MIN_BYTES_FOR_THREADS = 2_000_000  # a smaller model is read from the cache faster than threads can synchronize
MAX_ROWS = 32  # beyond this, one large matrix product of the layers is as fast
_ACTIVATIONS = {name: code for code, name in enumerate(("relu", "silu", "gelu", "gelu_tanh", "relu2", "gelu_sigmoid"))}
_RMS_NORM, _LAYER_NORM = 1, 2  # 0: no norm


class CompiledStep:
    """``step(ids, cache)`` is one decode step: ids (B, T) int64 -> logits (B, T, V) float32, B or T is 1.

    It writes the new tokens' keys and values after those in the cache; the caller advances the count. It does not
    support more than ``max_rows`` rows in a batch, or tokens in a row. It keeps the memory it points into.
    """

    max_rows = MAX_ROWS

    def __init__(self, decoder: Decoder, library: ctypes.CDLL) -> None:
        check_records(library)
        self.config = decoder.config
        self._library = library
        self._kept: list[Tensor] = []
        self._records: list[LinearRecord | ctypes.Array[ExpertRecord]] = []  # others point to it
        self._layers = (LayerRecord * decoder.config.n_layers)(
            *[self._layer(decoder, i) for i in range(len(decoder.blocks))]
        )
        self._model = self._make_model(decoder)
        self._small = sum(t.nbytes for t in self._kept) < _MIN_BYTES_FOR_THREADS
        self._call = library.decode_step
        self._call.restype, self._call.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
        self._model_address = ctypes.addressof(self._model)
        self._steps: dict[int, _BoundStep] = {}  # on one cache, by the number of consecutive tokens

    def __call__(self, ids: Tensor, cache: KeysValues) -> Tensor:
        threads, (batch, n_new) = 1 if self._small else torch.get_num_threads(), ids.shape
        step = self._steps.get(n_new)
        if step is None or step.cache() is not cache or step.threads != threads:
            self._steps = {n: s for n, s in self._steps.items() if s.cache() is cache and s.threads == threads}
            step = self._steps[n_new] = _BoundStep(cache, n_new, threads, self._scratch(batch * n_new, threads))
        ids = ids.contiguous()
        logits = torch.empty(batch, n_new, self.config.vocab_size)
        places: list[ctypes.c_int64 | int] = [cache.length + i for i in range(n_new)]
        step.past[:] = places * batch
        step.record.ids, step.record.logits = ids.data_ptr(), logits.data_ptr()
        self._call(self._model_address, step.address)
        return logits

    def _scratch(self, batch: int, threads: int) -> Tensor:
        count = self._library.scratch_floats
        count.restype, count.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]
        return torch.zeros(count(self._model_address, batch, threads))

    def _make_model(self, decoder: Decoder) -> ModelRecord:
        c = decoder.config
        table = decoder.position_embedding
        return ModelRecord(
            layers=ctypes.addressof(self._layers),
            embedding=self._table(decoder.embedding),
            positions=self._linear(Linear(table)) if table is not None else LinearRecord(),
            head=self._linear(decoder.head),
            norm=self._norm(decoder.norm),
            embedding_norm=self._norm(decoder.embed_norm),
            n_layers=c.n_layers, hidden_size=c.hidden_size, vocab_size=c.vocab_size,
            **_attention_sizes(c),
            rotary_dim=max(layer.rotary_dim for layer in self._layers),
            qkv_rows=_qkv_rows(c),
            inner_size=_inner_size(c),
            **(_experts(c.experts) if c.experts is not None else {}),
            attention_scale=c.attention_scale, embedding_scale=decoder.embed_scale, residual_scale=c.residual_scale,
            logit_scale=c.logit_scale, attention_cap=c.attention_softcap or 0.0,
            logit_cap=c.logit_softcap or 0.0, swiglu_limit=c.swiglu_limit or 0.0,
            activation=_ACTIVATIONS[c.activation], gated=c.gated_mlp, parallel=c.block == "parallel",
            tiles=decoder.dtype == torch.bfloat16 and self._library.tiles_allowed(),
        )  # fmt: skip

    def _layer(self, decoder: Decoder, index: int) -> LayerRecord:
        block, kind = decoder.blocks[index], decoder.config.layer(index)
        attention = block.attention
        assert isinstance(attention, Attention | LatentAttention)  # checked by `unsupported`
        return LayerRecord(
            **self._attention(attention, decoder.config),
            **self._mlp(block.mlp),
            **self._norms(block),
            **self._positions(decoder.rotaries[attention.kind], kind.rope),
            window=kind.window or 0,
        )

    def _norms(self, block: AnyBlock) -> dict[str, Any]:
        """The norms of a block, depending on its kind."""
        names = ("attention_norm", "mlp_norm", "post_attention_norm", "post_mlp_norm")
        return {name: self._norm(getattr(block, name, None)) for name in names}

    def _positions(self, rotary: Rotary | None, rope: Rope | None) -> dict[str, Any]:
        if rotary is None or rope is None:
            return {}
        long = rotary.long_frequencies
        return {
            "frequencies": self._keep(rotary.inverse_frequencies),
            "long_frequencies": self._keep(long) if long is not None else None,
            "original_context": rotary.original_context,
            "rotary_dim": rope.rotary_dim,
            "rotary_scale": rope_magnitude(rope.scaling),
        }

    def _attention(self, attention: Attention | LatentAttention, config: ModelConfig) -> dict[str, Any]:
        if isinstance(attention, LatentAttention):
            return self._latent_attention(attention)
        q_norm, k_norm = self._qk_norms(attention.qk_norm, config)
        return {
            "qkv": self._linear(attention.qkv),
            "output": self._linear(attention.output),
            "q_norm": q_norm,
            "k_norm": k_norm,
            "sinks": self._keep(attention.sinks.float()) if attention.sinks is not None else None,
        }

    def _latent_attention(self, attention: LatentAttention) -> dict[str, Any]:
        asking = attention.compress_query
        return {
            "qkv": self._linear(attention.query if asking is None else asking, attention.compress),
            "output": self._linear(attention.output),
            "latent": LatentRecord(
                query_norm=self._norm(attention.query_norm),
                query=self._linear(attention.query) if asking is not None else LinearRecord(),
                kv_up=self._linear(Linear(attention.up)),
            ),
            "k_norm": self._norm(attention.norm),
        }

    def _mlp(self, mlp: MLP | Experts) -> dict[str, Any]:
        if isinstance(mlp, MLP):
            return {"mlp": self._expert(mlp)}
        gate = () if mlp.shared_gate is None else (mlp.shared_gate,)
        return {
            "mlp": self._expert(mlp.shared) if mlp.shared is not None else ExpertRecord(),
            "router": self._linear(mlp.router, *gate),
            "experts": self._all_experts(mlp),
            "choice_bias": self._keep(mlp.choice_bias.float()) if mlp.choice_bias is not None else None,
        }

    def _expert(self, mlp: MLP) -> ExpertRecord:
        return ExpertRecord(up=self._linear(mlp.up), down=self._linear(mlp.down))

    def _all_experts(self, routed: Experts) -> int:
        records = (ExpertRecord * len(routed.experts))(*map(self._expert, routed.experts))
        self._records.append(records)
        return ctypes.addressof(records)

    def _qk_norms(self, norm: QKNorm | None, config: ModelConfig) -> tuple[NormRecord, NormRecord]:
        if norm is None:
            return NormRecord(), NormRecord()
        n_heads, size = [config.n_heads, config.n_kv_heads], config.head_dim
        weights = (None, None) if norm.weights is None else torch.split(norm.weights.float(), n_heads)
        q_norm, k_norm = (
            NormRecord(
                weight=self._keep(of_heads) if of_heads is not None else None,
                width=n * size if norm.kind == "all" else size,
                apart=size,
                eps=norm.eps,
                kind=_LAYER_NORM if norm.centred else _RMS_NORM,
            )
            for of_heads, n in zip(weights, n_heads, strict=True)
        )
        return q_norm, k_norm

    def _linear(self, *layers: object) -> LinearRecord:
        """Layers with the same input, as a chain of matrices with adjacent outputs."""
        record: LinearRecord | None = None
        for part in reversed([part for layer in layers for part in packed(layer)]):
            bias = self._keep(part.bias.float()) if part.bias is not None else None
            self._kept += [part.values] if part.scales is None else [part.values, part.scales]
            following, record = record, record_of(part, bias)
            if following is not None:
                self._records.append(following)
                record.next = ctypes.addressof(following)
        assert record is not None
        return record

    def _table(self, table: Tensor | Table) -> LinearRecord:
        if isinstance(table, Tensor):
            return self._linear(Linear(table))
        assert isinstance(table, PackedTable)
        return self._linear(GroupedLinear(table.part))

    def _norm(self, norm: Norm | None) -> NormRecord:
        if norm is None:
            return NormRecord()
        weight, bias = (self._keep(part.float()) if part is not None else None for part in (norm.weight, norm.bias))
        kind = _LAYER_NORM if norm.centred else _RMS_NORM
        return NormRecord(weight=weight, bias=bias, width=norm.shape[0], eps=norm.eps, kind=kind)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class _BoundStep:
    """The record of a step on one cache, filled once; each step then changes only three pointers."""

    def __init__(self, cache: KeysValues, n_new: int, threads: int, scratch: Tensor) -> None:
        self.cache = weakref.ref(cache)
        self.threads = threads
        self._scratch = scratch
        self._stores = (StoreRecord * len(cache.stores))(*map(_store, cache.stores))
        rows = cache.batch_size * n_new
        self.past = (ctypes.c_int64 * rows)()
        self._padding = cache.padding.contiguous() if cache.padding is not None else None
        self.record = StepRecord(
            past=ctypes.addressof(self.past),
            padding=self._padding.data_ptr() if self._padding is not None else None,
            stores=ctypes.addressof(self._stores),
            scratch=scratch.data_ptr(),
            batch=rows,
            threads=threads,
            sequence=n_new > 1,
            cache_format=CODES_OF_DTYPES[cache.stores[0].values.dtype],
        )
        self.address = ctypes.addressof(self.record)


def _store(store: Store) -> StoreRecord:
    scales = store.scales.data_ptr() if store.scales is not None else None
    return StoreRecord(values=store.values.data_ptr(), scales=scales, slots=store.values.size(-2))


def _attention_sizes(config: ModelConfig) -> dict[str, int]:
    """Heads as used in attention; latent attention has one vector per token, whose first numbers are its value."""
    latent = config.latent
    if latent is None:
        size = config.head_dim
        return {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, "head_dim": size, "value_dim": size}
    return {
        "n_heads": config.n_heads, "n_kv_heads": 1, "head_dim": latent.width, "value_dim": latent.rank,
        "rotary_at": latent.rank, "own_nope": latent.nope_dim, "own_rope": latent.rope_dim,
        "own_value": latent.value_dim,
    }  # fmt: skip


def _qkv_rows(config: ModelConfig) -> int:
    latent = config.latent
    if latent is None:
        return (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    return latent.width + (latent.query_rank or config.n_heads * (latent.nope_dim + latent.rope_dim))


def _experts(experts: ExpertsConfig) -> dict[str, float]:
    return {
        "n_experts": experts.n_experts, "n_active": experts.n_active, "n_groups": experts.n_groups,
        "n_active_groups": experts.n_active_groups, "group_best": experts.group_best, "expert_scale": experts.scale,
        "normalized": experts.normalize, "sigmoid": experts.scoring == "sigmoid",
    }  # fmt: skip


def _inner_size(config: ModelConfig) -> int:
    """The largest inner width of a row: of its MLP, or of all experts it uses."""
    experts = config.experts
    if experts is None:
        return config.intermediate_size
    return max(config.intermediate_size, experts.shared_size, experts.n_active * experts.intermediate_size)
