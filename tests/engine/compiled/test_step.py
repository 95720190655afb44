"""The compiled decode step against the layers run one by one, for every kind of model both can run."""

import itertools
import shutil
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.compiled import build
from engine.compiled.attach import attach
from engine.compiled.matrices import CompiledProduct, Scratch
from engine.compiled.step import MAX_ROWS
from engine.families.registry import config_from_hf
from engine.model.config import (
    DynamicRopeScaling,
    ExpertsConfig,
    LatentConfig,
    LongRopeScaling,
    ModelConfig,
    QueryGrowth,
)
from engine.model.decoder import Decoder
from engine.model.generate import GenerationOptions, generate
from engine.model.layers import Linear, LinearMaker, Weights
from engine.model.made_weights import random_weights
from engine.records import CacheKind
from engine.weights.formats import (
    FormatMaker,
    GroupedLinear,
    Packed,
    PackedTable,
    QuantizedFormat,
    WeightFormat,
    fill,
    linear_layers,
    panel_form,
    unpack,
)
from engine.weights.panels import FORMS, PANEL_FORMS, Groups, Piece, widened
from tests.engine.hf_configs import FAMILIES, document
from tests.engine.models import VARIANTS, llama_config

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in build.COMPILERS), reason="there is no C++ compiler"
)
TAKEN_AWAY = {
    "without-amx": "amx_tile",
    "without-vnni": "avx512_vnni",
    "without-avx512": "avx512f",
    "baseline": "avx2",
}  # names in /proc/cpuinfo


PATHS = [limit if limit == "native" else pytest.param(limit, marks=pytest.mark.slow) for limit in build.LIMITS]


@pytest.fixture(params=PATHS, autouse=True)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test on the code of this processor, and of those that lack what this one has."""
    taken_away = TAKEN_AWAY.get(request.param)
    if taken_away is not None and taken_away not in build._cpu().split():
        pytest.skip(f"this processor has no {taken_away}: without it, it runs the same code")
    monkeypatch.setenv("KVSCOPE_INSTRUCTIONS", request.param)


def _pair(config: ModelConfig, dtype: torch.dtype = torch.float32) -> tuple[Decoder, Decoder]:
    """The same weights twice: layer by layer, and compiled."""
    eager, compiled = (Decoder(config, random_weights(config, dtype=dtype, seed=3)) for _ in range(2))
    attach(compiled, "on")
    return eager, compiled


def _steps(
    decoder: Decoder, ids: Tensor, n_prompt: int, *, kind: CacheKind = "full", padding: Sequence[int] | None = None
) -> Tensor:
    """Logits of a prefill of n_prompt tokens and of one step for each that follows, (B, T - n_prompt + 1, V)."""
    cache = decoder.new_cache(ids.size(1), ids.size(0), kind=kind, padding=padding)
    logits = [decoder.forward(ids[:, :n_prompt], cache, last_only=True)]
    logits += [decoder.forward(ids[:, i : i + 1], cache) for i in range(n_prompt, ids.size(1))]
    return torch.cat(logits, 1).float()


def _ids(config: ModelConfig, n_rows: int, n_tokens: int) -> Tensor:
    return torch.randint(config.vocab_size, (n_rows, n_tokens), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("n_rows", [1, 3, 8, 14])  # vectors go through by 8, 4, 2 and 1
def test_logits_are_those_of_the_layers(name: str, n_rows: int) -> None:
    config = llama_config(**VARIANTS[name])
    eager, compiled = _pair(config)
    ids = _ids(config, n_rows, 20)
    expected, got = _steps(eager, ids, 3), _steps(compiled, ids, 3)
    assert compiled.decode_step is not None
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.equal(got[:, 1:], expected[:, 1:])  # it was not the layers that ran both times


@pytest.mark.parametrize("sizes", [(1, 1, 64, 64, 160), (3, 1, 80, 96, 200), (6, 3, 32, 50, 33), (2, 2, 7, 17, 31)])
def test_sizes_that_are_no_multiple_of_a_vector(sizes: tuple[int, int, int, int, int]) -> None:
    n_heads, n_kv_heads, head_dim, hidden, inner = sizes
    config = llama_config(
        n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, hidden_size=hidden, intermediate_size=inner,
        positions="learned" if head_dim % 2 else "rope", max_positions=300, attention_scale=head_dim**-0.5,
    )  # fmt: skip
    eager, compiled = _pair(config)
    ids = _ids(config, 2, 270)  # past two chunks of the running softmax
    torch.testing.assert_close(_steps(compiled, ids, 255), _steps(eager, ids, 255), atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", [None, [0, 3, 1]], ids=["even", "ragged"])
def test_factors_of_every_pair(padding: list[int] | None) -> None:
    """LongRoPE's, of which a longer text takes others, and those of a Llama 3 in a GGUF file, which are the same."""
    for long in ((3.0, 4.0, 6.0), (1.0, 1.5, 2.0)):
        scaling = LongRopeScaling(
            short_factors=(1.0, 1.5, 2.0), long_factors=long, original_max_positions=12, magnitude=1.1
        )
        eager, compiled = _pair(llama_config(rope_scaling=scaling))
        ids = _ids(eager.config, 3, 20)
        expected, got = (_steps(decoder, ids, 5, padding=padding) for decoder in (eager, compiled))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        assert not torch.equal(got[:, 1:], expected[:, 1:])


