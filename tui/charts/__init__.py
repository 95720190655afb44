"""Charts: described once, drawn as text and as files."""

from __future__ import annotations

from typing import Literal, get_args

Marker = Literal["braille", "hd", "dot"]
MARKERS: tuple[Marker, ...] = get_args(Marker)
"""Markers for curves in text."""
