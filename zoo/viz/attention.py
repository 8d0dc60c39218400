"""Attention maps of a model's mixers, and their overlay on the image.

Any mixer that has an ``attention_map`` takes part, whatever it restricts attention to (windows, routed regions,
agents): the map is always over all pairs of positions. Rollout: S. Abnar and W. Zuidema, "Quantifying Attention Flow in
Transformers", 2020, arXiv:2005.00928, section 3.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

from zoo.analysis.rollout import rollout
from zoo.mixers.base import Mixer
from zoo.mixers.sampling import place
from zoo.registry import did_you_mean
from zoo.viz.figures import new_figure, save_figure


@dataclass(frozen=True)
class AttentionRecord:
    """The attention of one mixer for one image.

    Attributes:
        name: of the mixer in the model.
        grid: (H, W), the mixer's positions.
        map: float32 ``[heads, N, N]`` with N = H W, or ``[1, N, N]`` where the heads are averaged; rows sum to 1.
    """

    name: str
    grid: tuple[int, int]
    map: Tensor


def mixer_names(model: nn.Module) -> list[str]:
    """Names of the mixers in a model that may have attention maps, in the order in which they are held."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Mixer) and type(module).attention_map is not Mixer.attention_map
    ]


def collect_attention(
    model: nn.Module,
    inputs: Tensor,
    names: str | Sequence[str] | None = None,
    *,
    average_heads: bool = True,
    forward: Callable[[Tensor], Any] | None = None,
) -> list[AttentionRecord]:
    """Run a model on one image and compute the attention maps of its mixers on what they were given.

    Args:
        model: any module with mixers in it; it runs in evaluation mode and is put back afterwards.
        inputs: what ``forward`` takes, a normalised image ``[1, 3, H, W]``.
        names: mixer names or glob patterns; None takes the last mixer that has a map.
        average_heads: keep the mean over heads; all heads of an early stage take much memory.
        forward: what to run instead of ``model``.

    Returns:
        One record a mixer, in the order in which the mixers ran.

    Raises:
        LookupError: a name matches no mixer of the model, or one that the image does not pass.
        TypeError: no mixer has an attention map, or one that was named has none.
        ValueError: there is not exactly one image.
    """
    if inputs.ndim < 1 or inputs.shape[0] != 1:
        raise ValueError(f"inputs has shape {tuple(inputs.shape)}; one image is expected, [1, 3, H, W]")
    known = mixer_names(model)
    if not known:
        raise TypeError(f"{type(model).__name__} has no mixer with an attention map between positions")
    chosen = _matching(known, names)
    if names is not None:
        return _run(model, inputs, chosen, average_heads, forward, strict=True)
    # A kind of mixer may turn out to have no map with its settings: then the one before it is tried.
    for name in reversed(known):
        records = _run(model, inputs, [name], average_heads, forward, strict=False)
        if records:
            return records
    raise TypeError(f"no mixer of {type(model).__name__} has an attention map between positions")


