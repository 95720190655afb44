"""The decode step of a decoder through step.cpp: its weights as C records, called with pointers.

`attach` is the way in: it sets ``decoder.decode_step`` as soon as the library is there.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from engine.compiled.build import BuildError, build_apart, build_library, cached_library
from engine.compiled.matrices import CODES_OF_DTYPES, CompiledProduct, LinearRecord, Scratch, compiled_unpack, record_of
from engine.errors import EngineError, Stopped
from engine.model.block import AnyBlock
from engine.model.cache_kinds import KeysValues, Store
from engine.model.config import ExpertsConfig, ModelConfig, Rope
from engine.model.decoder import Decoder
from engine.model.experts import Experts
from engine.model.latent import LatentAttention
from engine.model.layers import MLP, Attention, Linear, Norm, QKNorm, Table
from engine.model.rotary import Rotary, rope_magnitude
from engine.weights.formats import (
    FLOATING,
    GroupedLinear,
    PackedTable,
    linear_layers,
    packed,
)
from engine.weights.uncompiled import prepack, widen_packed

CompileMode = Literal["auto", "off", "on"]
_ASK_S = 0.05
_MIN_BYTES_FOR_THREADS = 2_000_000  # a smaller model is read from the cache faster than threads can meet
MAX_ROWS = 32  # beyond, one large matrix product of the layers is as fast
_ACTIVATIONS = {name: code for code, name in enumerate(("relu", "silu", "gelu", "gelu_tanh", "relu2", "gelu_sigmoid"))}
_RMS_NORM, _LAYER_NORM = 1, 2  # 0: no norm
_Pointer, _Int, _Float, _Code = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class _Norm(ctypes.Structure):
    _fields_ = [
        ("weight", _Pointer), ("bias", _Pointer), ("width", _Int), ("apart", _Int), ("eps", _Float), ("kind", _Code),
    ]  # fmt: skip


class _Expert(ctypes.Structure):
    _fields_ = [("up", LinearRecord), ("down", LinearRecord)]


class _Latent(ctypes.Structure):
    _fields_ = [("query_norm", _Norm), ("query", LinearRecord), ("kv_up", LinearRecord)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("qkv", LinearRecord), ("output", LinearRecord), ("latent", _Latent), ("mlp", _Expert),
        ("router", LinearRecord), ("experts", _Pointer), ("choice_bias", _Pointer), ("attention_norm", _Norm),
        ("mlp_norm", _Norm), ("post_attention_norm", _Norm), ("post_mlp_norm", _Norm), ("q_norm", _Norm),
        ("k_norm", _Norm), ("sinks", _Pointer), ("frequencies", _Pointer), ("long_frequencies", _Pointer),
        ("original_context", _Int), ("rotary_dim", _Int), ("window", _Int), ("rotary_scale", _Float),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", _Pointer), ("embedding", LinearRecord), ("positions", LinearRecord), ("head", LinearRecord),
        ("norm", _Norm), ("embedding_norm", _Norm), ("n_layers", _Int), ("hidden_size", _Int), ("vocab_size", _Int),
        ("n_heads", _Int), ("n_kv_heads", _Int), ("head_dim", _Int), ("value_dim", _Int), ("rotary_at", _Int),
        ("rotary_dim", _Int), ("qkv_rows", _Int), ("own_nope", _Int), ("own_rope", _Int), ("own_value", _Int),
        ("inner_size", _Int), ("n_experts", _Int), ("n_active", _Int), ("n_groups", _Int), ("n_active_groups", _Int),
        ("group_best", _Int), ("attention_scale", _Float), ("embedding_scale", _Float), ("residual_scale", _Float),
        ("logit_scale", _Float), ("expert_scale", _Float), ("attention_cap", _Float), ("logit_cap", _Float),
        ("swiglu_limit", _Float), ("activation", _Code), ("gated", _Code), ("parallel", _Code), ("normalized", _Code),
        ("sigmoid", _Code), ("tiles", _Code),
    ]  # fmt: skip


class _Store(ctypes.Structure):
    _fields_ = [("values", _Pointer), ("scales", _Pointer), ("slots", _Int)]


class _Step(ctypes.Structure):
    _fields_ = [
        ("ids", _Pointer), ("past", _Pointer), ("padding", _Pointer), ("stores", _Pointer), ("logits", _Pointer),
        ("scratch", _Pointer), ("batch", _Int), ("threads", _Code), ("cache_format", _Code), ("sequence", _Code),
    ]  # fmt: skip


def unsupported(decoder: Decoder) -> str | None:
    """Why this decoder has no compiled step; None when it has one."""
    config = decoder.config
    if decoder.device.type != "cpu":
        return "it runs on the CPU only"
    if decoder.dtype not in FLOATING:
        return "it computes in float32; float64 was asked for"
    if config.recurrent is not None:
        return "recurrent layers run one by one"
    if config.positions == "alibi":
        return "layers with positions by ALiBi run one by one"
    return None


class CompiledStep:
    """``step(ids, cache)`` is one decode step: ids (B, T) int64 -> logits (B, T, V) float32, B or T is 1.

    It writes the new tokens' keys and values after those the cache holds; who calls advances the count. More than
    ``max_rows`` rows of a batch, or tokens of a row, are not for it. It keeps the memory it points into.
    """

    max_rows = MAX_ROWS

    def __init__(self, decoder: Decoder, library: ctypes.CDLL) -> None:
        _check_records(library)
        self.config = decoder.config
        self._library = library
        self._kept: list[Tensor] = []
        self._records: list[LinearRecord | ctypes.Array[_Expert]] = []  # that others point at
        self._layers = (_Layer * decoder.config.n_layers)(
            *[self._layer(decoder, i) for i in range(len(decoder.blocks))]
        )
        self._model = self._make_model(decoder)
        self._small = sum(t.nbytes for t in self._kept) < _MIN_BYTES_FOR_THREADS
        self._call = library.decode_step
        self._call.restype, self._call.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
        self._model_address = ctypes.addressof(self._model)
        self._steps: dict[int, _BoundStep] = {}  # on one cache, by the tokens that follow each other

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

    def _make_model(self, decoder: Decoder) -> _Model:
        c = decoder.config
        table = decoder.position_embedding
        return _Model(
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

    def _layer(self, decoder: Decoder, index: int) -> _Layer:
        block, kind = decoder.blocks[index], decoder.config.layer(index)
        attention = block.attention
        assert isinstance(attention, Attention | LatentAttention)  # `unsupported` has seen to it
        return _Layer(
            **self._attention(attention, decoder.config),
            **self._mlp(block.mlp),
            **self._norms(block),
            **self._positions(decoder.rotaries[attention.kind], kind.rope),
            window=kind.window or 0,
        )

    def _norms(self, block: AnyBlock) -> dict[str, Any]:
        """The norms that a block has, which depends on its kind."""
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
            "latent": _Latent(
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
            "mlp": self._expert(mlp.shared) if mlp.shared is not None else _Expert(),
            "router": self._linear(mlp.router, *gate),
            "experts": self._all_experts(mlp),
            "choice_bias": self._keep(mlp.choice_bias.float()) if mlp.choice_bias is not None else None,
        }

    def _expert(self, mlp: MLP) -> _Expert:
        return _Expert(up=self._linear(mlp.up), down=self._linear(mlp.down))

    def _all_experts(self, routed: Experts) -> int:
        records = (_Expert * len(routed.experts))(*map(self._expert, routed.experts))
        self._records.append(records)
        return ctypes.addressof(records)

    def _qk_norms(self, norm: QKNorm | None, config: ModelConfig) -> tuple[_Norm, _Norm]:
        if norm is None:
            return _Norm(), _Norm()
        n_heads, size = [config.n_heads, config.n_kv_heads], config.head_dim
        weights = (None, None) if norm.weights is None else torch.split(norm.weights.float(), n_heads)
        q_norm, k_norm = (
            _Norm(
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
        """Layers that read the same input, as a chain of matrices whose outputs lie side by side."""
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

    def _norm(self, norm: Norm | None) -> _Norm:
        if norm is None:
            return _Norm()
        weight, bias = (self._keep(part.float()) if part is not None else None for part in (norm.weight, norm.bias))
        kind = _LAYER_NORM if norm.centred else _RMS_NORM
        return _Norm(weight=weight, bias=bias, width=norm.shape[0], eps=norm.eps, kind=kind)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class _BoundStep:
    """The record of a step on one cache, filled once; a step then changes three pointers' worth of it."""

    def __init__(self, cache: KeysValues, n_new: int, threads: int, scratch: Tensor) -> None:
        self.cache = weakref.ref(cache)
        self.threads = threads
        self._scratch = scratch
        self._stores = (_Store * len(cache.stores))(*map(_store, cache.stores))
        rows = cache.batch_size * n_new
        self.past = (ctypes.c_int64 * rows)()
        self._padding = cache.padding.contiguous() if cache.padding is not None else None
        self.record = _Step(
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


def _store(store: Store) -> _Store:
    scales = store.scales.data_ptr() if store.scales is not None else None
    return _Store(values=store.values.data_ptr(), scales=scales, slots=store.values.size(-2))


def _attention_sizes(config: ModelConfig) -> dict[str, int]:
    """Heads as they attend: of latent attention to one vector for each token, whose first numbers are its value."""
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
    """The largest inner width of a row: of its MLP, or of all experts it goes through."""
    experts = config.experts
    if experts is None:
        return config.intermediate_size
    return max(config.intermediate_size, experts.shared_size, experts.n_active * experts.intermediate_size)


def _check_records(library: ctypes.CDLL) -> None:
    """Refuse a library whose structs are not those above (a compiler with other rules of layout)."""
    sizes = library.record_bytes
    sizes.restype, sizes.argtypes = ctypes.c_int64, [ctypes.c_int32]
    records: Sequence[Any] = (LinearRecord, _Expert, _Layer, _Model, _Store, _Step)
    if [sizes(i) for i in range(len(records))] != [ctypes.sizeof(record) for record in records]:
        raise BuildError("the compiled step's records do not match")


class Compilation:
    """The compiled step of one decoder: not there, being built, ready or failed.

    ``note``: one sentence on why the layers run one by one; empty where they do not.
    """

    def __init__(self, decoder: Decoder, mode: CompileMode) -> None:
        self.note = ""
        self._decoder = decoder
        self._dropped = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        reason = "it is switched off" if mode == "off" else unsupported(decoder)
        if reason is not None:
            self.note = f"no compiled step: {reason}"
            if mode == "on":
                raise EngineError(self.note)
            return
        library = cached_library()
        if library is not None:
            self._install(decoder, library)
        elif mode == "on":
            self._build(decoder, build_library)
            if decoder.decode_step is None:
                raise EngineError(self.note)
        else:
            waits = any(isinstance(layer, GroupedLinear) for layer in linear_layers(decoder))
            meanwhile = "packed weights wait for it" if waits else "the layers run one by one until it is ready"
            self.note = f"the decode step is being compiled; {meanwhile}"
            self._thread = threading.Thread(target=self._build, args=(decoder, build_apart), daemon=True)
            self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether it is being built."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the build has ended, well or not."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def wait_unless(self, should_stop: Callable[[], bool]) -> None:
        """Return when the build has ended, well or not. Raises Stopped; the build goes on, for the next time."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(_ASK_S)
            if should_stop():
                raise Stopped

    def drop(self) -> None:
        """Take the step away again; one that is still being built is not used."""
        with self._lock:
            self._dropped = True
            self._decoder.decode_step = None

    def _build(self, decoder: Decoder, build: Callable[[], ctypes.CDLL]) -> None:
        try:
            self._install(decoder, build())
        except BuildError as error:
            self.note = f"no compiled step: {error.message}{widen_packed(decoder)}"
            prepack(decoder)

    def _install(self, decoder: Decoder, library: ctypes.CDLL) -> None:
        step = CompiledStep(decoder, library)
        with self._lock:
            decoder.decode_step = None if self._dropped else step
        scratch = Scratch()
        for layer in linear_layers(decoder):
            if isinstance(layer, GroupedLinear):
                layer.unpack = [compiled_unpack(part, library, scratch) for part in layer.parts]
                if all(part.scales is not None for part in layer.parts):
                    layer.product = CompiledProduct(layer.parts, library, scratch)
        if isinstance(decoder.embedding, PackedTable):
            decoder.embedding.unpack = compiled_unpack(decoder.embedding.part, library, scratch)
        self.note = ""


def attach(decoder: Decoder, mode: CompileMode = "auto") -> Compilation:
    """Give the decoder its compiled step: at once when it was built before, else when a background build is done.

    "on" waits, and raises EngineError when there is none to be had; "off" leaves the decoder as it is.
    """
    return Compilation(decoder, mode)
