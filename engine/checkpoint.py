"""Weight files to a decoder: .pt (never executing a pickle), safetensors, Hugging Face folders.

STUB: the signatures are final, the bodies follow.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.config import ModelConfig
from engine.model import Decoder
from engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run. ``name``: folder or file stem; ``tokenizer`` None for bare weight files."""

    name: str
    path: Path
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer | None


def load_checkpoint(
    path: Path | str | None = None, *, dtype: str = "auto", device: str = "cpu"
) -> LoadedModel:
    """Load ``path`` (.pt, .pth, .safetensors or a folder; None or "bundled": the shipped model).

    dtype: "auto" | "float64" | "float32" | "bfloat16" | "float16". Raises CheckpointError, OptionError.
    """
    raise NotImplementedError
