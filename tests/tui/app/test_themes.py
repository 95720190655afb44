"""tui.app.themes: text can be read on every ground (WCAG 2.1, contrast of 4.5)."""

from __future__ import annotations

import pytest
from textual.color import Color
from textual.theme import Theme

from tui.app.themes import THEMES

GROUNDS = ("background", "surface", "panel")
INKS = (
    "foreground", "text", "text-muted", "text-primary", "text-secondary", "text-accent", "text-warning", "text-error",
    "text-success", "primary", "accent", "warning", "error", "success", "footer-key-foreground",
)  # fmt: skip


def luminance(color: Color) -> float:
    """Relative luminance as WCAG defines it."""
    red, green, blue = (
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in (color.r / 255, color.g / 255, color.b / 255)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Color, other: Color) -> float:
    """Between 1 and 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def ink_on(ground: Color, value: str) -> Color:
    """`auto 60%` is black or white, whatever stands out more, mixed into the ground."""
    if not value.startswith("auto"):
        return ground + Color.parse(value)
    return ground + ground.get_contrast_text(float(value.split()[1].rstrip("%")) / 100)


def test_the_measure_itself() -> None:
    assert contrast(Color(0, 0, 0), Color(255, 255, 255)) == pytest.approx(21)
    assert contrast(Color(119, 119, 119), Color(255, 255, 255)) == pytest.approx(4.48, abs=0.01)  # WCAG's own example


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("on", GROUNDS)
def test_text_can_be_read(theme: Theme, on: str) -> None:
    colours = theme.to_color_system().generate()
    ground = Color.parse(colours[on])
    faint = {name: round(contrast(ink_on(ground, colours[name]), ground), 2) for name in INKS}
    faint["foreground 70%"] = contrast(ground + Color.parse(colours["foreground"]).with_alpha(0.7), ground)
    assert {name: ratio for name, ratio in faint.items() if ratio < 4.5} == {}
