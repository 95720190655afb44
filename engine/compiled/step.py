"""The decode step of a decoder through step.cpp: its weights as C records, called with pointers.

`attach` is the way in: it sets ``decoder.decode_step`` as soon as the library is there.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from engine.block import SandwichBlock
from engine.cache import KVCache
from engine.compiled.build import BuildError, build_library, cached_library
from engine.config import LongRopeScaling, ModelConfig
from engine.errors import EngineError, Stopped
from engine.formats import CODES, packed, prepack
from engine.layers import MLP, Attention, Linear, Norm
from engine.model import Decoder
from engine.rotary import rope_magnitude

CompileMode = Literal["auto", "off", "on"]
_ASK_S = 0.05
_MIN_BYTES_FOR_THREADS = 2_000_000  # a smaller model is read from the cache faster than threads can meet
MAX_ROWS = 32  # beyond, one large matrix product of the layers is as fast
_FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATIONS = {"relu": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}
_Pointer, _Int, _Float, _Code = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weight", _Pointer), ("scales", _Pointer), ("bias", _Pointer), ("rows", _Int), ("cols", _Int),
        ("format", _Code),
    ]  # fmt: skip


class _Norm(ctypes.Structure):
    _fields_ = [("weight", _Pointer), ("bias", _Pointer)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("qkv", _Linear), ("output", _Linear), ("up", _Linear), ("down", _Linear),
        ("attention_norm", _Norm), ("mlp_norm", _Norm), ("post_attention_norm", _Norm), ("post_mlp_norm", _Norm),
        ("q_norm", _Pointer), ("k_norm", _Pointer), ("frequencies", _Pointer), ("window", _Int),
    ]  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", _Pointer), ("embedding", _Linear), ("positions", _Linear), ("head", _Linear), ("norm", _Norm),
        ("n_layers", _Int), ("hidden_size", _Int), ("n_heads", _Int), ("n_kv_heads", _Int), ("head_dim", _Int),
        ("rotary_dim", _Int), ("intermediate_size", _Int), ("vocab_size", _Int),
        ("norm_eps", _Float), ("attention_scale", _Float), ("embedding_scale", _Float), ("rotary_scale", _Float),
        ("attention_cap", _Float), ("logit_cap", _Float),
        ("activation", _Code), ("gated", _Code), ("cache_format", _Code),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("ids", _Pointer), ("past", _Pointer), ("cache", _Pointer), ("logits", _Pointer), ("scratch", _Pointer),
        ("batch", _Int), ("capacity", _Int), ("threads", _Code),
    ]  # fmt: skip


def unsupported(decoder: Decoder) -> str | None:
    """Why this decoder has no compiled step; None when it has one."""
    config = decoder.config
    if decoder.device.type != "cpu":
        return "it runs on the CPU only"
    if decoder.dtype not in _FLOATS:
        return "it computes in float32; float64 was asked for"
    if config.experts is not None or config.latent is not None:
        return "experts and latent attention run layer by layer"
    if config.sinks or config.swiglu_limit is not None:
        return "attention sinks and clamped activations run layer by layer"
    ropes = [kind.rope for kind in decoder.kinds if kind.rope is not None]
    if any(isinstance(rope.scaling, LongRopeScaling) for rope in ropes):
        return "positions that change with the context's length run layer by layer"
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
        self._layers = (_Layer * decoder.config.n_layers)(
            *[self._layer(decoder, i) for i in range(len(decoder.blocks))]
        )
        self._model = self._make_model(decoder)
        self._scratch: tuple[int, int, Tensor, ctypes.Array[ctypes.c_int64]] | None = None
        self._small = sum(t.nbytes for t in self._kept) < _MIN_BYTES_FOR_THREADS
        self._call = library.decode_step
        self._call.restype, self._call.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
        self._model_address = ctypes.addressof(self._model)
        self._step = _Step()
        self._step_address = ctypes.addressof(self._step)

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        batch = ids.size(0)
        threads = 1 if self._small else torch.get_num_threads()
        scratch, past = self._buffers(batch, threads)
        past[:] = [cache.length] * batch
        ids = ids.contiguous()
        logits = torch.empty(batch, 1, self.config.vocab_size)
        step = self._step
        step.ids, step.cache = ids.data_ptr(), cache.storage.data_ptr()
        step.logits, step.scratch = logits.data_ptr(), scratch.data_ptr()
        step.batch, step.capacity, step.threads = batch, cache.capacity, threads
        self._call(self._model_address, self._step_address)
        return logits

    def _buffers(self, batch: int, threads: int) -> tuple[Tensor, "ctypes.Array[ctypes.c_int64]"]:
        """Scratch memory and the counts of cached tokens, kept from step to step."""
        if self._scratch is None or self._scratch[:2] != (batch, threads):
            count = self._library.scratch_floats
            count.restype, count.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]
            floats = torch.zeros(count(self._model_address, batch, threads))
            past = (ctypes.c_int64 * batch)()
            self._step.past = ctypes.addressof(past)
            self._scratch = (batch, threads, floats, past)
        return self._scratch[2], self._scratch[3]

    def _make_model(self, decoder: Decoder) -> _Model:
        c = decoder.config
        rope = next((kind.rope for kind in decoder.kinds if kind.rope is not None), None)
        table = decoder.position_embedding
        return _Model(
            layers=ctypes.addressof(self._layers),
            embedding=self._linear(Linear(decoder.embedding)),
            positions=self._linear(Linear(table)) if table is not None else _Linear(),
            head=self._linear(decoder.head),
            norm=self._norm(decoder.norm),
            n_layers=c.n_layers, hidden_size=c.hidden_size, n_heads=c.n_heads, n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim, rotary_dim=rope.rotary_dim if rope is not None else 0,
            intermediate_size=c.intermediate_size, vocab_size=c.vocab_size,
            norm_eps=c.norm_eps, attention_scale=c.attention_scale, embedding_scale=decoder.embed_scale,
            rotary_scale=rope_magnitude(rope.scaling) if rope is not None else 1.0,
            attention_cap=c.attention_softcap or 0.0, logit_cap=c.logit_softcap or 0.0,
            activation=_ACTIVATIONS[c.activation], gated=c.gated_mlp, cache_format=_FLOATS[decoder.dtype],
        )  # fmt: skip

    def _layer(self, decoder: Decoder, index: int) -> _Layer:
        block, kind = decoder.blocks[index], decoder.config.layer(index)
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, Attention)  # `unsupported` has seen to it
        assert isinstance(mlp, MLP)
        rotary = decoder.rotaries[attention.kind]
        sandwich = block if isinstance(block, SandwichBlock) else None
        q_norm, k_norm = self._qk_norms(attention, decoder.config)
        return _Layer(
            qkv=self._linear(attention.qkv),
            output=self._linear(attention.output),
            up=self._linear(mlp.up),
            down=self._linear(mlp.down),
            attention_norm=self._norm(block.attention_norm),
            mlp_norm=self._norm(block.mlp_norm),
            post_attention_norm=self._norm(sandwich.post_attention_norm) if sandwich else _Norm(),
            post_mlp_norm=self._norm(sandwich.post_mlp_norm) if sandwich else _Norm(),
            q_norm=q_norm,
            k_norm=k_norm,
            frequencies=self._keep(rotary.inverse_frequencies) if rotary is not None else None,
            window=kind.window or 0,
        )

    def _qk_norms(self, attention: Attention, config: ModelConfig) -> tuple[int | None, int | None]:
        rows = attention.qk_norm
        if rows is None:
            return None, None
        return self._keep(rows[0].float()), self._keep(rows[config.n_heads].float())

    def _linear(self, layer: object) -> _Linear:
        weight = packed(layer)
        return _Linear(
            weight=self._keep(weight.values),
            scales=self._keep(weight.scales) if weight.scales is not None else None,
            bias=self._keep(weight.bias.float()) if weight.bias is not None else None,
            rows=weight.rows,
            cols=weight.cols,
            format=CODES[weight.format],
        )

    def _norm(self, norm: Norm) -> _Norm:
        bias = self._keep(norm.bias.float()) if norm.bias is not None else None
        return _Norm(weight=self._keep(norm.weight.float()), bias=bias)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


def _check_records(library: ctypes.CDLL) -> None:
    """Refuse a library whose structs are not those above (a compiler with other rules of layout)."""
    sizes = library.record_bytes
    sizes.restype, sizes.argtypes = ctypes.c_int64, [ctypes.c_int32]
    records: Sequence[Any] = (_Linear, _Layer, _Model, _Step)
    if [sizes(i) for i in range(len(records))] != [ctypes.sizeof(record) for record in records]:
        raise BuildError("the compiled step's records do not match")


class Compilation:
    """The compiled step of one decoder: not there, being built, ready or failed. ``note``: one sentence on it."""

    def __init__(self, decoder: Decoder, mode: CompileMode) -> None:
        self.note = ""
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
            self._build(decoder)
            if decoder.decode_step is None:
                raise EngineError(self.note)
        else:
            self.note = "the decode step is being compiled; the layers run one by one until it is ready"
            self._thread = threading.Thread(target=self._build, args=(decoder,), daemon=True)
            self._thread.start()

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

    def _build(self, decoder: Decoder) -> None:
        try:
            self._install(decoder, build_library())
        except BuildError as error:
            self.note = f"no compiled step: {error.message}"
            prepack(decoder)

    def _install(self, decoder: Decoder, library: ctypes.CDLL) -> None:
        decoder.decode_step = CompiledStep(decoder, library)
        self.note = "compiled decode step"


def attach(decoder: Decoder, mode: CompileMode = "auto") -> Compilation:
    """Give the decoder its compiled step: at once when it was built before, else when a background build is done.

    "on" waits, and raises EngineError when there is none to be had; "off" leaves the decoder as it is.
    """
    return Compilation(decoder, mode)
