"""The sampling options that a model's authors suggest: generation_config.json of a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.model.generate import GenerationOptions
from engine.weights.jsonfile import MAX_CONFIG_BYTES, read_json

_ALL_TOKENS = 1 << 31  # larger than any vocabulary: such a top_k has no effect
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSampling:
    """The options in the file; None if an option is absent or has no effect."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def fill(self, options: GenerationOptions) -> GenerationOptions:
        """The same options, with these values for those not set."""
        given = {name: getattr(self, name) for name in _NAMES}
        return replace(options, **{n: v for n, v in given.items() if v is not None and not getattr(options, n)})

    @property
    def text(self) -> str:
        """ "temperature 0.6, top-p 0.95"; empty where nothing is stated."""
        given = ((name.replace("_", "-"), getattr(self, name)) for name in _NAMES)
        return ", ".join(f"{name} {value:g}" for name, value in given if value is not None)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The document of a folder; empty if there is no such file. Raises ConfigError."""
    path = folder / "generation_config.json"
    document = read_json(path, ConfigError, max_bytes=MAX_CONFIG_BYTES) if path.exists() else {}
    return document if isinstance(document, dict) else {}


def model_sampling(document: dict[str, Any]) -> ModelSampling:
    """The suggested sampling options. Values without an effect are left out.

    Without do_sample, or at temperature 0, sampling is greedy.
    """
    if document.get("do_sample") is False or document.get("temperature") == 0:
        return ModelSampling()
    drawn = document.get("do_sample") is True or "temperature" in document
    stated: dict[str, Any] = {
        "temperature": _number(document, "temperature", low=0, high=100) or (1.0 if drawn else None),
        "top_p": _number(document, "top_p", low=0, high=1, nothing=1),
        "min_p": _number(document, "min_p", low=0, high=1, nothing=0),
        "repetition_penalty": _number(document, "repetition_penalty", low=0, high=100, nothing=1),
    }
    top_k = _number(document, "top_k", low=0, high=_ALL_TOKENS)
    return ModelSampling(**stated, top_k=int(top_k) if top_k is not None and top_k >= 1 else None)


def _number(
    document: dict[str, Any], name: str, *, low: float, high: float, nothing: float | None = None
) -> float | None:
    """A number above ``low`` and at most ``high``; None if it is ``nothing``, the value without an effect."""
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high or value == nothing:
        return None
    return float(value)
