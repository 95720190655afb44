"""Which part of every weight a tensor-parallel rank holds (Shoeybi et al. 2019, section 3; vLLM's QKVParallelLinear).

Projections to heads, MLPs and the vocabulary are column-parallel (split by outputs), those back to the hidden size
row-parallel (split by inputs). With more ranks than KV heads, a KV head is replicated; so are norms, routers and the
projections to latent vectors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from engine.errors import OptionError
from engine.model.config import ModelConfig
from engine.records import MAX_RANKS


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of `tp`."""

    rank: int
    tp: int


def check_tp(config: ModelConfig, tp: int) -> None:
    """Raise OptionError unless the model can be split over `tp` ranks in whole heads."""
    if not 1 <= tp <= MAX_RANKS:
        raise OptionError("tp", f"tp is {tp}; from 1 to {MAX_RANKS} ranks can be started")
    if tp > 1 and config.qk_norm and config.qk_norm_kind != "head":
        raise OptionError(
            "tp", "queries and keys are normalized over several heads, which ranks do not share; use tp 1"
        )
    if tp > 1 and config.positions == "alibi":
        raise OptionError("tp", "the ALiBi slopes depend on all heads, which ranks do not share; use tp 1")
    if tp > 1 and config.sub_norms:
        raise OptionError("tp", "results are normalized over all heads, which ranks do not share; use tp 1")
    if config.n_heads % tp:
        raise OptionError("tp", f"{config.n_heads} query heads are not divisible by {tp}; {_legal(config)}")
    kv = config.n_kv_heads
    if config.latent is None and kv % tp and tp % kv:
        raise OptionError(
            "tp", f"{kv} KV heads are not divisible by {tp} and do not repeat evenly on {tp} ranks; {_legal(config)}"
        )
    for size in _inner_sizes(config):
        if size % tp:
            raise OptionError("tp", f"the inner dimension {size} is not divisible by {tp}; {_legal(config)}")


def _inner_sizes(config: ModelConfig) -> list[int]:
    sizes = [config.intermediate_size]
    if config.experts is not None:
        sizes += [
            config.experts.intermediate_size,
            *([config.experts.shared_size] if config.experts.shared_size else []),
        ]
    return sizes


def _legal(config: ModelConfig) -> str:
    def fits(tp: int) -> bool:
        kv = config.n_kv_heads
        heads = config.n_heads % tp == 0 and (config.latent is not None or kv % tp == 0 or tp % kv == 0)
        return heads and all(size % tp == 0 for size in _inner_sizes(config))

    return "this model runs on " + ", ".join(str(tp) for tp in range(1, MAX_RANKS + 1) if fits(tp)) + " ranks"


def shard_config(config: ModelConfig, tp: int) -> ModelConfig:
    """The sizes of one rank of `tp`: its heads, its part of the MLPs, its rows of the (padded) vocabulary."""
    experts = config.experts
    if experts is not None:
        shared = experts.shared_size // tp
        experts = replace(experts, intermediate_size=experts.intermediate_size // tp, shared_size=shared)
    latent = config.latent is not None
    return replace(
        config,
        n_heads=config.n_heads // tp,
        n_kv_heads=config.n_heads // tp if latent else max(1, config.n_kv_heads // tp),
        intermediate_size=config.intermediate_size // tp,
        vocab_size=-(-config.vocab_size // tp),
        experts=experts,
    )


Cut = Callable[[Tensor, ModelConfig, Shard], Tensor]


def _rows(tensor: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    """An equal part of the outputs."""
    return tensor.tensor_split(shard.tp)[shard.rank]


def _columns(tensor: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    """An equal part of the inputs."""
    return tensor.tensor_split(shard.tp, dim=1)[shard.rank]


def _kv_rows(tensor: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    """The KV heads that this rank's query heads need: its own part, or a head replicated on several ranks."""
    n_own = max(1, config.n_kv_heads // shard.tp)
    first = shard.rank * config.n_kv_heads // shard.tp
    return tensor[first * config.head_dim : (first + n_own) * config.head_dim]


def _vocabulary(tensor: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    """The rank's rows of the vocabulary. Those of the last rank are padded with zeros."""
    n_rows = -(-config.vocab_size // shard.tp)
    own = tensor[shard.rank * n_rows : (shard.rank + 1) * n_rows]
    missing = n_rows - own.size(0)
    if not missing:
        return own
    padded = own.new_zeros((n_rows, *own.shape[1:]))
    padded[: own.size(0)] = own
    return padded


def _whole(tensor: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    return tensor


# By the suffix of the module name. A bias is split with the outputs, and stays whole if inputs are split.
_CUTS: Mapping[str, Cut] = {
    "embed_tokens": _vocabulary,
    "lm_head": _vocabulary,
    "q_proj": _rows,
    "q_b_proj": _rows,
    "kv_b_proj": _rows,
    "k_proj": _kv_rows,
    "v_proj": _kv_rows,
    "gate_proj": _rows,
    "up_proj": _rows,
    "sinks": _rows,
    "o_proj": _columns,
    "down_proj": _columns,
}
_WHOLE = (
    "norm",
    "layernorm",
    "embed_norm",
    "mlp.gate",
    "mlp.act_fn",
    "q_a_proj",
    "kv_a_proj_with_mqa",
    "embed_positions",
)


def cut(name: str, tensor: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    """The rank's shard of a weight: a view unless it must be padded. Raises OptionError for an unknown name."""
    module, _, kind = name.rpartition(".")
    how = _CUTS.get(module.rpartition(".")[2])
    if how is None:
        if not module.endswith(_WHOLE):
            raise OptionError("tp", f"it is not known how to divide {name} among ranks; run this model with tp 1")
        how = _whole
    if kind == "bias" and how is _columns:
        how = _whole
    return how(tensor, config, shard)


class ShardedWeights(Mapping[str, Tensor]):
    """One rank's part of all weights, sliced when the decoder requests them. `n_bytes` counts the bytes returned."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self.n_bytes = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._weights[name]
        self.n_bytes += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights
