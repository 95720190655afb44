"""The app's own two themes; Textual's built-in ones can be chosen as well."""

from __future__ import annotations

from textual.theme import Theme

KVSCOPE_DARK = Theme(
    name="kvscope-dark",
    primary="#6ca8d9",
    secondary="#8f9fe0",
    accent="#e0a458",
    warning="#e5c07b",
    error="#e8707a",
    success="#86c27c",
    foreground="#d7dde5",
    background="#10141a",
    surface="#151a21",
    panel="#1c232d",
    boost="#242d39",
    dark=True,
    variables={
        "footer-key-foreground": "#e0a458",
        "footer-background": "#1c232d",
        "block-cursor-text-style": "none",
        "border": "#6ca8d9",
        "border-blurred": "#2f3a48",
    },
)

KVSCOPE_LIGHT = Theme(
    name="kvscope-light",
    primary="#1b6399",
    secondary="#5a5fb0",
    accent="#8c4f00",
    warning="#7a5a00",
    error="#b3261e",
    success="#276b2b",
    foreground="#1d232b",
    background="#fafbfc",
    surface="#f2f4f7",
    panel="#e6eaef",
    boost="#dde3ea",
    dark=False,
    variables={
        "footer-key-foreground": "#8c4f00",
        "border": "#1b6399",
        "border-blurred": "#b9c3cf",
    },
)

THEMES = (KVSCOPE_DARK, KVSCOPE_LIGHT)