def test_a_base_that_grows_with_the_text() -> None:
    """Within the original context; beyond it the layers run."""
    eager, compiled = _pair(llama_config(rope_scaling=DynamicRopeScaling(factor=2.0, original_max_positions=12)))
    ids = _ids(eager.config, 3, 20)
    expected, got = (_steps(decoder, ids, 5) for decoder in (eager, compiled))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.equal(got[:, 1:7], expected[:, 1:7])


def test_queries_that_grow_with_the_position() -> None:
    """Within the first stretch, where nothing grows; beyond it the layers run."""
    eager, compiled = _pair(llama_config(query_growth=QueryGrowth(beta=2.0, every=12)))
    ids = _ids(eager.config, 3, 20)
    expected, got = (_steps(decoder, ids, 5) for decoder in (eager, compiled))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.equal(got[:, 1:7], expected[:, 1:7])
    plain = _steps(_pair(llama_config())[0], ids, 5)
    torch.testing.assert_close(got[:, :7], plain[:, :7], atol=1e-4, rtol=0)
    assert (got[:, 8:] - plain[:, 8:]).abs().max() > 1e-2


LAYER_BY_LAYER = (
    "lfm2", "lfm2-moe", "qwen3-next", "qwen3.5", "qwen3.5-moe", "bloom", "mpt", "falcon-alibi", "hunyuan", "apertus",
    "phimoe", "bitnet", "hunyuan-moe",
)  # fmt: skip


@pytest.mark.parametrize("padding", [None, [0, 3, 1]], ids=["even", "ragged"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in LAYER_BY_LAYER])
def test_every_family_that_it_knows(family: str, padding: list[int] | None) -> None:
    """Norms before, after and of heads, layers side by side, scales, gates, routers: whatever a family has."""
    eager, compiled = _pair(config_from_hf(document(family)))
    ids = _ids(eager.config, 3, 12)
    expected, got = (_steps(decoder, ids, 5, padding=padding) for decoder in (eager, compiled))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.equal(got[:, 1:], expected[:, 1:])


LATENT = LatentConfig(rank=40, rope_dim=6, nope_dim=10, value_dim=21, query_rank=30)  # queries wider than the model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_rows", [1, 9])
def test_latent_attention_past_a_chunk(dtype: torch.dtype, n_rows: int) -> None:
    """More tokens than attention looks at together; in 16 bits nearer to float64 than the layers."""
    config = llama_config(latent=LATENT, n_kv_heads=4, head_dim=16, max_positions=200)
    eager, compiled = _pair(config, dtype)
    ids = _ids(config, n_rows, 150)
    exact = Decoder(config, {n: w.double() for n, w in random_weights(config, dtype=dtype, seed=3).items()})
    truth = _steps(exact, ids, 120)[:, 1:]
    errors = [(_steps(decoder, ids, 120)[:, 1:] - truth).abs().mean().item() for decoder in (compiled, eager)]
    assert errors[0] <= max(errors[1], 1e-5)


