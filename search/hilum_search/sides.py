"""Which labels lie on one side of the body, told by their names, and which is whose other side."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PIECE = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+|[^A-Za-z\d]+")
"""Words, also of CamelCase, numbers, and what lies between them."""
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def pairs(names: Sequence[str]) -> tuple[tuple[str, str], ...] | None:
    """The pairs of labels that are each other's mirror image; None where a side lacks its partner.

    >>> pairs(["liver", "KidneyLeft", "KidneyRight", "vertebra L1"])
    (('KidneyLeft', 'KidneyRight'),)
    >>> pairs(["left lung", "liver"]) is None
    True
    """
    lower = {name.lower(): name for name in names}
    partner = {name: lower.get(_mirrored(name)) for name in sided(names)}
    if None in partner.values():
        return None
    return tuple((name, other) for name, other in partner.items() if other is not None and name < other)


def sided(names: Sequence[str]) -> list[str]:
    """The names that tell a side, in order.

    ``L`` before a number (a vertebra), and what is glued to a word (Lung, leftmost), need their partner for that.

    >>> sided(["Lkidney", "Rkidney", "Lung", "L5", "aorta_l"])
    ['Lkidney', 'Rkidney', 'aorta_l']
    """
    lower = {name.lower() for name in names}
    return [name for name in names if _is_sure(name) or ((other := _mirrored(name)) != name.lower() and other in lower)]


def _is_sure(name: str) -> bool:
    pieces = [piece.lower() for piece in _PIECE.findall(name)]
    return any(
        piece in _OTHER and (len(piece) > 1 or not after.isdigit())
        for piece, after in zip(pieces, [*pieces[1:], ""], strict=True)
    )


def _mirrored(name: str) -> str:
    """The name of the other side in small letters; the name itself where it tells none."""
    pieces = [piece.lower() for piece in _PIECE.findall(name)]
    told = [piece for piece in pieces if piece in _OTHER]
    if not told:
        glued = re.sub(r"^(left|right)|(left|right)$", lambda side: _OTHER[side[0]], name.lower())
        small = re.match(r"[LR](?=[a-z])", name)
        return _OTHER[name[0].lower()] + name[1:].lower() if small and glued == name.lower() else glued
    words = [piece for piece in told if len(piece) > 1] or told  # L5 turns where nothing else does
    return "".join(_OTHER[piece] if piece in words else piece for piece in pieces)
