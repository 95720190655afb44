"""Where a model runs: chosen by name, refused where it is not there, and the same numbers on a GPU."""

import subprocess
import sys

import pytest
import torch

from engine.commands.cli import parse, requests
from engine.errors import OptionError
from engine.generation_events import GenerationFinished
from engine.measure.kinds.benchmark import Benchmark
from engine.measure.kinds.evaluate import Evaluate
from engine.measure.kinds.formats import Formats
from engine.measure.rates import probe
from engine.model.decoder import Decoder
from engine.model.devices import check_devices, device_name, pick_device, rank_device, synchronize
from engine.model.made_weights import empty_weights, random_weights
from engine.model.shapes import n_parameters
from engine.process.events import Failed, Generate, Loaded
from engine.process.service import Service
from engine.records import CacheKind, Event, Load
from tests.engine.models import VARIANTS, llama_config

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")


def see(monkeypatch: pytest.MonkeyPatch, n_devices: int) -> None:
    """Let torch see so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_devices)


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 1)
    assert [pick_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    see(monkeypatch, 0)
    assert [pick_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(OptionError, match="torch finds no CUDA device; use cpu"):
        pick_device("cuda")
    with pytest.raises(OptionError, match='device "tpu" is not known; use auto, cpu or cuda'):
        pick_device("tpu")


def test_ranks_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 2)
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [rank_device("auto", rank) for rank in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert current == [0, 1]
    assert rank_device("cpu", 7) == torch.device("cpu")
    check_devices(torch.device("cuda"), 2)
    check_devices(torch.device("cpu"), 64)
    with pytest.raises(OptionError, match="tp 4 needs 4 CUDA devices, one per rank, but torch finds 2; use device cpu"):
        check_devices(torch.device("cuda"), 4)
    (failed,) = Service().answer(Load(tp=4))
    assert isinstance(failed, Failed)
    assert failed.message.startswith("tp 4 needs 4 CUDA devices")


def test_only_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchronize(torch.device("cpu"))
    assert waited == []
    synchronize(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert [device_name(torch.device(name)) for name in ("cpu", "cuda")] == ["cpu", "cuda, Some GPU"]


@no_cuda
@pytest.mark.parametrize(
    "request_",
    [
        Load(device="cuda"),
        Generate(prompt="a", device="cuda"),
        Benchmark(device="cuda"),
        Formats(device="cuda"),
        Evaluate(device="cuda"),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_gpu_that_is_not_there_is_refused(request_: Load) -> None:
    service = Service()
    list(service.answer(Load()))
    (failed,) = service.answer(request_)
    assert isinstance(failed, Failed)
    assert (failed.kind, "no CUDA device" in failed.message) == ("input", True)
    (loaded,) = service.answer(Load(device="cpu"))  # auto was cpu: the model that is held is the same
    assert isinstance(loaded, Loaded)
    assert loaded.model.device == "cpu"


@pytest.mark.parametrize("mode", ["generate", "evaluate", "kv_evaluate", "benchmark", "formats"])
def test_every_mode_takes_a_device(mode: str) -> None:
    words = ["--mode", mode, *(["--prompt", "a"] if mode == "generate" else [])]
    assert [request.device for request in requests(parse(words))] == ["auto"]  # type: ignore[union-attr]
    assert [request.device for request in requests(parse([*words, "--device", "cuda"]))] == ["cuda"]  # type: ignore[union-attr]


@no_cuda
@pytest.mark.slow
@pytest.mark.parametrize("program", ["engine", "tui"])
def test_the_command_line_says_it_in_one_sentence(program: str) -> None:
    words = ["--mode", "generate"] if program == "engine" else ["generate"]
    command = [sys.executable, "-m", program, *words, "--prompt", "a", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    said = "device cuda was requested, but torch finds no CUDA device; use cpu"
    assert done.stderr.splitlines() == [f"{'python -m engine' if program == 'engine' else 'kvscope generate'}: {said}"]


@pytest.mark.parametrize("name", [name for name in VARIANTS if "expert" not in name and name != "latent"])
@pytest.mark.parametrize("kind", ["full", "window", "int8"])
def test_nothing_is_made_on_another_device_than_the_weights(name: str, kind: CacheKind) -> None:
    """The meta device stands in for a GPU: it refuses to be mixed with the processor's tensors."""
    config = llama_config(**VARIANTS[name])
    decoder = Decoder(config, empty_weights(config))
    cache = decoder.new_cache(12, 2, kind=kind)
    meta = torch.device("meta")
    for n_new in (5, 3, 1):
        logits = decoder.forward(torch.zeros(2, n_new, dtype=torch.int64, device=meta), cache)
        assert (logits.device, tuple(logits.shape)) == (meta, (2, n_new, config.vocab_size))
    assert decoder.n_parameters == n_parameters(config)


@cuda
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["full", "window"])
def test_logits_on_a_gpu_are_those_of_the_processor(name: str, kind: CacheKind) -> None:
    config = llama_config(**VARIANTS[name])
    weights = random_weights(config, dtype=torch.float64, seed=1)
    here = Decoder(config, weights)
    there = Decoder(config, {name: tensor.cuda() for name, tensor in weights.items()})
    ids = torch.randint(0, config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(there.forward(ids.cuda()).cpu(), here.forward(ids), rtol=0, atol=1e-9)
    caches = [decoder.new_cache(12, 2, kind=kind) for decoder in (here, there)]
    for piece in torch.split(ids, [5, 4, 1, 1, 1], dim=1):
        expected, got = here.forward(piece, caches[0]), there.forward(piece.cuda(), caches[1])
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-9)


@cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_a_gpu_makes_the_tokens_of_the_processor(dtype: str) -> None:
    ask = {"prompt": "The king", "max_new_tokens": 8, "dtype": dtype, "compile": "off"}
    service = Service()
    answers: dict[str, Event] = {}
    for device in ("cpu", "cuda"):
        *events, answers[device] = service.answer(Generate(**ask, device=device))  # type: ignore[arg-type]
        loaded = next(event for event in events if isinstance(event, Loaded))
        assert loaded.model.device == device
    here, there = answers["cpu"], answers["cuda"]
    assert isinstance(here, GenerationFinished)
    assert isinstance(there, GenerationFinished)
    n_same = 8 if dtype == "float32" else 1  # 16 bits round differently on each
    assert there.ids[:n_same] == here.ids[:n_same]


@cuda
def test_a_gpus_speed_is_not_that_of_giving_it_work() -> None:
    config = llama_config(hidden_size=1024, intermediate_size=4096, head_dim=64)
    weights = {name: tensor.cuda() for name, tensor in random_weights(config).items()}
    rates = probe(Decoder(config, weights))
    assert rates is not None
    assert rates.read_bytes_per_s < 2e13  # more than any memory has
    assert rates.matmul_flops_per_s < 1e16
