"""Whether and when a decoder gets a compiled step: already built, being built, ready or failed.

`attach` is the entry point: it sets ``decoder.decode_step`` as soon as the library is available.
"""

import ctypes
import threading
from collections.abc import Callable

from engine.compiled.build import BuildError, build_apart, build_library, cached_library
from engine.compiled.matrices import CompiledProduct, Scratch, compiled_unpack
from engine.compiled.step import CompiledStep
from engine.errors import EngineError, Stopped
from engine.model.decoder import Decoder
from engine.records import CompileMode
from engine.weights.formats import FLOATING, GroupedLinear, PackedTable, linear_layers
from engine.weights.uncompiled import prepack, widen_packed

_ASK_S = 0.05


def unsupported(decoder: Decoder) -> str | None:
    """Why this decoder has no compiled step; None when it has one."""
    config = decoder.config
    if decoder.device.type != "cpu":
        return "it runs on the CPU only"
    if decoder.dtype not in FLOATING:
        return "it computes in float32, but float64 was requested"
    if config.recurrent is not None:
        return "recurrent layers run one by one"
    if config.positions == "alibi":
        return "layers with positions by ALiBi run one by one"
    if config.experts is not None and config.experts.jitter is not None:
        return "experts that are chosen sequentially (SparseMixer) run one by one"
    if config.sub_norms or config.byte_inputs:
        return "layers of BitNet run one by one"
    if config.activation == "xielu":
        return "layers with weights in their activation (xIELU) run one by one"
    if config.qk_norm_late:
        return "layers that normalize queries and keys after rotation run one by one"
    return None


class Compilation:
    """The compiled step of one decoder: absent, being built, ready or failed.

    ``note``: one sentence on why the layers run one by one; empty if they do not.
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
        """Return when the build has ended, successfully or not."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def wait_unless(self, should_stop: Callable[[], bool]) -> None:
        """Return when the build has ended, successfully or not. Raises Stopped; the build continues, for the next
        time."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(_ASK_S)
            if should_stop():
                raise Stopped

    def drop(self) -> None:
        """Remove the step; one that is still being built will not be used."""
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
    """Give the decoder its compiled step: at once if it is already built, else when the background build is done.

    "on" waits, and raises EngineError if there is none; "off" leaves the decoder unchanged.
    """
    return Compilation(decoder, mode)
