"""Data that kvscope ships: catalogs, the bundled model and its cases. No code but this locator."""

from pathlib import Path

ROOT = Path(__file__).parent


def path(*parts: str) -> Path:
    """Path of a shipped file or folder, e.g. ``path("model", "config.json")``."""
    return ROOT.joinpath(*parts)
