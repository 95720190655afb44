"""Small models of every architecture of llama.cpp, against what llama.cpp itself allocates for them.

``llama_cpp_headers.json`` has a line for each: the metadata and tensors that llama.cpp asked for when it loaded a file
that had none (the wheel xllamacpp 2026.10.11549; it names each missing key and tensor, and its shape), and what it then
printed for 65,536 tokens in F16: cells, layers and MiB of each cache, MiB of the recurrent state
(``bench/llama_cpp_headers.py`` repeats that).
"""

import json
from fractions import Fraction
from math import prod
from pathlib import Path

import pytest

from calc.model.cache import cache_elements, index_elements
from calc.model.count import parameters
from calc.sources import load_model
from calc.sources.gguf.architectures import BY_LAYERS
from tests.calc import gguf_headers as g

LINES = json.loads((Path(__file__).parent / "llama_cpp_headers.json").read_text())
TOKENS, BATCH, MIB = 65_536, 512, 2**20
INDEX_VALUES = {"glm5-next": 64, "minimax-m3": 64}
"""What llama.cpp allocates beside the indexer's key: two more rows of its width, or a row of V that nothing reads."""


def shape(text):
    return tuple(map(int, text.split("x")))


def load(path, arch, line):
    outer = {name: shape(text) for name, text in line["outer"].items()}
    layers = [{name: shape(text) for name, text in line["kinds"][kind].items()} for kind in line["order"]]
    named = {f"blk.{i}.{name}": own for i, layer in enumerate(layers) for name, own in layer.items()}
    tensors = [(name, own, g.F32 if len(own) == 1 else g.F16) for name, own in (outer | named).items()]
    model = load_model(str(g.write_header(path, arch, line["meta"], tensors)))
    assert parameters(model).total == sum(prod(own) for name, own, _ in tensors if "rope_" not in name)
    return model


def cells(window):
    """llama.cpp's cells of a window: with a batch, padded to 256."""
    return min(TOKENS, -(-(window + BATCH) // 256) * 256)


def cache_mib(arch, model):
    kept = cache_elements(model)
    indexed = sum(1 for layer in model.layers for mixer in layer.mixers if mixer.index_elements)
    whole = kept.full + kept.latent + index_elements(model) + indexed * INDEX_VALUES.get(arch, 0)
    windows = sum(elements * cells(window) for window, elements in kept.windowed.items())
    return Fraction(2 * (whole * TOKENS + windows), MIB)


def state_mib(model):
    """In F32; of a convolution's inputs llama.cpp keeps one less than the kernel."""
    mixers = [mixer for layer in model.layers for mixer in layer.mixers]
    elements = sum(mixer.state_elements - getattr(mixer, "conv_channels", 0) for mixer in mixers)
    return Fraction(4 * elements, MIB)


@pytest.mark.parametrize("arch", sorted(LINES))
def test_cache_and_state_are_what_llama_cpp_allocates(arch, tmp_path):
    line = LINES[arch]
    model = load(tmp_path / "m.gguf", arch, line)
    assert float(cache_mib(arch, model)) == pytest.approx(sum(mib for _, _, mib in line["cache"]), abs=0.01)
    assert float(state_mib(model)) == pytest.approx(line["state"], abs=0.02 if arch == "plamo2" else 0.006)


def test_an_indexer_of_pools_picks_tokens(tmp_path):
    """GLM-5.3 attends to top_k tokens, as many pools of kpool as hold them: not to the whole context."""
    model = load(tmp_path / "m.gguf", "glm5-next", LINES["glm5-next"])
    reads = [mixer.attended() for layer in model.layers for mixer in layer.mixers]
    assert {read.chosen for read in reads if read is not None} == {64}


def test_every_architecture_is_here():
    """llama.cpp has a name for gptj, and does not load it; Apertus asks for keys without its name."""
    assert BY_LAYERS - set(LINES) == {"gptj", "apertus"}
