"""Text from elsewhere, made harmless and short before it is shown or exported."""

from __future__ import annotations

from collections.abc import Iterable


def safe(text: object) -> str:
    """Return text with control characters, escape sequences and line breaks spelled out."""
    shown = ""
    for character in str(text):
        shown += character if character.isprintable() else repr(character)[1:-1]
    return shown


def first_few(names: Iterable[object], most: int = 5) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = [str(name) for name in names]
    text = ", ".join(shown[:most])
    if len(shown) > most:
        text += f" and {len(shown) - most} more"
    return text
