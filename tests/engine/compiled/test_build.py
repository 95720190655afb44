"""Building, keeping and finding the compiled step, and what is said while or when there is none."""

import ctypes
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from engine.compiled import build
from engine.compiled.attach import attach, unsupported
from engine.errors import EngineError
from engine.families.registry import config_from_hf
from engine.model.decoder import Decoder
from engine.model.layers import Linear
from engine.model.made_weights import random_weights
from engine.process.events import Loaded
from engine.process.held import HeldModel
from engine.records import Load
from engine.weights.formats import FormatMaker, GroupedLinear, PrepackedLinear, linear_layers
from tests.engine.gguf_files import write_gguf
from tests.engine.hf_configs import document
from tests.engine.models import llama_config

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in build.COMPILERS), reason="there is no C++ compiler"
)


def test_what_it_does_not_run_is_said() -> None:
    config = config_from_hf(document("lfm2"))
    decoder = Decoder(config, random_weights(config))
    assert attach(decoder).note == "no compiled step: recurrent layers run one by one"
    assert decoder.decode_step is None
    double = Decoder(llama_config(), random_weights(llama_config(), dtype=torch.float64))
    assert "float64" in (unsupported(double) or "")
    with pytest.raises(EngineError, match="float64"):
        attach(double, "on")


def test_switched_off() -> None:
    decoder = Decoder(llama_config(), random_weights(llama_config()))
    assert attach(decoder, "off").note == "no compiled step: it is switched off"
    assert decoder.decode_step is None


@pytest.mark.slow
def test_failed_build_is_said_and_survived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", shutil.which("false") or "false")
    decoder = Decoder(llama_config(), random_weights(llama_config()))
    compilation = attach(decoder)
    assert "being compiled" in compilation.note or "compiler failed" in compilation.note
    decoder.forward(torch.tensor([[1]]), decoder.new_cache(1))
    compilation.wait()
    assert compilation.note.startswith("no compiled step: the C++ compiler failed (1)")
    assert decoder.decode_step is None
    assert list((tmp_path / "compiled").glob("*.so")) == []


@pytest.mark.slow
def test_a_build_outlives_the_run_that_began_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSCOPE_CACHE", str(tmp_path))
    program = (
        "import torch; from engine.compiled.attach import attach; "
        "from engine.model.decoder import Decoder; from engine.model.made_weights import random_weights; "
        "from tests.engine.models import llama_config;"
        "c = llama_config(); d = Decoder(c, random_weights(c)); print(attach(d).note); import time; time.sleep(0.2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the decode step is being compiled")
    assert build.cached_library() is None
    decoder = Decoder(llama_config(), random_weights(llama_config()))
    attach(decoder).wait()  # another builder, which finds the lock taken
    assert decoder.decode_step is not None
    assert len(list((tmp_path / "compiled").glob("step-*.so"))) == 1


@pytest.mark.slow
def test_a_step_that_is_not_wanted_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(llama_config(), random_weights(llama_config()))
    attach(decoder, "on")
    library = build.cached_library()
    assert library is not None
    begun = threading.Event()

    def slow() -> ctypes.CDLL:
        begun.wait(10)
        return library

    monkeypatch.setattr("engine.compiled.attach.cached_library", lambda: None)
    monkeypatch.setattr("engine.compiled.attach.build_apart", slow)
    compilation = attach(decoder)
    compilation.drop()
    begun.set()
    compilation.wait()
    assert decoder.decode_step is None