def _matching(known: list[str], names: str | Sequence[str] | None) -> list[str]:
    if names is None:
        return known
    chosen: list[str] = []
    for pattern in [names] if isinstance(names, str) else names:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise LookupError(
                f"no mixer with an attention map is named {pattern!r}{did_you_mean(pattern, known)} "
                f"({len(known)} are: {known[0]} ... {known[-1]})"
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def _run(
    model: nn.Module,
    inputs: Tensor,
    names: list[str],
    average_heads: bool,
    forward: Callable[[Tensor], Any] | None,
    strict: bool,
) -> list[AttentionRecord]:
    records: list[AttentionRecord] = []
    mixers = {name: model.get_submodule(name) for name in names}

    def record(name: str, x: Tensor) -> None:  # x [1, H, W, C]
        try:
            attention = mixers[name].attention_map(x)[0].float()  # type: ignore[operator]  # [heads, N, N]
        except TypeError:
            if strict:
                raise
            return
        attention = attention.mean(0, keepdim=True) if average_heads else attention
        records.append(AttentionRecord(name, (x.shape[1], x.shape[2]), attention.cpu()))

    undo = [_watch(mixer, functools.partial(record, name)) for name, mixer in mixers.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            (forward or model)(inputs)
    finally:
        for restore in undo:
            restore()
        for module, training in modes.items():
            module.training = training
    missing = [name for name in names if name not in {r.name for r in records}]
    if strict and missing:
        raise LookupError(f"these mixers did not run on the image: {', '.join(missing)}")
    return records


def _watch(mixer: nn.Module, record: Callable[[Tensor], None]) -> Callable[[], None]:
    """Have ``record`` called with every map ``[1, H, W, C]`` that the mixer gets; returns what undoes it."""
    inside = False

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inside
        inside = True
        record(args[0] if args else kwargs["x"])

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    handles = [
        mixer.register_forward_pre_hook(enter, with_kwargs=True),
        mixer.register_forward_hook(leave, always_call=True),
    ]
    # A backbone that holds its tokens as one sequence calls this instead of the mixer itself.
    original = getattr(mixer, "forward_tokens", None)

    def watched(tokens: Tensor, size: tuple[int, int], *args: Any, **kwargs: Any) -> Tensor:
        if not inside:
            prefix = args[0] if args else kwargs.get("prefix", 0)
            record(tokens[:, prefix:].unflatten(1, size))
        return original(tokens, size, *args, **kwargs)  # type: ignore[misc]

    if original is not None:
        mixer.forward_tokens = watched  # type: ignore[assignment]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        if original is not None:
            del mixer.forward_tokens

    return undo


def attention_heat(record: AttentionRecord, query: tuple[float, float] | None = None) -> np.ndarray:
    """How much each position is attended to, float32 ``[H, W]``, as a multiple of even attention.

    Args:
        record: its heads are averaged.
        query: the position that attends, (y, x) as shares of the image's height and width; None: the mean over all.
    """
    height, width = record.grid
    attention = record.map.mean(0)  # [N, N]
    row = attention.mean(0) if query is None else attention[position_of(query, height, width)]
    return (row * row.numel()).reshape(height, width).numpy()


def attention_rollout(records: Sequence[AttentionRecord], query: tuple[float, float] | None = None) -> np.ndarray:
    """Attention followed through all records back to the first one's positions, float32 ``[H, W]``.

    Each layer counts as ``(A + 1) / 2``, for its residual connection. Between stages of different resolution a coarse
    position stands for the mean of the fine ones that it covers.

    Args:
        records: mixers in the order in which they ran.
        query: as in :func:`attention_heat`, a position of the last record.
    """
    flow = rollout(records)  # [N of the last, N of the first]
    row = flow.mean(0) if query is None else flow[position_of(query, *records[-1].grid)]
    return (row * row.numel()).reshape(records[0].grid).numpy()


def position_of(query: tuple[float, float], height: int, width: int) -> int:
    """The position, row-major, that shares (y, x) of a map's height and width lie in; raises ValueError."""
    row, column = place(query, height, width)
    return row * width + column


def overlay(image: np.ndarray, heat: np.ndarray, *, alpha: float = 0.55, colormap: str = "inferno") -> np.ndarray:
    """Lay a heat map over an image.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        heat: float ``[h, w]`` of any size and range; it is enlarged smoothly and stretched between its 1st and 99th
            percentile. A constant one leaves the image unmarked.
        alpha: opacity of the hottest places; cold places stay clear.
        colormap: of matplotlib.

    Returns:
        RGB uint8 ``[H, W, 3]``.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}; accepted is uint8 [H, W, 3]")
    if heat.ndim != 2 or not np.isfinite(heat).all():
        raise ValueError(f"heat has shape {heat.shape}; accepted is [h, w] of finite numbers")
    height, width = image.shape[:2]
    large = cv2.resize(heat.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = np.percentile(large, (1, 99))
    if high - low <= 1e-6 * max(abs(high), 1e-6):
        return image.copy()
    level = np.clip((large - low) / (high - low), 0, 1)
    colours = matplotlib.colormaps[colormap](level)[:, :, :3] * 255  # [H, W, 3]
    opacity = (alpha * (0.25 + 0.75 * level))[:, :, None]
    return np.round(image * (1 - opacity) + colours * opacity).astype(np.uint8)


def save_attention(
    image: np.ndarray,
    heats: dict[str, np.ndarray],
    path: str | os.PathLike,
    *,
    query: tuple[float, float] | None = None,
    title: str | None = None,
) -> Path:
    """Write a picture of an image and the overlays of its heat maps, side by side.

    Args:
        image: RGB uint8 ``[H, W, 3]``.
        heats: title -> heat map ``[h, w]``.
        query: a position (y, x) between 0 and 1 to mark.
    """
    height, width = image.shape[:2]
    panel = 3.4
    figure = new_figure(panel * (1 + len(heats)), panel * height / width + (0.8 if title else 0.5))
    panels = {"image": image, **{name: overlay(image, heat) for name, heat in heats.items()}}
    for i, (name, picture) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), i)
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(name, fontsize=10)
        if query is not None:
            axes.plot(query[1] * width, query[0] * height, "o", ms=7, mfc="none", mec="#00e5ff", mew=2)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_figure(figure, path, dpi=110)
