"""Where chat templates run: jinja2's immutable sandbox, bounded in time and in the size of every value.

A template is untrusted. jinja2 keeps Python's own attributes out of its reach and lets it change nothing. This module
checks the time in each block, and checks the size of long texts and lists before they are created. It adds the names
of transformers' apply_chat_template, which templates expect beyond jinja2's own.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_PROMPT_CHARACTERS = 16 << 20
_MAX_PRODUCT = 1 << 20
_MAX_VALUES = 1 << 18  # values of a list, nested lists included
_MAX_EXPONENT = 64
_MAX_BITS = 1 << 16  # bits of an integer
_MAX_INDENT = 256
_TEXTS = (str, bytes, list, tuple)
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{4,})")  # a width given as an argument, or of 1,000 and more
_WIDE_FIELD = re.compile(r"\{[^}]*(?:\{|:[^}]*\d{4,})")  # the same in a field of str.format
_PADDING = ("ljust", "rjust", "center", "zfill", "expandtabs")


class Refusal(Exception):
    """The message that a template raises with raise_exception."""


def refuse(message: str) -> NoReturn:
    raise Refusal(message)


class _Generator(CodeGenerator):
    """Generates Python code for a template in which every block checks the time and ~ checks the joined size."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.check_time()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 (jinja2's name)
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """{% generation %}: marks the model's text for training; here it only renders its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering; its time starts when it is created. Exceeding a limit raises ValueError."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, max_s: float) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_countable,
        )
        self._max_s = max_s
        self._deadline = time.monotonic() + max_s
        self.globals.pop("lipsum", None)
        self.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        self.filters.pop("wordwrap", None)
        self.filters |= {"tojson": to_json, "format": _format}
        self.filters = {name: _measured(name, made) for name, made in self.filters.items()}

    def check_time(self) -> None:
        """Raise ValueError if the time is up."""
        if time.monotonic() > self._deadline:
            raise ValueError(f"it takes more than {self._max_s:g} s")

    def concatenated(self, parts: tuple[Any, ...]) -> str:
        """The ~ operator."""
        return _joined("", parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **named: Any) -> Any:
        """A call; the result size of a method of a text is checked first."""
        method = getattr(function, "__wrapped__", function)  # jinja2 wraps format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            args = _checked_method(owner, method.__name__, args, named)
        return super().call(context, function, *args, **named)


# --- sizes -------------------------------------------------------------------------------------------------


def _bounded(size: int) -> None:
    if size > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"it makes a text or list of more than {MAX_PROMPT_CHARACTERS:,}")


def _countable(value: Any) -> Any:
    """Return the value; ValueError for nested lists too long as text (such as repeated doubling of a list)."""
    waiting, n = [value], 0
    while waiting and n <= _MAX_VALUES:
        one = waiting.pop()
        if isinstance(one, list | tuple | dict):
            inner = [*one, *one.values()] if isinstance(one, dict) else one
            n += len(inner)
            waiting.extend(each for each in inner if isinstance(each, list | tuple | dict))
    if n > _MAX_VALUES:
        raise ValueError(f"it makes a text of more than {_MAX_VALUES:,} values")
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, _TEXTS) else 0


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if operator == "*" and left.bit_length() + right.bit_length() > _MAX_BITS:
            raise ValueError("a number too large")
        if operator == "**" and (abs(right) > _MAX_EXPONENT or abs(left) > _MAX_PRODUCT):
            raise ValueError("a power too large")
    elif operator == "+":
        _bounded(_size(left) + _size(right))
    elif operator == "%" and isinstance(left, str):
        _check_format(
            left, right.values() if isinstance(right, dict) else right if isinstance(right, tuple) else [right]
        )
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(other, int) and _size(one) * other > _MAX_PRODUCT:
                raise ValueError("a text repeated too often")


def _check_format(pattern: str, values: Iterable[Any], *, mark: str = "%", wide: re.Pattern[str] = _WIDE) -> None:
    """Check the size of a format result; a pattern may use each value any number of times."""
    if wide.search(pattern):
        raise ValueError("a text formatted too wide")
    _bounded(len(pattern) + pattern.count(mark) * max((_size(_countable(value)) for value in values), default=0))


def _checked_method(owner: str | bytes, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a method of a text, after checking that its result is not too long."""
    if name == "join" and args:
        return (_within(owner, args[0]), *args[1:])
    if name in ("format", "format_map"):
        given = args[0].values() if name == "format_map" and args and isinstance(args[0], dict) else args
        _check_format(str(owner), [*given, *named.values()], mark="{", wide=_WIDE_FIELD)
    elif name == "replace" and len(args) > 1:
        _check_replacement(owner, args[0], args[1])
    elif name in _PADDING and any(
        isinstance(width, int) and width > _MAX_PRODUCT for width in (*args, *named.values())
    ):
        raise ValueError("a text padded too wide")
    elif name == "expandtabs":
        _bounded(_size(owner) * max((w for w in (*args, *named.values()) if isinstance(w, int)), default=8))
    elif name == "translate":
        raise ValueError("translate is not for templates")
    return args