def test_packed_weights_wait_for_their_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what is waited for is told before."""
    library = build.build_library()
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind="Q4_0")
    built = threading.Event()

    def slow() -> ctypes.CDLL:
        built.wait(10)
        return library

    monkeypatch.setattr("engine.compiled.attach.cached_library", lambda: None)
    monkeypatch.setattr("engine.compiled.attach.build_apart", slow)
    notes = []
    for event in HeldModel().hold(Load(request_id=1, model=str(path)), lambda: False):
        if isinstance(event, Loaded):
            notes.append(event.model.step_note)
            built.set()
    assert notes == ["the decode step is being compiled; packed weights wait for it", ""]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSCOPE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    decoder = Decoder(llama_config(), random_weights(llama_config()))
    compilation = attach(decoder)
    compilation.wait()
    assert compilation.note == "no compiled step: there is no C++ compiler (c++, g++, clang++)"


def test_two_builders_make_one_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSCOPE_CACHE", str(tmp_path))
    source = tmp_path / "source" / "small.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int answer() { return 42; }')
    assert build.cached_library(source) is None
    libraries: list[ctypes.CDLL] = []
    builders = [threading.Thread(target=lambda: libraries.append(build.build_library(source))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [library.answer() for library in libraries] == [42, 42]
    assert len(list((tmp_path / "compiled").glob("step-*.so"))) == 1
    assert build.cached_library(source) is not None


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_library_is_built_again(keep: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Emptied, cut short, or with one byte changed: loading it would fail for ever, or end the process."""
    monkeypatch.setenv("KVSCOPE_CACHE", str(tmp_path))
    source = tmp_path / "source" / "small.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int answer() { return 43; }')
    build.build_library(source)
    (path,) = (tmp_path / "compiled").glob("step-*.so")
    whole = path.read_bytes()
    path.unlink()  # not in place: this process has it mapped
    path.write_bytes(whole[:keep] if keep >= 0 else bytes([*whole[:-1], whole[-1] ^ 1]))
    assert build.cached_library(source) is None
    assert build.build_library(source).answer() == 43
    assert path.read_bytes() == whole
    assert build.cached_library(source) is not None


def test_a_cache_folder_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVSCOPE_CACHE", str(tmp_path / "file"))
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int answer() { return 44; }')
    assert build.cached_library(source) is None
    with pytest.raises(build.BuildError, match="could not be stored or loaded"):
        build.build_library(source)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this processor does not multiply bfloat16")
def test_without_a_compiler_bfloat16_matrices_are_reordered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sums of either order are rounded to bfloat16 once, so a few logits differ by a step of that."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16, qkv_bias=True)
    plain, reordered = (Decoder(config, random_weights(config, dtype=torch.bfloat16)) for _ in range(2))
    attach(reordered).wait()
    assert isinstance(reordered.head, PrepackedLinear)
    assert reordered.decode_step is None
    ids = torch.randint(config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
    expected, got = plain.forward(ids).float(), reordered.forward(ids).float()
    step = torch.finfo(torch.bfloat16).eps * expected.abs().max().item()
    torch.testing.assert_close(got, expected, atol=4 * step, rtol=0)


@pytest.mark.parametrize("free", [1 << 40, 1000, None])
def test_without_a_compiler_packed_matrices_are_widened_once(
    free: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where memory allows; and what is done is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("engine.weights.uncompiled.available_bytes", lambda: free)
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16, qkv_bias=True)
    weights = random_weights(config)
    packed, widened = (Decoder(config, weights, linear=FormatMaker("int4", weights)) for _ in range(2))
    compilation = attach(widened)
    compilation.wait()
    is_wide = free == 1 << 40
    assert all(isinstance(layer, Linear if is_wide else GroupedLinear) for layer in linear_layers(widened))
    n_bytes = 4 * (2 * (64 * (4 + 2 + 2) * 16 + 64 * 64 + 3 * 64 * 96) + 64 * 29)
    size = f"{n_bytes / 1e9:.2f} GB"
    said = (
        f"dequantized to float32, {size}"
        if is_wide
        else f"for every token, which is slow (dequantized once, they would take {size}"
    )
    assert said in compilation.note
    ids = torch.tensor([[3, 1, 4]])
    torch.testing.assert_close(widened.forward(ids), packed.forward(ids), atol=1e-5, rtol=0)


def test_unknown_instructions_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSCOPE_INSTRUCTIONS", "sse2")
    with pytest.raises(
        build.BuildError, match=r'"sse2" is not known; use native, without-amx, without-vnni, without-avx512, baseline'
    ):
        build.build_library()


def test_name_of_the_library_follows_source_compiler_and_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = build.find_compiler()
    names = {build._library_path(build.SOURCE, compiler), build._library_path(build.SOURCE, [*compiler, "-O1"])}
    for changed in ("step.cpp", "numbers.h"):
        copy = Path(shutil.copytree(build.SOURCE.parent, tmp_path / changed))
        (copy / changed).write_text((copy / changed).read_text() + "\n// changed\n")
        names.add(build._library_path(copy / "step.cpp", compiler))
    for limit in build.LIMITS:
        monkeypatch.setenv("KVSCOPE_INSTRUCTIONS", limit)
        names.add(build._library_path(build.SOURCE, compiler))
    assert len(names) == 4 + len(build.LIMITS) - 1  # "native" is what the first was
