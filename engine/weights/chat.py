"""Chat templates: format the turns of a conversation as the text that a model was trained on.

A template comes with the model and is untrusted: see `engine.weights.template_sandbox`. This module bounds its size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import PromptError, TokenizerError
from engine.weights.jsonfile import MAX_CONFIG_BYTES, read_json

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}

MAX_TEMPLATE_CHARACTERS = 1 << 20
_MAX_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A model's template and the texts of its special tokens."""

    source: str
    bos: str = ""
    eos: str = ""
    unk: str = ""
    pad: str = ""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, thinking: bool | None = None
    ) -> str:
        """`render_chat` with this template."""
        return render_chat(
            messages,
            template=self.source,
            bos=self.bos,
            eos=self.eos,
            unk=self.unk,
            pad=self.pad,
            add_generation_prompt=add_generation_prompt,
            thinking=thinking,
        )


def _compiled(template: str) -> Any:
    from jinja2 import TemplateError

    from engine.weights.template_sandbox import Sandbox

    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise TokenizerError(f"the chat template has {len(template):,} characters; at most a million are read")
    try:
        return Sandbox(_MAX_S).from_string(template)
    except (TemplateError, RecursionError) as error:
        raise TokenizerError(f"the chat template is broken{_place(error)}: {_first_line(error)}") from None


def render_chat(
    messages: Sequence[Message],
    *,
    template: str,
    bos: str = "",
    eos: str = "",
    unk: str = "",
    pad: str = "",
    add_generation_prompt: bool = True,
    thinking: bool | None = None,
) -> str:
    """The prompt for a conversation; with ``add_generation_prompt`` it ends where the model's answer begins.

    ``messages``: {"role", "content"} in order. ``thinking``: the template variable enable_thinking; None leaves it to
    the template. The text contains all special tokens by name, BOS included: encode it without adding any.
    Raises TokenizerError for a broken template, PromptError for messages that the template refuses.
    """
    from jinja2.exceptions import TemplateRuntimeError

    from engine.weights.template_sandbox import Refusal

    compiled = _compiled(template)
    # The variables that transformers' apply_chat_template defines.
    values: dict[str, Any] = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
    values |= {"add_generation_prompt": add_generation_prompt}
    values |= {name: text for name, text in (("unk_token", unk), ("pad_token", pad)) if text}
    if thinking is not None:
        values["enable_thinking"] = thinking
    try:
        return _written(compiled.generate(messages=[dict(message) for message in messages], **values))
    except Refusal as error:
        raise PromptError(f"the chat template refuses these messages: {_first_line(error)}") from None
    except (
        TemplateRuntimeError, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, AttributeError,
        ValueError,
    ) as error:  # fmt: skip
        raise TokenizerError(f"the chat template fails{_place(error)}: {_first_line(error)}") from None


def _place(error: BaseException) -> str:
    """The line of the template where an error occurred."""
    line, step = getattr(error, "lineno", None), error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    return f" in line {line}" if line else ""


def _written(pieces: Any) -> str:
    from engine.weights.template_sandbox import MAX_PROMPT_CHARACTERS

    text: list[str] = []
    size = 0
    for piece in pieces:
        text.append(piece)
        size += len(piece)
        if size > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"it writes more than {MAX_PROMPT_CHARACTERS:,} characters")
    return "".join(text)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a Hugging Face folder: chat_template.jinja, tokenizer_config.json's, chat_template.json's.

    Special tokens that tokenizer_config.json does not name are those of special_tokens_map.json.
    """
    values = _object(folder / "special_tokens_map.json") | _object(folder / "tokenizer_config.json")
    source, file = values.get("chat_template"), folder / "chat_template.jinja"
    if file.exists():
        source = _read_text(file, max_bytes=4 * MAX_TEMPLATE_CHARACTERS)
    source = _default(source if source is not None else _object(folder / "chat_template.json").get("chat_template"))
    if not isinstance(source, str):
        return None
    tokens = {name: _special(values.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    return ChatTemplate(source=source, **tokens)


def _object(path: Path) -> dict[str, Any]:
    """The JSON document of a file beside the weights; empty if the file is missing."""
    document = read_json(path, TokenizerError, max_bytes=MAX_CONFIG_BYTES) if path.exists() else {}
    return document if isinstance(document, dict) else {}


def _default(source: object) -> object:
    """The template, or the default one of several named templates."""
    if isinstance(source, dict):
        return source.get("default")
    if isinstance(source, list):
        named = (item for item in source if isinstance(item, dict) and item.get("name") == "default")
        return next((item.get("template") for item in named), None)
    return source


def _special(value: object) -> str:
    """The text of a special token, which is stored as a string or as a record with settings."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _read_text(path: Path, *, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TokenizerError(f"{path} has more than {max_bytes:,} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise TokenizerError(f"{path} is not UTF-8 text") from None
