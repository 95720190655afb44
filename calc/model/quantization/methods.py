"""The method of a quantization_config and its reader. A family is imported only for a config that names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from calc.errors import SourceError
from calc.model.quantization.scheme import Quant, Scheme

FAMILIES: Mapping[str, str] = {
    "awq": "integers", "gptq": "integers", "auto-round": "integers", "hqq": "integers", "eetq": "integers",
    "bitsandbytes": "integers", "mlx": "integers", "metal": "integers", "exl2": "integers", "exl3": "integers",
    "marlin": "integers", "gptq-marlin-24": "integers", "blockwise-int8": "floats", "w8a8-int8": "floats",
    "w8a8-fp8": "floats",
    "fp8": "floats", "fbgemm-fp8": "floats", "mxfp8": "floats", "mxfp4": "floats", "modelopt": "floats",
    "quark": "floats", "fp-quant": "floats", "compressed-tensors": "compressed", "aqlm": "codebooks",
    "vptq": "codebooks", "spqr": "codebooks", "higgs": "codebooks", "bitnet": "codebooks", "torchao": "torchao",
}  # fmt: skip
"""The methods that kvscope counts, and the module of this package that reads each."""
OTHER_NAMES: Mapping[str, str] = {
    "intel/auto-round": "auto-round", "autoround": "auto-round", "inc": "auto-round", "awq-marlin": "awq",
    "gptq-marlin": "gptq", "modelopt-fp4": "modelopt", "petit-nvfp4": "modelopt", "modelopt-mixed": "modelopt",
    "bnb": "bitsandbytes",
}  # fmt: skip
WHILE_LOADING: Mapping[str, str] = {
    **dict.fromkeys(
        ("quanto", "rtn", "experts-int8", "ptpc-fp8", "tpu-int8", "deepspeedfp"), "it quantizes while loading"
    ),
    "sinq": "the layout of its files is not documented",
    "fouroversix": "the layout of its files is not documented",
    "gemma": "the layout of its files is not documented",
    "nvfp4": "the layout of transformers' own NVFP4 files is not documented",
    "gguf": "pass the .gguf file to --model",
}
"""Methods of transformers whose bytes a config does not determine, and why."""
TELLING: tuple[tuple[str, frozenset[str]], ...] = (
    ("compressed-tensors", frozenset(("config_groups",))),
    ("bitsandbytes", frozenset(("load_in_4bit",))),
    ("bitsandbytes", frozenset(("load_in_8bit",))),
    ("modelopt", frozenset(("quant_algo",))),
    ("awq", frozenset(("w_bit", "q_group_size"))),
    ("gptq", frozenset(("bits", "group_size", "desc_act"))),
    ("fp8", frozenset(("weight_block_size",))),
    ("aqlm", frozenset(("num_codebooks", "nbits_per_codebook"))),
    ("hqq", frozenset(("weight_quant_params",))),
    ("torchao", frozenset(("quant_type",))),
    ("mlx", frozenset(("bits", "group_size"))),
)
"""Keys that only one method writes, for a config that does not name it; otherwise it is MLX."""


def scheme_of(config: Mapping[str, Any], source: str) -> Scheme | None:
    """The scheme of a config's quantization_config; None if there is none.

    Raises SourceError for an unknown method, or if the fields do not determine the bytes.
    """
    raw = config.get("quantization_config") or _of_mlx(config.get("quantization"))
    if raw is None or raw == {}:
        return None
    if not isinstance(raw, dict):
        raise SourceError(f"{source}: quantization_config must be an object")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
    quant = Quant(raw, f"{source}: quantization_config", dtype.removeprefix("torch."))
    method = _method(raw)
    if method in WHILE_LOADING:
        raise quant.fail(f"the bytes of {method} are not known from a config ({WHILE_LOADING[method]})")
    if method not in FAMILIES:
        named = f"quant_method {method[:40]!r} is not one" if method else "quant_method missing: not one"
        raise quant.fail(f"{named} that kvscope knows ({', '.join(FAMILIES)}): give --weight-format")
    readers = import_module(f"calc.model.quantization.{FAMILIES[method]}").READERS
    return cast(Callable[[Quant], Scheme], readers[method])(quant)


def _of_mlx(raw: object) -> Mapping[str, Any] | None:
    """MLX's own quantization key; None if it is something else."""
    return raw if isinstance(raw, dict) and {"bits", "group_size"} <= set(raw) else None


def _method(raw: Mapping[str, Any]) -> str:
    """The method by its usual name, or by the keys that only it has if the config does not name one."""
    stated = raw.get("quant_method")
    if stated is None and raw.get("quant_algo") is None:
        present = {key for key, value in raw.items() if value not in (None, False)}
        return next((method for method, keys in TELLING if keys <= present), "")
    method = str(stated or raw.get("quant_algo")).lower().replace("_", "-")
    return OTHER_NAMES.get(method, method)
