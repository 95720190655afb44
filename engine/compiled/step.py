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
from engine.model.block import Block, SandwichBlock
from engine.model.cache import KeysValues, Store
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.experts import Experts
from engine.model.layers import MLP, Attention, Linear, Norm, Table
from engine.model.rotary import rope_magnitude
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
_ACTIVATIONS = {"relu": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}
_Pointer, _Int, _Float, _Code = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class _Norm(ctypes.Structure):
    _fields_ = [("weight", _Pointer), ("bias", _Pointer)]


class _Expert(ctypes.Structure):
    _fields_ = [("up", LinearRecord), ("down", LinearRecord)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("qkv", LinearRecord), ("output", LinearRecord), ("mlp", _Expert), ("router", LinearRecord),
        ("experts", _Pointer), ("attention_norm", _Norm), ("mlp_norm", _Norm), ("post_attention_norm", _Norm),
        ("post_mlp_norm", _Norm), ("q_norm", _Pointer), ("k_norm", _Pointer), ("sinks", _Pointer),
        ("frequencies", _Pointer),
        ("long_frequencies", _Pointer), ("original_context", _Int), ("window", _Int),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", _Pointer), ("embedding", LinearRecord), ("positions", LinearRecord), ("head", LinearRecord),
        ("norm", _Norm), ("n_layers", _Int), ("hidden_size", _Int), ("n_heads", _Int), ("n_kv_heads", _Int),
        ("head_dim", _Int), ("rotary_dim", _Int), ("vocab_size", _Int), ("inner_size", _Int), ("n_experts", _Int),
        ("n_active", _Int),
        ("norm_eps", _Float), ("attention_scale", _Float), ("embedding_scale", _Float), ("rotary_scale", _Float),
        ("attention_cap", _Float), ("logit_cap", _Float), ("swiglu_limit", _Float), ("expert_scale", _Float),
        ("activation", _Code), ("gated", _Code), ("normalized", _Code), ("tiles", _Code),
    ]  # fmt: skip


class _Store(ctypes.Structure):
    _fields_ = [("values", _Pointer), ("scales", _Pointer), ("slots", _Int)]


class _Step(ctypes.Structure):
    _fields_ = [
        ("ids", _Pointer), ("past", _Pointer), ("padding", _Pointer), ("stores", _Pointer), ("logits", _Pointer),
        ("scratch", _Pointer), ("batch", _Int), ("threads", _Code), ("cache_format", _Code),
    ]  # fmt: skip


def unsupported(decoder: Decoder) -> str | None:
    """Why this decoder has no compiled step; None when it has one."""
    config = decoder.config
    if decoder.device.type != "cpu":
        return "it runs on the CPU only"
    if decoder.dtype not in FLOATING:
        return "it computes in float32; float64 was asked for"
    if config.rarity is not None:
        return f"{config.rarity} run layer by layer"
    if config.latent is not None:
        return "latent attention runs layer by layer"
    if config.experts is not None and (config.experts.n_groups > 1 or config.post_norms):
        return "experts in groups, or with norms after them, run layer by layer"
    ropes = [kind.rope for kind in decoder.kinds if kind.rope is not None]
    if len({(rope.rotary_dim, rope_magnitude(rope.scaling)) for rope in ropes}) > 1:
        return "layers that turn different parts of a head run layer by layer"
    return None