@pytest.mark.parametrize("name", ["experts", "sinks", "shared"])
@pytest.mark.parametrize("n_rows", [1, 9])
def test_experts_and_sinks(name: str, n_rows: int) -> None:
    """Rows choose different experts; shared ones, biases, clamped activations and sinks are gpt-oss's and others'."""
    experts = {
        "experts": ExpertsConfig(n_experts=7, n_active=3, intermediate_size=40, normalize=True, scale=1.7),
        "sinks": ExpertsConfig(n_experts=4, n_active=2, intermediate_size=24, normalize=True, router_bias=True),
        "shared": ExpertsConfig(n_experts=5, n_active=2, intermediate_size=8, normalize=False, shared_size=50),
    }[name]
    config = llama_config(
        n_layers=3, experts=experts, expert_layers=(True, False, True), mlp_bias=name == "sinks",
        sinks=name == "sinks", swiglu_limit=0.5 if name == "sinks" else None,
    )  # fmt: skip
    eager, compiled = _pair(config)
    ids = _ids(config, n_rows, 20)
    torch.testing.assert_close(_steps(compiled, ids, 3), _steps(eager, ids, 3), atol=1e-4, rtol=0)


RAGGED = [0, 3, 1, 4, 2]


@pytest.mark.parametrize("name", ["llama", "one-head-learned", "sliding", "mixed", "experts", "latent"])
def test_ragged_rows(name: str) -> None:
    """Rows that begin later than others: their positions count from there, and nothing before is seen."""
    config = llama_config(**VARIANTS[name])
    eager, compiled = _pair(config)
    ids = _ids(config, 5, 30)
    expected, got = (_steps(decoder, ids, 5, padding=RAGGED) for decoder in (eager, compiled))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.equal(got[:, 1:], expected[:, 1:])
    alone = _steps(compiled, ids[1:2, 3:], 2)
    torch.testing.assert_close(got[1:2], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sliding", "mixed", "llama"])
@pytest.mark.parametrize("n_prompt", [1, 4, 5, 9])
def test_window_cache_is_a_ring(name: str, n_prompt: int) -> None:
    """Windows of 5 tokens, filled up to, at and past their end by the prompt, then turned several times."""
    config = llama_config(**VARIANTS[name])
    eager, compiled = _pair(config)
    ids = _ids(config, 3, 33)
    expected, got = (_steps(decoder, ids, n_prompt, kind="window") for decoder in (eager, compiled))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.equal(got[:, 1:], expected[:, 1:])


@pytest.mark.parametrize("name", ["llama", "one-head-learned", "qwen3", "partial", "sliding", "mixed", "experts"])
@pytest.mark.parametrize("padding", [None, RAGGED], ids=["even", "ragged"])
def test_8_bit_cache(name: str, padding: list[int] | None) -> None:
    """Each step on what the layers have cached so far, so that a difference is this step's own.

    The rounding of float32, a few units in the seventh digit, may put a number at a tie between two steps of the
    format on either of them; the logits of its row then differ by what a step means for them. How much that is, is
    measured: no more than rounding all the numbers of the cache does. Rows without a tie differ as they do without
    a format.
    """
    eager, compiled = _pair(llama_config(**VARIANTS[name]))
    ids = _ids(eager.config, 5, 40)
    caches = [decoder.new_cache(40, 5, kind="int8", padding=padding) for decoder in (eager, compiled)]
    unrounded = eager.new_cache(40, 5, padding=padding)
    for decoder, cache in ((eager, caches[0]), (compiled, caches[1]), (eager, unrounded)):
        decoder.forward(ids[:, :5], cache)
    of_the_format, in_a_tie, tied_rows = 0.0, 0.0, 0
    for i in range(5, 40):
        theirs, ours = caches
        ours.storage.copy_(theirs.storage)
        ours.scales.copy_(theirs.scales)
        token = ids[:, i : i + 1]
        expected, got, exact = (
            decoder.forward(token, cache) for decoder, cache in ((eager, theirs), (compiled, ours), (eager, unrounded))
        )
        assert not torch.equal(got, expected)  # it was not the layers that ran both times
        apart = (theirs.storage.int() - ours.storage.int()).abs()[..., i, :].amax((0, 1, 3, 4))
        assert apart.max() <= 1
        tied = apart == 1
        torch.testing.assert_close(got[~tied], expected[~tied], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.scales[:, :, ~tied, :, i], theirs.scales[:, :, ~tied, :, i], rtol=1e-5, atol=0)
        tied_rows += int(tied.sum())
        in_a_tie = max(in_a_tie, (got - expected).abs().max().item())
        of_the_format = max(of_the_format, (exact - expected).abs().max().item())
    assert in_a_tie < of_the_format
    assert tied_rows <= ids.numel() // 20


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_weights_are_widened_alike(kind: QuantizedFormat, dtype: torch.dtype) -> None:
    """For prefills: all rows, or some, as torch's own operators widen them in float32, rounded once."""
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=45)
    weights = random_weights(config, seed=3)
    decoder = Decoder(config, weights, linear=FormatMaker(kind, weights))
    layers = [layer for layer in linear_layers(decoder) if isinstance(layer, GroupedLinear)]
    expected = [torch.cat([unpack(part) for part in layer.parts]) for layer in layers]
    attach(decoder, "on")
    for layer, wide in zip(layers, expected, strict=True):
        tolerance = 2e-7 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        torch.testing.assert_close(layer.weight(dtype).float(), wide, rtol=tolerance, atol=1e-6)
        for start, stop in ((3, 999), (1, 2), (15, 17)):
            whole = layer.unpack[0](dtype).clone()  # the next call takes its memory
            assert torch.equal(layer.unpack[0](dtype, start, stop), whole[start:stop])


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("n_rows", [8, 19, 32])  # as float32, and in one and two blocks of tiles where there are such
def test_many_rows_in_bfloat16(form: str, n_rows: int) -> None:
    """More than eight rows may be rounded to bfloat16, as the layers round them: no further from float64 than those."""
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=45)
    weights = random_weights(config, dtype=torch.bfloat16, seed=3)
    linear: LinearMaker = Linear.of
    if form in ("int8", "int4"):
        linear = FormatMaker("int8" if form == "int8" else "int4", weights)
    eager, compiled = (Decoder(config, weights, linear=linear) for _ in range(2))
    attach(compiled, "on")
    exact = Decoder(config, {name: w.double() for name, w in weights.items()}, linear=_widened(linear))
    ids = _ids(config, n_rows, 12)
    truth = _steps(exact, ids, 4)[:, 1:]
    errors = [(_steps(decoder, ids, 4)[:, 1:] - truth).abs().mean().item() for decoder in (compiled, eager)]
    assert errors[0] <= errors[1]
    assert errors[0] < 0.03


