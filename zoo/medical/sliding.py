"""A network over a volume by overlapping windows, in memory for a slab of windows.

The scheme is that of Isensee et al., "nnU-Net" (arXiv 1809.10486): windows that overlap by half, each voxel a mean of
its windows weighted by a Gaussian around each window's middle, and mirrored copies that are averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTINGS = ("gaussian", "constant")
OUTPUTS = ("logits", "probabilities", "labels")
#: Standard deviation of the Gaussian, of the window's size (nnU-Net's and MONAI's).
_SIGMA = 1 / 8

Progress = Callable[[int, int], None]


@torch.no_grad()
def sliding_window(
    network: Callable[[Tensor], Tensor],
    volume: Tensor,
    window: int | Sequence[int | None],
    *,
    overlap: float | Sequence[float] = 0.5,
    weighting: str = "gaussian",
    batch: int = 1,
    mirror_axes: Sequence[int] = (),
    axis: int | None = None,
    output: str = "logits",
    padding_value: float = 0.0,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """A network's outputs for whole volumes.

    Windows lie where :func:`monai.inferers.sliding_window_inference` puts them. Held are the input, the result and one
    slab of logits (the window's thickness by the other sides), however many windows there are; with
    ``output="labels"`` no logits of the whole volume exist at any time.

    Args:
        network: ``[n, C, *window] -> [n, K, *window]``; in evaluation mode if it is a module that knows the difference.
        volume: ``[B, C, *size]`` with one to three spatial axes; float.
        window: size along each axis; an int for all, None or -1 for the whole side. Where a side is shorter than the
            window, the volume is taken as padded on both sides.
        overlap: share of a window that the next one covers too, 0 up to (not including) 1; one for all axes or each.
        weighting: "gaussian" trusts the middle of a window more than its rim (standard deviation an eighth of each
            side; MONAI's is the same down to weights of 0.001, below which its windows count alike); "constant" takes
            the mean.
        batch: windows the network gets at once.
        mirror_axes: spatial axes (0, 1, 2) that are mirrored: the mean over all their combinations is taken.
        axis: slice-wise: the network is 2-D, gets slices across this spatial axis, and ``window`` is of the two others.
        output: "logits", the weighted mean of what the network gives ``[B, K, *size]``; "probabilities", their softmax
            over K (sigmoid where K is 1); "labels", uint8 ``[B, *size]`` (int16 where K is above 256), the class with
            the largest mean (of K = 1: whether it is above 0).
        padding_value: what stands beyond the volume's sides.
        device: where the network is and the slab is summed up; the volume's device by default. The result is on the
            volume's device.
        progress: called with (windows done, windows in all) after each batch.

    Returns:
        float32 (float64 for such a volume), or integers for "labels".

    Raises:
        ValueError: an argument is out of range, or the network's output has another size than its window.
        FloatingPointError: the network's outputs are not finite.
        TypeError: the network gives something else than a tensor, or the volume is not of floats.
    """
    size, plan_window, shares, squeezed = _check(volume, window, overlap, weighting, batch, mirror_axes, axis, output)
    device = volume.device if device is None else torch.device(device)
    dtype = torch.float64 if volume.dtype == torch.float64 else torch.float32
    axes = [_Axis.plan(s, w, o, weighting) for s, w, o in zip(size, plan_window, shares)]
    stream = squeezed if squeezed is not None else _thinnest(size, plan_window)
    order = [stream, *(a for a in range(len(size)) if a != stream)]
    places = [_Place(b, dict(zip(order, at))) for b in range(volume.shape[0])
              for at in itertools.product(*(range(len(axes[a].starts)) for a in order))]  # fmt: skip
    slab: _Slab | None = None
    for first in range(0, len(places), batch):
        chunk = places[first : first + batch]
        patches = [_patch(volume, axes, place, padding_value) for place in chunk]
        x = (patches[0] if len(patches) == 1 else torch.cat(patches)).to(device)  # [n, C, *window]
        y = _mirrored(network, x, mirror_axes, squeezed)  # [n, K, *window]
        if slab is None:
            slab = _Slab.for_volume(volume, y.shape[1], axes, stream, output, dtype, device)
        for place, found in zip(chunk, y):
            slab.add(place, found)
        if progress is not None:
            progress(first + len(chunk), len(places))
    assert slab is not None
    return slab.finish()


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one side: steps of ``window * (1 - overlap)``, the last one moved back inside.

    A window that is longer than the side begins before it, so that the side is in its middle.
    """
    if window >= size:
        return [-((window - size) // 2)]
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((size - window) / step) + 1
    return [min(i * step, size - window) for i in range(count)]


@dataclass
class _Axis:
    """The windows along one axis: where they begin, and the weights of their voxels inside the volume.

    The weights of a window are a product over the axes, and windows stand on a grid, so that the sum of the weights of
    all windows at a voxel is a product over the axes too: each axis is brought to sum 1 by itself, and what is summed
    up needs no division in the end.
    """

    size: int
    window: int
    starts: list[int]
    weights: list[Tensor]

    @classmethod
    def plan(cls, size: int, window: int, overlap: float, weighting: str) -> _Axis:
        starts = window_starts(size, window, overlap)
        bell = torch.ones(window, dtype=torch.float64)
        if weighting == "gaussian":
            x = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
            bell = torch.exp(-(x**2) / (2 * (_SIGMA * window) ** 2))
        total = torch.zeros(size, dtype=torch.float64)
        own = cls(size, window, starts, [])
        for i in range(len(starts)):
            low, high = own.inside(i)
            total[low:high] += bell[low - starts[i] : high - starts[i]]
        for i in range(len(starts)):
            low, high = own.inside(i)
            own.weights.append(bell[low - starts[i] : high - starts[i]] / total[low:high])
        return own

    def inside(self, i: int) -> tuple[int, int]:
        """First and behind-last index of the volume in window ``i``."""
        return max(self.starts[i], 0), min(self.starts[i] + self.window, self.size)


@dataclass
class _Place:
    """Number of the volume in its batch, and number of the window along each axis."""

    item: int
    at: dict[int, int]


def _patch(volume: Tensor, axes: list[_Axis], place: _Place, padding_value: float) -> Tensor:
    """The window's voxels ``[1, C, *window]``: a view where it lies inside the volume."""
    patch = volume[place.item : place.item + 1]
    pad: list[int] = []  # last axis first
    for a, axis in reversed(list(enumerate(axes))):
        low, high = axis.inside(place.at[a])
        start = axis.starts[place.at[a]]
        patch = patch.narrow(a + 2, low, high - low)
        pad += [low - start, start + axis.window - high]
    return F.pad(patch, pad, value=padding_value) if any(pad) else patch


def _mirrored(
    network: Callable[[Tensor], Tensor], x: Tensor, mirror_axes: Sequence[int], squeezed: int | None
) -> Tensor:
    """Mean of the network's outputs for x ``[n, C, *window]`` and its mirrored copies ``[n, K, *window]``."""
    total: Tensor | None = None
    flips = [f for r in range(len(mirror_axes) + 1) for f in itertools.combinations([a + 2 for a in mirror_axes], r)]
    for flip in flips:
        y = _run(network, x.flip(flip) if flip else x, squeezed)
        y = y.flip(flip) if flip else y
        if total is None:
            total = y if len(flips) == 1 else y.float() if y.dtype != torch.float64 else y.clone()
        else:
            total = total + y
    assert total is not None
    return total / len(flips) if len(flips) > 1 else total


def _run(network: Callable[[Tensor], Tensor], x: Tensor, squeezed: int | None) -> Tensor:
    given = x if squeezed is None else x.squeeze(squeezed + 2)
    y = network(given)
    if not isinstance(y, Tensor):
        raise TypeError(f"the network gave a {type(y).__name__}; a window needs one tensor [n, K, *window]")
    if y.ndim != given.ndim or y.shape[0] != given.shape[0] or y.shape[2:] != given.shape[2:]:
        raise ValueError(
            f"the network made {tuple(y.shape)} of a window {tuple(given.shape)}: [n, K, *window] of the same sides is "
            f"needed"
        )
    return y if squeezed is None else y.unsqueeze(squeezed + 2)


class _Slab:
    """Sums of the windows that stand at one place of the streamed axis; what no later window touches is handed on.

    Where the result is of floats on the same device, sums are taken in the result itself (``inside``), and handing on
    is only what is done with the finished slices.
    """

    def __init__(self, sums: Tensor, result: Tensor, axes: list[_Axis], stream: int, output: str, inside: bool):
        self.sums, self.result, self.axes, self.stream, self.output = sums, result, axes, stream, output
        self.item, self.low, self.inside = 0, 0, inside
        self._maps: dict[tuple[int, ...], Tensor] = {}
        self._weights = [[w.to(sums) for w in axis.weights] for axis in axes]
        self._alike = [[_first_equal(own, i) for i in range(len(own))] for own in self._weights]

    @classmethod
    def for_volume(
        cls,
        volume: Tensor,
        classes: int,
        axes: list[_Axis],
        stream: int,
        output: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> _Slab:
        """A slab ``[K, *size]`` that is ``window`` thick along the streamed axis, and the empty result."""
        sides = list(volume.shape[2:])
        if output != "labels":
            result = torch.zeros([volume.shape[0], classes, *sides], dtype=dtype, device=volume.device)
            if device == volume.device:
                return cls(result[0], result, axes, stream, output, True)
        else:
            kind = torch.uint8 if classes <= 256 else torch.int16
            result = torch.zeros([volume.shape[0], *sides], dtype=kind, device=volume.device)
        sides[stream] = min(axes[stream].window, sides[stream])
        sums = torch.zeros([classes, *sides], dtype=dtype, device=device)
        return cls(sums, result, axes, stream, output, False)

    def add(self, place: _Place, found: Tensor) -> None:
        """Add a window's outputs ``[K, *window]``; places come volume by volume, along the streamed axis."""
        low, _ = self.axes[self.stream].inside(place.at[self.stream])
        if place.item != self.item:
            self._hand_on(self.axes[self.stream].size - self.low)
            self.item, self.low = place.item, 0
            if self.inside:
                self.sums = self.result[self.item]
        if low != self.low:
            self._hand_on(low - self.low)
            self.low = low
        target = self.sums
        for a, axis in enumerate(self.axes):
            start, (inside, behind) = axis.starts[place.at[a]], axis.inside(place.at[a])
            found = found.narrow(a + 1, inside - start, behind - inside)
            first = 0 if self.inside or a != self.stream else self.low
            target = target.narrow(a + 1, inside - first, behind - inside)
        target.addcmul_(found.to(target.dtype), self._map(place))

    def _map(self, place: _Place) -> Tensor:
        """Weights of a window's voxels inside the volume ``[*window]``; few differ, those are kept."""
        key = tuple(alike[place.at[a]] for a, alike in enumerate(self._alike))
        if key not in self._maps:
            if len(self._maps) >= 64:
                self._maps.clear()
            product = self._weights[0][key[0]]
            for a, i in enumerate(key[1:], 1):
                product = product.unsqueeze(-1) * self._weights[a][i]
            self._maps[key] = product
        return self._maps[key]

    def _hand_on(self, count: int) -> None:
        """Turn the first ``count`` slices that are not handed on yet into results."""
        along, thick = self.stream + 1, self.sums.shape[self.stream + 1]
        if self.inside:
            sums = self.sums.narrow(along, self.low, count)
            ready = self._finished(sums)
            if ready is not sums:
                sums.copy_(ready)
            return
        ready = self._finished(self.sums.narrow(along, 0, count))  # [K, *slices], of labels [*slices]
        self.result[self.item].narrow(along - (self.output == "labels"), self.low, count).copy_(ready)
        for begin in range(0, thick - count, count):  # the rest to the front, in pieces that do not overlap themselves
            length = min(count, thick - count - begin)
            self.sums.narrow(along, begin, length).copy_(self.sums.narrow(along, begin + count, length))
        self.sums.narrow(along, thick - count, count).zero_()

    def _finished(self, sums: Tensor) -> Tensor:
        if not (sums.sum().isfinite() or sums.isfinite().all()):
            raise FloatingPointError(
                f"the network gave numbers that are not finite: volume {self.item} of the batch, slices {self.low} on "
                f"along axis {self.stream}"
            )
        if self.output == "logits":
            return sums
        if self.output == "probabilities":
            return sums.softmax(0) if sums.shape[0] > 1 else sums.sigmoid()
        return sums.max(0).indices if sums.shape[0] > 1 else sums[0] > 0

    def finish(self) -> Tensor:
        """The result, when the last window has been added."""
        self._hand_on(self.axes[self.stream].size - self.low)
        return self.result


def _first_equal(rows: Sequence[Tensor], i: int) -> int:
    """Number of the first row that is equal to row ``i``."""
    return next(j for j in range(i + 1) if rows[j].shape == rows[i].shape and torch.equal(rows[j], rows[i]))


def _thinnest(size: Sequence[int], window: Sequence[int]) -> int:
    """The axis along which a slab of windows is the smallest part of the volume."""
    return min(range(len(size)), key=lambda a: min(window[a], size[a]) / size[a])


def _check(
    volume: Tensor,
    window: int | Sequence[int | None],
    overlap: float | Sequence[float],
    weighting: str,
    batch: int,
    mirror_axes: Sequence[int],
    axis: int | None,
    output: str,
) -> tuple[list[int], list[int], list[float], int | None]:
    """Size of the volume, window and overlap along each axis, and the axis that slices are taken across."""
    if not volume.is_floating_point():
        raise TypeError(f"volume is of {volume.dtype}; floats are needed")
    if not 3 <= volume.ndim <= 5:
        raise ValueError(f"volume has shape {tuple(volume.shape)}; accepted is [B, C, *size] with 1 to 3 spatial axes")
    if 0 in volume.shape:
        raise ValueError(f"volume has shape {tuple(volume.shape)}: there is nothing in it")
    size = list(volume.shape[2:])
    if axis is not None and not 0 <= axis < len(size):
        raise ValueError(f"axis={axis}: accepted are 0 to {len(size) - 1}, the volume's spatial axes")
    dims = len(size) - (axis is not None)
    if dims < 1:
        raise ValueError(f"axis={axis}: a volume of shape {tuple(volume.shape)} has no slices")
    own = [window] * dims if isinstance(window, int) or window is None else list(window)
    if len(own) != dims or any(w is not None and w != -1 and w < 1 for w in own):
        raise ValueError(f"window={window}: accepted are {dims} sizes from 1, or None for a whole side")
    shares = [float(overlap)] * dims if isinstance(overlap, int | float) else [float(o) for o in overlap]
    if len(shares) != dims or not all(0 <= o < 1 for o in shares):
        raise ValueError(f"overlap={overlap}: accepted are {dims} numbers from 0 up to (not including) 1")
    if axis is not None:
        own.insert(axis, 1)
        shares.insert(axis, 0.0)
    for name, value, accepted in (("weighting", weighting, WEIGHTINGS), ("output", output, OUTPUTS)):
        if value not in accepted:
            raise ValueError(f"{name}={value!r}: accepted are {', '.join(accepted)}")
    if batch < 1:
        raise ValueError(f"batch={batch}: accepted are 1 and above")
    if len(set(mirror_axes)) != len(mirror_axes) or any(not 0 <= a < len(size) or a == axis for a in mirror_axes):
        across = "" if axis is None else f" but {axis}, which slices are taken across"
        raise ValueError(
            f"mirror_axes={tuple(mirror_axes)}: accepted are axes from 0 to {len(size) - 1}{across}, once each"
        )
    return size, [s if w is None or w == -1 else int(w) for s, w in zip(size, own)], shares, axis
