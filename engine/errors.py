"""Errors of the engine. All derive from one base and are one sentence that a user can act on.

EngineError
├── InputError                   what was given cannot be used            kind "input",  exit 2
│   ├── OptionError                  a number or choice is impossible
│   ├── PromptError                  empty, ids outside the vocabulary, too long
│   ├── CasesError                   a file of evaluation cases
│   └── CheckpointError              a weight file or model folder
│       ├── ConfigError                  its config.json, or what its shapes imply
│       │   └── UnsupportedArchitecture      known to exist, not known to us: never guessed
│       └── TokenizerError               its tokenizer.json
└── EngineFailure                the input was fine, running failed        kind "engine", exit 3
    ├── CacheError                   more tokens than the cache was made for
    └── OutOfMemory                  an allocation failed                  kind "memory", exit 3

No torch here: the client and the command line import this before anything heavy.
"""

from typing import ClassVar, Literal

from engine.plain import one_line

ErrorKind = Literal["input", "engine", "memory"]


_LONGEST = 2000  # characters of a message; a file may hold names and values of any length


def _shortened(message: str) -> str:
    """Without its middle where it is too long to be read: what is wrong stands first, what would be right last."""
    half = _LONGEST // 2
    return message if len(message) <= _LONGEST else f"{message[:half]} ... {message[-half:]}"


class EngineError(Exception):
    """Base of all errors of the engine. ``message`` is one sentence, safe to show on one line."""

    kind: ClassVar[ErrorKind] = "engine"
    exit_code: ClassVar[int] = 3

    def __init__(self, message: str) -> None:
        self.message = one_line(_shortened(message))
        super().__init__(self.message)


class Stopped(Exception):
    """Work was told to stop. This is not a failure and is never shown."""


class InputError(EngineError):
    """The input cannot be used."""

    kind = "input"
    exit_code = 2


class OptionError(InputError):
    """An option has an impossible value. ``field`` names it (``top_p``) so that a form can mark it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class PromptError(InputError):
    """A prompt is empty, holds ids outside the vocabulary, or is longer than the model's positions."""


class CasesError(InputError):
    """A file of evaluation cases is invalid."""


class CheckpointError(InputError):
    """A weight file or model folder cannot be loaded."""


class ConfigError(CheckpointError):
    """A config is missing a key, holds an impossible value, or contradicts the weights."""


class UnsupportedArchitecture(ConfigError):
    """A model_type, activation or rotary scaling this engine does not implement: named, never guessed."""


class TokenizerError(CheckpointError):
    """A tokenizer.json cannot be read, or text was given to a model that has no tokenizer."""


class EngineFailure(EngineError):
    """The input was fine; running it failed."""


class CacheError(EngineFailure):
    """More tokens than the KV cache was allocated for, or rows it was not made for."""


class OutOfMemory(EngineFailure):
    """An allocation failed."""

    kind = "memory"
