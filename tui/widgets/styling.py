"""Names of styles in a Text, put in from a widget's component classes: drawing stays a pure function."""

from __future__ import annotations

from rich.style import Style
from rich.text import Span, Text
from textual.widget import Widget


def component_style(widget: Widget, name: str) -> Style:
    """The look of a component class: its text style, and its colour laid over the widget's background."""
    styles = widget.get_component_styles(name)
    look = styles.text_style
    if not styles.has_rule("color"):
        return look
    background = widget.background_colors[1]
    colour = background.get_contrast_text(styles.color.a) if styles.auto_color else styles.color
    return look + Style(color=(background + colour).rich_color)


def restyled(text: Text, widget: Widget, block: str) -> Text:
    """`text` with each style name ``x`` replaced by the look of the component class ``block--x``."""
    names = {str(span.style) for span in text.spans}
    looks = {name: component_style(widget, f"{block}--{name}") for name in names}
    text.spans = [Span(span.start, span.end, looks[str(span.style)]) for span in text.spans]
    return text
