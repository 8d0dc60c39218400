"""Which windows of a shifted, padded map share one mask, and where their tokens lie in the map.

Along one axis the windows of the rolled and padded map are those that lie wholly inside the map, which need no mask,
and up to two at the end that hold padding or wrap around to the other side. The product of the two axes gives at most
nine groups, each with one mask, so that neither the map is rolled or padded nor a mask made for every window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

PADDING = -1  # the label of a padded position that is hidden


@dataclass(frozen=True)
class Span:
    """Consecutive windows of one axis that are treated alike.

    Attributes:
        windows: how many.
        pieces: (begin, end) in the map, in the order of the rolled axis; begin is None for end positions of padding.
        labels: for each position of the (then single) window its region, or None if all see each other.
    """

    windows: int
    pieces: tuple[tuple[int | None, int], ...]
    labels: tuple[int, ...] | None

    def split(self, windows: int, size: int) -> list[Span]:
        """Parts of at most ``windows`` windows of ``size`` tokens."""
        if self.windows <= windows:
            return [self]
        begin = self.pieces[0][0]
        assert begin is not None  # several windows lie inside the map
        starts = range(0, self.windows, windows)
        ends = [min(s + windows, self.windows) for s in starts]
        return [Span(e - s, ((begin + s * size, begin + e * size),), None) for s, e in zip(starts, ends)]


def spans(size: int, window: int, shift: int, hide: bool) -> list[Span]:
    """Cut an axis of ``size`` tokens, padded to whole windows and rolled by ``-shift``; hidden padding if ``hide``."""
    total = -(-size // window) * window
    inside = max((size - shift) // window, 0)
    found = []
    if inside:
        found.append(Span(inside, ((shift, shift + inside * window),), None))
    for w in range(inside, total // window):
        rolled = range(shift + w * window, shift + (w + 1) * window)

        def kind(r: int) -> int:
            return 2 if r >= total else (1 if r < size else 0)  # wrapped, in place, padding

        pieces: list[tuple[int | None, int]] = []
        labels: list[int] = []
        for k, run in groupby(rolled, kind):
            part = list(run)
            # A map smaller than the shift has padding among the wrapped positions too.
            real = [r - total * (k == 2) for r in part if r - total * (k == 2) < size] if k else []
            if real:
                pieces.append((real[0], real[-1] + 1))
                labels += [k] * len(real)
            if len(part) > len(real):
                pieces.append((None, len(part) - len(real)))
                labels += [PADDING if hide else max(k, 1)] * (len(part) - len(real))
        found.append(Span(1, tuple(pieces), None if len(set(labels)) == 1 else tuple(labels)))
    return found


def gather(x: Tensor, rows: Span, cols: Span, pad: Tensor | None) -> Tensor:
    """The tokens [B, h, w, C] of a group, padding included; a view where nothing wraps or is padded."""
    for axis, span in ((1, rows), (2, cols)):
        parts = []
        for begin, end in span.pieces:
            if begin is not None:
                parts.append(x.narrow(axis, begin, end - begin))
                continue
            shape = [*x.shape]
            shape[axis] = end
            parts.append(x.new_zeros(shape) if pad is None else pad.expand(shape))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
    return x


def scatter(out: Tensor, block: Tensor, rows: Span, cols: Span) -> None:
    """Write a group's tokens [B, h, w, C] to their places in the map ``out``; padding is dropped."""
    top = 0
    for r0, r1 in rows.pieces:
        high = r1 if r0 is None else r1 - r0
        left = 0
        for c0, c1 in cols.pieces:
            wide = c1 if c0 is None else c1 - c0
            if r0 is not None and c0 is not None:
                out[:, r0:r1, c0:c1] = block[:, top : top + high, left : left + wide]
            left += wide
        top += high


def padding_sum(block: Tensor, rows: Span, cols: Span) -> Tensor:
    """Sum [C] over the padded tokens of a group's block [B, h, w, C]."""
    row, col = (
        torch.cat([block.new_full((n if b is None else n - b,), float(b is not None)) for b, n in span.pieces])
        for span in (rows, cols)
    )
    return torch.einsum("bhwc,hw->c", block, 1.0 - row[:, None] * col[None, :])


def mask(rows: Span, cols: Span, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """Allowed pairs [N, N] of a group's windows, or None if all are."""
    if rows.labels is None and cols.labels is None:
        return None
    return torch.tensor(_allowed(rows.labels, cols.labels, window), device=device)


@lru_cache(maxsize=256)
def _allowed(rows: tuple[int, ...] | None, cols: tuple[int, ...] | None, window: tuple[int, int]) -> np.ndarray:
    """A hidden token keeps itself as a key: its row stays finite and is dropped afterwards."""
    row = np.array(rows or (1,) * window[0])
    col = np.array(cols or (1,) * window[1])
    padded = ((row == PADDING)[:, None] | (col == PADDING)[None, :]).reshape(-1)
    label = (row[:, None] * 4 + col[None, :]).reshape(-1)  # [N]
    return ((label[:, None] == label[None, :]) & ~padded[None, :]) | np.eye(len(label), dtype=bool)
