"""Numbers and tables as plain text: no colours, aligned by spaces. No torch here."""

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Seconds in the unit that leaves three digits to read: "78.0 us", "5.41 ms", "1.20 s", "2 min 5 s".

    >>> [duration(s) for s in (0, 7.8e-05, 0.00541, 0.2208, 1.2, 125)]
    ['0 s', '78.0 us', '5.41 ms', '221 ms', '1.20 s', '2 min 5 s']
    """
    if seconds == 0:
        return "0 s"
    if seconds >= 99.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    for unit, each_s in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.9995 * each_s:
            return f"{_three_digits(seconds / each_s)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def size(n_bytes: int) -> str:
    """Bytes in decimal units.

    >>> size(1_440_000), size(270_000_000), size(16_060_000_000)
    ('1.4 MB', '270 MB', '16.1 GB')
    """
    if n_bytes >= 10**10:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:,.{0 if n_bytes >= 10**7 else 1}f} MB"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "thread"), plural(1200, "thread")
    ('1 thread', '1,200 threads')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of right-aligned columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (header, *rows)
    ]


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
