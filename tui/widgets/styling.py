"""Names of styles in a Text, put in from a widget's component classes: drawing stays a pure function."""

from __future__ import annotations

from rich.text import Span, Text
from textual.widget import Widget


def restyled(text: Text, widget: Widget, block: str) -> Text:
    """`text` with each style name ``x`` replaced by the look of the component class ``block--x``."""
    looks = {
        name: widget.get_component_rich_style(f"{block}--{name}", partial=True)
        for name in {str(span.style) for span in text.spans}
    }
    text.spans = [Span(span.start, span.end, looks[str(span.style)]) for span in text.spans]
    return text
