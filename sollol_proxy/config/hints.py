"""What somebody may have meant."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


def hint(word: str, known: Collection[str]) -> str:
    """A clause that names the nearest known word, or all of them where none is near."""
    near = get_close_matches(word, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"
