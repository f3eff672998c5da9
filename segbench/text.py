"""Foreign text made harmless before it is shown or exported."""

from __future__ import annotations


def safe(text: object) -> str:
    """No control characters, no escape sequences, no line breaks; everything else as it is."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