def _check_replacement(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str | bytes) and isinstance(old, type(text)):
        _bounded(len(text) + text.count(old) * _size(new))  # type: ignore[arg-type]


def _within(separator: str | bytes, parts: Any) -> list[Any]:
    found = [_countable(part) for part in parts]
    _bounded(len(separator) * len(found) + sum(map(_size, found)))
    return found


def _joined(separator: str, parts: Iterable[Any]) -> str:
    return separator.join(_within(separator, (str(_countable(part)) for part in parts)))


# --- filters -----------------------------------------------------------------------------------------------


def _measured(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that its arguments and the size of its result are checked.

    jinja2 passes the environment first to filters that have a mark, which the wrapper inherits.
    """
    n_hidden = 1 if hasattr(made, "jinja_pass_arg") else 0
    check = _FILTER_CHECKS.get(name)

    @functools.wraps(made)
    def filtered(*args: Any, **named: Any) -> Any:
        if name == "join" and len(args) > n_hidden:
            args = (*args[:n_hidden], list(args[n_hidden]), *args[n_hidden + 1 :])
        if name not in _MAKE_NO_TEXT:
            for given in args[n_hidden:]:
                _countable(given)
        if check is not None:
            check(*args[n_hidden:], **named)
        result = made(*args, **named)
        _bounded(_size(result))
        return result

    return filtered


def _check_join(value: list[Any], d: Any = "", attribute: Any = None) -> None:
    _within(str(d), value)


def _check_replace(text: Any, old: Any, new: Any, count: Any = None) -> None:
    _check_replacement(str(text), str(old), str(new))


def _check_width(value: Any, width: Any = 80, *rest: Any, **how: Any) -> None:
    if isinstance(width, int) and width > _MAX_PRODUCT:
        raise ValueError("a text padded too wide")


def _check_count(value: Any, linecount: Any = 1, *rest: Any, slices: Any = 1, **how: Any) -> None:
    if any(isinstance(n, int) and n > _MAX_PRODUCT for n in (linecount, slices)):
        raise ValueError("a list divided too often")


def _check_indent(text: Any, width: Any = 4, *rest: Any, **how: Any) -> None:
    narrow = len(width) if isinstance(width, str) else width
    if narrow > _MAX_INDENT:
        raise ValueError("a text indented too far")
    _bounded(_size(text) + str(text).count("\n") * narrow)


def _check_sum(iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise ValueError("sum is for numbers")


_FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "join": _check_join, "replace": _check_replace, "center": _check_width, "batch": _check_count,
    "slice": _check_count, "indent": _check_indent, "sum": _check_sum,
}  # fmt: skip


_MAKE_NO_TEXT = ("length", "count", "list", "first", "last", "default", "d", "map", "select", "reject", "selectattr",
                 "rejectattr", "items")  # fmt: skip


def _format(text: object, *args: object, **named: object) -> str:
    """jinja2's filter: printf-style."""
    _check_format(str(text), [*args, *named.values()])
    return str(text) % (named or args)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """tojson as in transformers: no escapes for HTML or for characters outside ASCII."""
    narrow = None if indent is None else min(indent, 16)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=narrow, separators=separators, sort_keys=sort_keys)
