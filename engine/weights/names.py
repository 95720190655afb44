"""Names of stored weights as training scripts write them, and what else a weight file may contain."""

import re
from collections.abc import Container, Mapping

from engine.errors import CheckpointError
from engine.weights.lazy import Stored, loaded

_WRAPPER = re.compile(
    r"^(?:module|_forward_module)\.|(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_TEXT_MODEL = re.compile(r"(?:model\.language_model\.(?:model\.)?|language_model\.(?:model\.)?(?!lm_head))")
_BASE_PARTS = ("layers.", "embed_tokens.", "norm.", "final_layernorm.", "embedding_norm.")
_KNOWN_ROOTS = ("model.", "transformer.", "gpt_neox.", "h.", "wte.", "word_embeddings.", "embed_in.")
_KEY = "token_embedding.weight"
_TABLE = "model.embed_tokens.weight"


def unwrapped(name: str) -> str:
    """The names without the prefixes and infixes of torch.compile and data-parallel training."""
    while (shorter := _WRAPPER.sub("", name)) != name:
        name = shorter
    return name


def plain_names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Names without wrappers; "model." before those of a base model, or of a text model inside a larger one."""
    ours = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if _KEY in ours:
        return ours
    if not any(name.startswith("model.embed_tokens.") for name in ours):
        ours = {_TEXT_MODEL.sub("model.", name, count=1): tensor for name, tensor in ours.items()}
        ours = {name.removeprefix("language_model."): tensor for name, tensor in ours.items()}
    ours = _behind_one_prefix(ours)
    if any(name.startswith(_KNOWN_ROOTS) for name in ours):
        return ours
    return {f"model.{name}" if name.startswith(_BASE_PARTS) else name: tensor for name, tensor in ours.items()}


def _behind_one_prefix(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Strip the common prefix of a model wrapped in another one (PEFT's base_model.model., Lightning's model.)."""
    ends = [name.removesuffix(_TABLE) for name in tensors if name.endswith(f".{_TABLE}")]
    if _TABLE in tensors or len(ends) != 1:
        return dict(tensors)
    return {name.removeprefix(ends[0]): tensor for name, tensor in tensors.items()}


def reference_names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The assignment's names, without a prefix that all of them share ("model.", "transformer.")."""
    ends = [name.removesuffix(_KEY) for name in tensors if name.endswith(f".{_KEY}")]
    if _KEY in tensors or len(ends) != 1:
        return dict(tensors)
    return {name.removeprefix(ends[0]): tensor for name, tensor in tensors.items()}


# --- what is left out -------------------------------------------------------------------------------------

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_BUFFER = re.compile(r"(?:.*\.)?(?:\w*mask\w*|tril|triu|position_ids|positions|pos_ids|inv_freq|num_batches_tracked)")
_SCALE = re.compile(r".*[._](?:[qkv]|kv|input|output|qkv|activation)_(?:scale|zero_point|global_scale)")
_ADAPTERS = re.compile(r".*(?:\.lora_|\.base_layer\.|lora_embedding|\.ia3_)")


def why_not(name: str, stored: Stored, expected: Container[str], n_layers: int) -> str | None:
    """Why a tensor that the model does not use must not be ignored; None if it may be ignored.

    It may be ignored if the model's results do not depend on it: buffers, heads for other tasks, layers after the last
    one (multi-token prediction), scales of caches and activations, biases that are zero.
    """
    if _ADAPTERS.fullmatch(name) or _ADAPTERS.match(name):
        return "it is part of an adapter (LoRA), which is not applied; merge it into the model first"
    layer = _LAYER.match(name)
    if layer is None:
        module = name.rpartition(".")[0]
        return "the model has none" if module.startswith("model.") and f"{module}.weight" in expected else None
    if is_behind(name, n_layers) or _BUFFER.fullmatch(name) or _SCALE.fullmatch(name):
        return None
    if name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in expected and not loaded(stored).any():
        return None
    return "the model has none"


def is_behind(name: str, n_layers: int) -> bool:
    """Whether a tensor belongs to a layer after the last one."""
    layer = _LAYER.match(name)
    return layer is not None and int(layer[1]) >= n_layers


def is_buffer(name: str, stored: Stored) -> bool:
    """Whether a tensor of a training script is not a weight, but a mask, positions or a counter."""
    return not stored.dtype.is_floating_point or _BUFFER.fullmatch(name) is not None


def check_extra(extra: Mapping[str, Stored], expected: Container[str], n_layers: int, where: str) -> str:
    """A note on ignored tensors, empty if there are none. Raises CheckpointError for one that must not be ignored."""
    for name, stored in extra.items():
        if (why := why_not(name, stored, expected, n_layers)) is not None:
            raise CheckpointError(f"{where} holds weights that this model does not have: {some(list(extra))} ({why})")
    return f"left out, because the model has no use for them: {some(list(extra))}" if extra else ""


_SHOWN = 3


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
