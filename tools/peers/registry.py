"""The registry of pairs that ``tools/bench_mixers.py`` measures: a mixer or backbone of ours, and its peer.

A file of this folder registers its pairs when it is imported; nothing else needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: a pair's two sides, ready to run, on the same input with the same weights
Sides = tuple[Callable[[], Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Pair:
    """What is compared, and how much faster we are to be."""

    name: str
    kind: str  # "mixer" | "backbone"
    what: str
    peer: str
    target: float
    build: Callable[[], Sides]
    tolerance: float = 1e-4


PAIRS: dict[str, Pair] = {}


def pair(kind: str, what: str, peer: str, target: float, tolerance: float = 1e-4) -> Callable:
    """Decorator: register a function that builds both sides, under its own name.

    Args:
        kind: "mixer" or "backbone".
        what: shapes and settings, for the table.
        peer: what the other side is.
        target: least ratio of the peer's time to ours.
        tolerance: largest relative difference of the outputs.

    Raises:
        ValueError: another kind, or a name that is taken.
    """
    if kind not in ("mixer", "backbone"):
        raise ValueError(f"kind={kind!r}: accepted are 'mixer' and 'backbone'")

    def add(build: Callable[[], Sides]) -> Callable[[], Sides]:
        if build.__name__ in PAIRS:
            raise ValueError(f"there are two pairs named {build.__name__!r}")
        PAIRS[build.__name__] = Pair(build.__name__, kind, what, peer, target, build, tolerance)
        return build

    return add
