"""The Load pane's fields as a table of the settings file, written and read: every field as typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tui.form.load import ARRIVALS, LoadAsked


def load_document(asked: LoadAsked) -> dict[str, str]:
    """Values that are not the default. The fields are imported only if there is something to write or read."""
    usual = LoadAsked()
    if asked == usual:
        return {}
    from tui.form.load_fields import FIELDS

    written = {field.name: (field.write(asked), field.write(usual)) for field in FIELDS}
    written["arrivals"] = asked.arrivals, usual.arrivals
    return {name: text for name, (text, default) in written.items() if text != default}


def load_from(table: Mapping[str, Any]) -> LoadAsked:
    """What a table describes; what it lacks is the default. Raises ValueError."""
    if not table:
        return LoadAsked()
    from tui.form.load_fields import FIELDS

    values: dict[str, Any] = {}
    for field in FIELDS:
        if field.name in table:
            values |= field.read(_text(table[field.name]))
    arrivals = table.get("arrivals", ARRIVALS[0])
    if arrivals not in ARRIVALS:
        raise ValueError(f"arrivals must be {' or '.join(ARRIVALS)}, not {arrivals!r}")
    return LoadAsked(**values, arrivals=arrivals)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a load field must be text, not {value!r}")
    return value