class CompiledStep:
    """``step(ids, cache)`` is one decode step: ids (B, 1) int64 -> logits (B, 1, V) float32.

    It writes the new token's keys and values after those the cache holds; the decoder advances the count. Batches
    of more than ``max_rows`` rows are not for it. It keeps the memory it points into.
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
        self._step: _BoundStep | None = None

    def __call__(self, ids: Tensor, cache: KeysValues) -> Tensor:
        threads = 1 if self._small else torch.get_num_threads()
        step = self._step
        if step is None or step.cache() is not cache or step.threads != threads:
            step = self._step = _BoundStep(cache, threads, self._scratch(cache.batch_size, threads))
        ids = ids.contiguous()
        logits = torch.empty(cache.batch_size, 1, self.config.vocab_size)
        step.past[:] = [cache.length] * cache.batch_size
        step.record.ids, step.record.logits = ids.data_ptr(), logits.data_ptr()
        self._call(self._model_address, step.address)
        return logits

    def _scratch(self, batch: int, threads: int) -> Tensor:
        count = self._library.scratch_floats
        count.restype, count.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]
        return torch.zeros(count(self._model_address, batch, threads))

    def _make_model(self, decoder: Decoder) -> _Model:
        c = decoder.config
        rope = next((kind.rope for kind in decoder.kinds if kind.rope is not None), None)
        table, experts = decoder.position_embedding, c.experts
        return _Model(
            layers=ctypes.addressof(self._layers),
            embedding=self._table(decoder.embedding),
            positions=self._linear(Linear(table)) if table is not None else LinearRecord(),
            head=self._linear(decoder.head),
            norm=self._norm(decoder.norm),
            n_layers=c.n_layers, hidden_size=c.hidden_size, n_heads=c.n_heads, n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim, rotary_dim=rope.rotary_dim if rope is not None else 0,
            vocab_size=c.vocab_size, inner_size=_inner_size(c),
            n_experts=experts.n_experts if experts is not None else 0,
            n_active=experts.n_active if experts is not None else 0,
            norm_eps=c.norm_eps, attention_scale=c.attention_scale, embedding_scale=decoder.embed_scale,
            rotary_scale=rope_magnitude(rope.scaling) if rope is not None else 1.0,
            attention_cap=c.attention_softcap or 0.0, logit_cap=c.logit_softcap or 0.0,
            swiglu_limit=c.swiglu_limit or 0.0, expert_scale=experts.scale if experts is not None else 1.0,
            activation=_ACTIVATIONS[c.activation], gated=c.gated_mlp,
            normalized=experts is not None and experts.normalize,
            tiles=decoder.dtype == torch.bfloat16 and self._library.tiles_allowed(),
        )  # fmt: skip

    def _layer(self, decoder: Decoder, index: int) -> _Layer:
        block, kind = decoder.blocks[index], decoder.config.layer(index)
        attention, mlp = block.attention, block.mlp
        assert isinstance(block, Block)  # `unsupported` has seen to it
        assert isinstance(attention, Attention)
        routed = mlp if isinstance(mlp, Experts) else None
        plain = mlp.shared if isinstance(mlp, Experts) else mlp
        rotary = decoder.rotaries[attention.kind]
        long = rotary.long_frequencies if rotary is not None else None
        sandwich = block if isinstance(block, SandwichBlock) else None
        q_norm, k_norm = self._qk_norms(attention, decoder.config)
        return _Layer(
            qkv=self._linear(attention.qkv),
            output=self._linear(attention.output),
            mlp=self._expert(plain) if plain is not None else _Expert(),
            router=self._linear(routed.router) if routed is not None else LinearRecord(),
            experts=self._all_experts(routed) if routed is not None else None,
            attention_norm=self._norm(block.attention_norm),
            mlp_norm=self._norm(block.mlp_norm),
            post_attention_norm=self._norm(sandwich.post_attention_norm) if sandwich else _Norm(),
            post_mlp_norm=self._norm(sandwich.post_mlp_norm) if sandwich else _Norm(),
            q_norm=q_norm,
            k_norm=k_norm,
            sinks=self._keep(attention.sinks.float()) if attention.sinks is not None else None,
            frequencies=self._keep(rotary.inverse_frequencies) if rotary is not None else None,
            long_frequencies=self._keep(long) if long is not None else None,
            original_context=rotary.original_context if rotary is not None else 0,
            window=kind.window or 0,
        )

    def _expert(self, mlp: MLP) -> _Expert:
        return _Expert(up=self._linear(mlp.up), down=self._linear(mlp.down))

    def _all_experts(self, routed: Experts) -> int:
        records = (_Expert * len(routed.experts))(*map(self._expert, routed.experts))
        self._records.append(records)
        return ctypes.addressof(records)

    def _qk_norms(self, attention: Attention, config: ModelConfig) -> tuple[int | None, int | None]:
        rows = attention.qk_norm
        if rows is None:
            return None, None
        return self._keep(rows[0].float()), self._keep(rows[config.n_heads].float())

    def _linear(self, layer: object) -> LinearRecord:
        record: LinearRecord | None = None
        for part in reversed(packed(layer)):
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

    def _norm(self, norm: Norm) -> _Norm:
        bias = self._keep(norm.bias.float()) if norm.bias is not None else None
        assert norm.weight is not None  # as above
        return _Norm(weight=self._keep(norm.weight.float()), bias=bias)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


class _BoundStep:
    """The record of a step on one cache, filled once; a step then changes three pointers' worth of it."""

    def __init__(self, cache: KeysValues, threads: int, scratch: Tensor) -> None:
        self.cache = weakref.ref(cache)
        self.threads = threads
        self._scratch = scratch
        self._stores = (_Store * len(cache.stores))(*map(_store, cache.stores))
        self.past = (ctypes.c_int64 * cache.batch_size)()
        self._padding = cache.padding.contiguous() if cache.padding is not None else None
        self.record = _Step(
            past=ctypes.addressof(self.past),
            padding=self._padding.data_ptr() if self._padding is not None else None,
            stores=ctypes.addressof(self._stores),
            scratch=scratch.data_ptr(),
            batch=cache.batch_size,
            threads=threads,
            cache_format=CODES_OF_DTYPES[cache.stores[0].values.dtype],
        )
        self.address = ctypes.addressof(self.record)


def _store(store: Store) -> _Store:
    scales = store.scales.data_ptr() if store.scales is not None else None
    return _Store(values=store.values.data_ptr(), scales=scales, slots=store.values.size(3))


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
