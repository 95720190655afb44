"""A model as TOML, written by hand or by kvscope: the fields of ModelSpec, under their own names, at the top level.

::

    name = "my-model"
    n_layers = 32
    n_heads = 32
    n_kv_heads = 8
    head_dim = 128
    hidden_size = 4096
    intermediate_size = 14336
    vocab_size = 128256
    tied = false
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calc.errors import CalcError, SourceError
from calc.files import read_bounded
from calc.model.parts import Mlp, Norm
from calc.model.spec import DIMENSIONS, ModelSpec, field_names, model_of
from calc.units import MAX_COUNT

MAX_SPEC_BYTES = 2**20
TEXTS = ("name", "source", "model_type")
NOT_TYPED = ("notes", "groups", "uniform")
FLAGS = ("tied", "qkv_bias", "o_bias", "mlp_bias", "head_bias", "qk_norm", "spread", "edited", "embeds")


def read_spec_toml(path: str | Path) -> ModelSpec:
    """The model in a spec file. Raises SourceError, one sentence that starts with the path."""
    import tomllib  # only for who brings a .toml

    file = Path(path)
    try:
        fields = tomllib.loads(read_bounded(file, limit=MAX_SPEC_BYTES).decode("utf-8"))
    except UnicodeDecodeError:
        raise SourceError(f"{file}: not a text file") from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file}: not TOML: {error}") from None
    try:
        return spec_from({"name": file.stem, "source": str(file), **fields}, where=str(file))
    except SourceError:
        raise
    except CalcError as error:
        raise SourceError(f"{file}: {error}") from None


def spec_document(model: ModelSpec) -> dict[str, Any]:
    """A model as the fields that `spec_from` reads. Its notes are left out."""
    left_out = {*NOT_TYPED, "layers", "spread", "stored", *(() if model.edited else ("edited",))}
    values = {name: getattr(model, name) for name in field_names(ModelSpec) if name not in left_out}
    document = {name: plain_value(value) for name, value in values.items() if value is not None}
    if model.stored is not None:
        from calc.model.stored import stored_document

        document["stored"] = stored_document(model.stored)
    if not model.uniform or (0 < model.n_sliding_layers < model.n_layers and not model.spread):
        from calc.model.layers import layers_document

        document["layers"] = layers_document(model.layers)
    return document


def plain_value(value: Any) -> Any:
    """A field of a record as TOML has it: a choice (`Mlp`, `Norm`) as its text, a tuple as a list."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, str) else value


def spec_from(fields: Mapping[str, Any], *, where: str) -> ModelSpec:
    """The model of `fields`, which stand in the file `where`. Raises CalcError: SourceError names the file."""
    known = [name for name in field_names(ModelSpec) if name not in NOT_TYPED]
    unknown = [key for key in fields if key not in known]
    if unknown:
        raise SourceError(f"{where}: unknown {', '.join(unknown[:4])}; the fields are {', '.join(known)}")
    missing = [name for name in DIMENSIONS if name not in fields]
    if missing:
        raise SourceError(f"{where}: {', '.join(missing)} missing")
    for name in (*TEXTS, *FLAGS):
        wanted = str if name in TEXTS else bool
        if not isinstance(fields.get(name, wanted()), wanted):
            raise SourceError(f"{where}: {name} must be {'text' if wanted is str else 'true or false'}")
    for name in known:
        if name not in (*TEXTS, *FLAGS, "mlp", "norm", "layers", "stored"):
            _check_number(fields.get(name, 1), name, where)
    choices = {"mlp": _choice(fields, "mlp", Mlp, where), "norm": _choice(fields, "norm", Norm, where)}
    parts: dict[str, Any] = {"layers": _layers(fields["layers"])} if "layers" in fields else {}
    if "stored" in fields:
        from calc.model.stored import stored_from_document

        parts["stored"] = stored_from_document(fields["stored"])
    return model_of(**{**fields, **choices, **parts})


def _layers(document: Any) -> tuple[Any, ...]:
    """Layers given one by one, as kvscope itself writes them."""
    from calc.model.layers import layers_from_document

    return layers_from_document(document)


def _check_number(value: object, name: str, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_COUNT:
        raise SourceError(f"{where}: {name} must be a whole number up to {MAX_COUNT:,}")


def _choice(fields: Mapping[str, Any], name: str, kind: type[Mlp] | type[Norm], where: str) -> Mlp | Norm:
    default = Mlp.GATED if kind is Mlp else Norm.RMS
    try:
        return kind(fields.get(name, default))
    except ValueError:
        raise SourceError(f"{where}: {name} must be {' or '.join(kind)}, not {fields[name]!r}") from None