def _widened(linear: LinearMaker) -> LinearMaker:
    """The numbers that a packed layer stands for, as a plain layer in float64."""

    def make(weights: Weights, *names: str) -> Linear:
        layer = linear(weights, *names)
        return Linear(
            layer.weight(torch.float64) if isinstance(layer, GroupedLinear) else Linear.of(weights, *names).weight
        )

    return make


def test_one_decoder_and_several_caches() -> None:
    """A step is bound to the cache it ran on last; another one of the same size must not be mistaken for it."""
    eager, compiled = _pair(llama_config())
    ids = _ids(eager.config, 2, 8)
    caches = [[decoder.new_cache(8) for _ in range(2)] for decoder in (eager, compiled)]
    for i in range(8):
        for row in range(2):
            expected, got = (
                decoder.forward(ids[row : row + 1, i : i + 1], caches[n][row])
                for n, decoder in enumerate((eager, compiled))
            )
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_cache_is_written_as_the_layers_write_it() -> None:
    config = llama_config()
    caches = []
    for decoder in _pair(config):
        cache = decoder.new_cache(9, 2)
        for i in range(9):
            decoder.forward(_ids(config, 2, 9)[:, i : i + 1], cache)
        assert cache.length == 9
        caches.append(cache.storage)  # type: ignore[attr-defined]
    torch.testing.assert_close(caches[0], caches[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_lose_less_than_the_layers(dtype: torch.dtype) -> None:
    """Sums are kept in float32, so the result lies nearer to float64's than eager 16-bit arithmetic."""
    config = llama_config(hidden_size=64, intermediate_size=96)
    eager, compiled = _pair(config, dtype)
    ids = _ids(config, 2, 16)
    exact = Decoder(config, {n: w.double() for n, w in random_weights(config, dtype=dtype, seed=3).items()})
    truth = _steps(exact, ids, 1)[:, 1:]
    errors = [(_steps(decoder, ids, 1)[:, 1:] - truth).abs().mean().item() for decoder in (compiled, eager)]
    assert errors[0] < errors[1]
    assert errors[0] < 0.02


class RandomForms:
    """A `LinearMaker` of random bits in panels: each name of a layer in the next of some forms, in turn."""

    def __init__(self, *forms: WeightFormat) -> None:
        self.forms = itertools.cycle(forms)
        self.draw = torch.Generator().manual_seed(7)

    def __call__(self, weights: Weights, *names: str) -> GroupedLinear:
        return GroupedLinear(*(self.part(weights[f"{name}.weight"], weights.get(f"{name}.bias")) for name in names))

    def part(self, weight: Tensor, bias: Tensor | None = None) -> Packed:
        form, (rows, cols) = next(self.forms), weight.shape
        if form not in FORMS:
            return Packed(format=form, rows=rows, cols=cols, values=weight.to(getattr(torch, form)), bias=bias)
        made = FORMS[panel_form(form)]
        bits = torch.randint(1 << made.low + made.high, (rows, cols), generator=self.draw, dtype=torch.uint8)
        scales = torch.rand(rows, made.numbers(cols), generator=self.draw)
        wide = widened(Groups(bits, scales.half()), panel_form(form))
        scales /= 1.5 * wide.std() * cols**0.5
        return fill([Piece(rows, lambda: Groups(bits, scales.half()))], panel_form(form), rows, cols, bias)


FINE = 1e-3
"""Logits on packed weights: where a processor multiplies bytes, two of them keep a float to 1 part in 32,000 of the
largest of its 32."""
EVERY_FORM = [(form,) for form in PANEL_FORMS] + [("int4", "int6", "float16"), ("bfloat16", "int5", "float32")]


@pytest.mark.parametrize("forms", EVERY_FORM, ids="+".join)
def test_packed_weights_are_read_exactly(forms: tuple[WeightFormat, ...]) -> None:
    """The compiled step on packed numbers, the table of embeddings too, against layers that widen them to float32."""
    config = llama_config(
        hidden_size=160, intermediate_size=224, head_dim=24, n_heads=4, vocab_size=45, qkv_bias=True, mlp_bias=True
    )  # fmt: skip
    weights = random_weights(config, seed=3)
    pair = []
    for _ in range(2):
        maker = RandomForms(*forms)
        table = PackedTable(maker.part(weights["model.embed_tokens.weight"]), torch.float32)
        pair.append(Decoder(config, weights, linear=maker, table=table))
    eager, compiled = pair
    ids = _ids(config, 15, 9)  # by 8, 4, 2 and 1
    expected = _steps(eager, ids, 4)
    attach(compiled, "on")
    torch.testing.assert_close(_steps(compiled, ids, 4), expected, atol=FINE, rtol=0)
    torch.testing.assert_close(_steps(compiled, ids[:1], 4), expected[:1], atol=FINE, rtol=0)
    for n_tokens in (5, 40):  # few vectors, and many
        prompt = _ids(config, 1, n_tokens)
        torch.testing.assert_close(compiled.forward(prompt), eager.forward(prompt), atol=FINE, rtol=0)


@pytest.mark.parametrize("n", [33, 48, 70, 517])  # blocks of 6, 8, 16 and 32 vectors, and two passes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_vectors_meet_every_form(n: int, dtype: torch.dtype) -> None:
    """Prompts on packed weights: as exact as the dtype of the vectors, to which weights and results are rounded once.

    Rows that fill no panel, columns that take two pieces, parts side by side.
    """
    library, draw = build.build_library(), torch.Generator().manual_seed(9)
    rows, cols = (149, 16), 544
    x = torch.randn(n, cols, generator=draw).to(dtype)
    for form in PANEL_FORMS if n == 70 else PANEL_FORMS[:2]:
        maker = RandomForms(form)
        parts = [maker.part(torch.empty(k, cols), torch.randn(k, generator=draw)) for k in rows]
        product = CompiledProduct(parts, library, Scratch())
        if dtype == torch.bfloat16 and not product.takes(x):
            pytest.skip("this processor multiplies no bfloat16")
        wide, bias = torch.cat([unpack(part) for part in parts]).double(), torch.cat([part.bias for part in parts])
        truth, whole = x.double() @ wide.t() + bias, x.double().abs() @ wide.abs().t()
        half = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        excess = (product(x).double() - truth).abs() - (half + 1e-6) * (whole + truth.abs())
        assert excess.max() <= 0


@pytest.mark.parametrize("name", ["llama", "one-head-learned", "qwen3", "mixed"])
def test_greedy_tokens_are_the_same(name: str) -> None:
    config = llama_config(**VARIANTS[name])
    options = GenerationOptions(max_new_tokens=40, stop_at_eos=False)
    made = [list(generate(decoder, [1, 2, 3], options))[-1].ids for decoder in _pair(config)]  # type: ignore[union-attr]
    assert made[0] == made[1]


@pytest.mark.parametrize("forms", [("float32",), ("bfloat16",), ("float16",), *EVERY_FORM], ids="+".join)
def test_tokens_of_one_text_are_as_if_each_came_alone(forms: tuple[WeightFormat, ...]) -> None:
    """Bit for bit, by 2 to 13 at once: in groups of 8, 4, 2 and 1, past a chunk of attention, never in tiles."""
    # Columns beyond the last 32 where numbers are plain; panels have none.
    sizes = {"hidden_size": 50, "intermediate_size": 33} if set(forms) <= {"float32", "bfloat16", "float16"} else {}
    config = llama_config(
        **({"hidden_size": 96, "intermediate_size": 160} | sizes), head_dim=32, max_positions=200, attention_scale=0.2
    )
    dtype = torch.bfloat16 if forms == ("bfloat16",) else torch.float32  # in which arithmetic is in tiles
    decoder = Decoder(config, random_weights(config, dtype=dtype, seed=3), linear=RandomForms(*forms))
    attach(decoder, "on")
    ids = _ids(config, 1, 150)
    expected = _steps(decoder, ids, 110)
    cache, got, at = decoder.new_cache(150), [], itertools.cycle([3, 13, 1, 6])
    got = [decoder.forward(ids[:, :110], cache, last_only=True)]
    while cache.length < 150:
        n_new = min(next(at), 150 - cache.length)
        got.append(decoder.forward_rows(ids[:, cache.length : cache.length + n_new], cache))
        cache.advance(n_new)
    assert torch.equal(torch.cat(got, 1).float(), expected)


@pytest.mark.parametrize("kind", ["llama", "latent"])
def test_threads_give_the_same_logits(kind: str) -> None:
    """A model above the threshold, so that rows and heads are shared out; 3 threads divide nothing evenly."""
    latent = LatentConfig(rank=64, rope_dim=16, nope_dim=32, value_dim=32) if kind == "latent" else None
    config = llama_config(
        hidden_size=160, intermediate_size=640, head_dim=48 if latent else 32, vocab_size=1501, n_layers=3,
        latent=latent, n_kv_heads=4 if latent else 2,
    )  # fmt: skip
    ids = _ids(config, 2, 8)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(_steps(_pair(config)[1], ids, 2)[:, 1:])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=1e-5, rtol=0)


def test_large_batches_and_padded_rings_run_layer_by_layer() -> None:
    eager, compiled = _pair(llama_config(sliding_window=5))
    ids = _ids(eager.config, MAX_ROWS + 1, 12)
    assert torch.equal(_steps(compiled, ids, 2), _steps(eager, ids, 2))
    ragged = [_steps(decoder, ids[:2], 3, kind="window", padding=[0, 2]) for decoder in (compiled, eager)]
    assert torch.equal(*ragged)
