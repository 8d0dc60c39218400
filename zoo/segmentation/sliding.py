"""A network over an image of any size by overlapping windows, in memory for a band of them.

Windows and their mean: as in mmsegmentation's "slide" mode, which published scores of large images were measured with.
Rows are finished as soon as no later window touches them, and wide images are read in strips of columns; what is held
is the image, the result and one band of class scores, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.segmentation.bands import BUDGET, Taps, apply_taps, band_rows, taps

OUTPUTS = ("labels", "logits", "probabilities")
#: Bytes of the class scores that are held at a time.
MEMORY = 1 << 30


@torch.no_grad()
def sliding_window(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    crop: int | Sequence[int],
    stride: int | Sequence[int],
    num_classes: int,
    *,
    output: str = "labels",
    size: Sequence[int] | None = None,
    batch: int = 1,
    memory: int = MEMORY,
) -> Tensor:
    """What a network finds in an image, window by window.

    Each pixel's logits are the mean over the windows that hold it. The last window of a row and the last row lie at the
    image's rim; windows are smaller where the image is.

    Args:
        network: windows ``[n, 3, crop]``, of the image's dtype and on its device, to logits ``[n, num_classes, h, w]``,
            which are enlarged to the window (bilinear).
        image: ``[1, 3, H, W]``, of any dtype (a network that normalises its windows can have it as uint8).
        crop: height and width of a window.
        stride: from a window to the next, at most ``crop``.
        num_classes: channels of the logits.
        output: "labels": the class with the largest logit at each pixel, uint8 (int32 with more than 256 classes)
            ``[1, H, W]``; "logits": float32 ``[1, K, H, W]``; "probabilities": their softmax.
        size: height and width of the result, to which logits are resized (bilinear); the image's by default.
        batch: windows that the network gets at once.
        memory: bytes of the sums of logits at most (one column of windows has to fit all the same). Wider images are
            read in strips, and windows on a strip's edge twice.

    Returns:
        On the image's device.

    Raises:
        ValueError: an argument out of range, or logits of another form.
        FloatingPointError: logits that are not finite; the message names the rows.
    """
    crop_, stride_ = _checked(image, crop, stride, num_classes, output, size, batch)
    height, width = image.shape[-2:]
    out = (height, width) if size is None else (int(size[0]), int(size[1]))
    down = _Axis.plan(height, crop_[0], stride_[0], out[0])
    across = _Axis.plan(width, crop_[1], stride_[1], out[1])
    if output == "labels":
        kind = torch.uint8 if num_classes <= 256 else torch.int32
        result = torch.empty(1, *out, dtype=kind, device=image.device)
    else:
        result = torch.empty(1, num_classes, *out, dtype=torch.float32, device=image.device)
    columns = memory // (4 * num_classes * (down.window + 1))
    for first, behind in across.strips(columns):
        band = _Band(down, across, (first, behind), num_classes, output, result[0])
        for row in range(len(down.starts)):
            for places in _batches(band.windows, batch):
                found = _run(network, image, down, across, row, places, num_classes)
                for place, logits in zip(places, found):
                    band.add(row, place, logits)
            band.finish_row(row)
    return result


@dataclass
class _Axis:
    """Windows along one axis: where they begin, the share that each pixel has of its windows, and the result's taps."""

    size: int
    window: int
    starts: list[int]
    shares: Tensor
    taps: Taps

    @classmethod
    def plan(cls, size: int, crop: int, stride: int, out: int) -> _Axis:
        window = min(crop, size)
        count = -(-(size - window) // stride) + 1
        starts = [min(i * stride, size - window) for i in range(count)]
        windows = torch.zeros(size)
        for start in starts:
            windows[start : start + window] += 1
        return cls(size, window, starts, 1 / windows, taps(out, size))

    def strips(self, limit: int) -> list[tuple[int, int]]:
        """Parts of the result, (first, behind): each needs ``limit`` source pixels at most, or one step of windows."""
        out = len(self.taps.low)
        edges = sorted({min(out, -(-start * out // self.size)) for start in self.starts} | {0, out})
        if self.size <= limit:
            edges = [0, out]
        strips, first = [], 0
        for last, edge in zip(edges[1:], [*edges[2:], None]):
            if edge is None or self.source(first, edge)[1] - self.source(first, edge)[0] > limit:
                strips.append((first, last))
                first = last
        return strips

    def source(self, first: int, behind: int) -> tuple[int, int]:
        """Source pixels (first, behind) that a part of the result is made of."""
        return int(self.taps.low[first]), int(self.taps.high[behind - 1]) + 1


class _Band:
    """Means of the logits in the rows that are not finished, ``[K, rows, columns]``, of one strip of columns."""

    def __init__(
        self, down: _Axis, across: _Axis, strip: tuple[int, int], num_classes: int, output: str, result: Tensor
    ):
        self.down, self.across, self.strip, self.output, self.result = down, across, strip, output, result
        self.left, self.right = across.source(*strip)
        self.windows = [i for i, x in enumerate(across.starts) if x < self.right and x + across.window > self.left]
        self.num_classes = num_classes
        self.sums: Tensor | None = None
        self.top = 0  # the source row that is the first of the sums
        self.finished = 0  # rows of the result

    def add(self, row: int, column: int, logits: Tensor) -> None:
        """Add a window's logits ``[K, h, w]``."""
        y, x = self.down.starts[row], self.across.starts[column]
        tall, wide = self.down.window, self.across.window
        if logits.shape[-2:] != (tall, wide):
            logits = F.interpolate(logits[None], size=(tall, wide), mode="bilinear", align_corners=False)[0]
        if self.sums is None:
            # One row more than a window: rows of a resized result lie between two of the image.
            rows = min(tall + 1, self.down.size)
            self.sums = logits.new_zeros(self.num_classes, rows, self.right - self.left)
        left, right = max(x, self.left), min(x + wide, self.right)
        share = self.down.shares[y : y + tall, None] * self.across.shares[left:right]
        target = self.sums[:, y - self.top : y - self.top + tall, left - self.left : right - self.left]
        target.addcmul_(logits[:, :, left - x : right - x], share.to(logits.device))

    def finish_row(self, row: int) -> None:
        """Turn what no later window touches into results."""
        assert self.sums is not None
        last = row + 1 == len(self.down.starts)
        done = self.down.size if last else self.down.starts[row + 1]  # source rows that are final
        behind = int((self.down.taps.high < done).sum())
        step = band_rows(self.num_classes, max(self.right - self.left, self.strip[1] - self.strip[0]), BUDGET)
        for first in range(self.finished, behind, step):
            self._write(first, min(first + step, behind))
        self.finished = max(self.finished, behind)
        if not last:
            self._move(done - 1 - self.top)

    def _write(self, first: int, behind: int) -> None:
        assert self.sums is not None
        own = self.down.taps.part(first, behind, self.top)
        columns = self.across.taps.part(*self.strip, self.left)
        if len(self.down.taps.low) == self.down.size:
            band = self.sums[:, first - self.top : behind - self.top]
        else:
            band = apply_taps(self.sums, own, 1)
        if len(self.across.taps.low) != self.across.size:
            band = apply_taps(band, columns, 2)
        if not (band.sum().isfinite() or band.isfinite().all()):
            raise FloatingPointError(f"the network's logits are not finite in the rows {first} to {behind - 1}")
        target = self.result[..., first:behind, slice(*self.strip)]
        if self.output == "labels":
            target.copy_(band.max(0).indices)
        else:
            target.copy_(band.softmax(0) if self.output == "probabilities" else band)

    def _move(self, by: int) -> None:
        """Make the row ``by`` the first, in pieces that do not overlap themselves."""
        assert self.sums is not None
        if by <= 0:
            return
        rows = self.sums.shape[1]
        for begin in range(0, rows - by, by):
            length = min(by, rows - by - begin)
            self.sums[:, begin : begin + length].copy_(self.sums[:, begin + by : begin + by + length])
        self.sums[:, max(0, rows - by) :].zero_()
        self.top += by


def _run(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    down: _Axis,
    across: _Axis,
    row: int,
    columns: Sequence[int],
    num_classes: int,
) -> Tensor:
    """Logits float32 ``[n, K, h, w]`` of windows."""
    y = down.starts[row]
    tall, wide = down.window, across.window
    parts = [image[..., y : y + tall, across.starts[i] : across.starts[i] + wide] for i in columns]
    logits = network(torch.cat(parts))
    if logits.ndim != 4 or tuple(logits.shape[:2]) != (len(parts), num_classes):
        raise ValueError(
            f"the network made logits {tuple(logits.shape)} of {len(parts)} windows of {tall} x {wide} pixels; "
            f"[{len(parts)}, {num_classes}, h, w] is needed"
        )
    return logits.float()


def _batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _checked(
    image: Tensor,
    crop: int | Sequence[int],
    stride: int | Sequence[int],
    num_classes: int,
    output: str,
    size: Sequence[int] | None,
    batch: int,
) -> tuple[tuple[int, int], tuple[int, int]]:
    if image.ndim != 4 or image.shape[0] != 1 or min(image.shape) < 1:
        raise ValueError(f"image has shape {tuple(image.shape)}; accepted is [1, C, H, W]")
    if output not in OUTPUTS:
        raise ValueError(f"output={output!r}: accepted are {', '.join(OUTPUTS)}")
    if num_classes < 1 or batch < 1:
        raise ValueError(f"num_classes={num_classes}, batch={batch}: accepted are whole numbers from 1")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size={tuple(size)}: accepted are two whole numbers from 1")
    return checked_windows(crop, stride)


def checked_windows(
    crop: int | Sequence[int], stride: int | Sequence[int] | None = None, where: str = ""
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of windows and of the step between them; two thirds of the window without a stride.

    ``where`` stands before the names of the arguments in messages.

    Raises:
        ValueError: sizes below 1, or a step that would leave pixels out.
    """
    wanted = _pair(f"{where}crop", crop)
    if stride is None:
        step = (max(1, 2 * wanted[0] // 3), max(1, 2 * wanted[1] // 3))
    else:
        step = _pair(f"{where}stride", stride)
    if any(s > c for s, c in zip(step, wanted)):
        raise ValueError(f"{where}stride={step} is larger than crop={wanted}: pixels would be left out")
    return wanted, step


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"{name}={value!r}: accepted are one or two whole numbers from 1")
    return int(sizes[0]), int(sizes[1])
