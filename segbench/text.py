"""Foreign text made harmless and short before it is shown or exported."""

from __future__ import annotations

from collections.abc import Iterable


def safe(text: object) -> str:
    """No control characters, no escape sequences, no line breaks; everything else as it is."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def some(names: Iterable[object], most: int = 5) -> str:
    """The first few of a list, and how many there are more."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
