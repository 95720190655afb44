"""Numbers as written in the sentences of the intensity study."""

from __future__ import annotations


def figures(value: float) -> str:
    """Three significant digits, or the whole integer part: 0.993, 57.4, 1,234."""
    digits = next((digits for bound, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)) if value >= bound), 3)
    return f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """``11 %``; two significant digits below 1 %."""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"
