"""One picture of why a model says what it says: attention, rollout, flow, relevance, heads, and where mixers look."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from zoo.analysis.distance import attention_distance
from zoo.analysis.flow import attention_flow
from zoo.analysis.importance import head_importance
from zoo.analysis.relevance import relevance
from zoo.mixers.base import Mixer
from zoo.viz.attention import (
    AttentionRecord,
    attention_heat,
    attention_rollout,
    collect_attention,
    mixer_names,
    overlay,
    position_of,
)
from zoo.viz.figures import COLOURS, new_figure
from zoo.viz.sampling import draw_sampling

#: What can be drawn, in the order of the panels.
METHODS = ("attention", "rollout", "flow", "relevance", "sampling", "distance", "heads")

#: Positions up to which flow is drawn without asking for it.
_FLOW_POSITIONS = 256


@dataclass
class Explanation:
    """A picture, and a line on each method that the model does not allow."""

    figure: Figure
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Panel:
    title: str
    draw: Callable[[Axes], None]


def explain(
    network: nn.Module,
    inputs: Tensor,
    image: np.ndarray,
    *,
    methods: Sequence[str] | None = None,
    mixers: str | Sequence[str] | None = None,
    query: tuple[float, float] | None = None,
    target: int | None = None,
    class_name: Callable[[int], str] = str,
) -> Explanation:
    """Draw how a classifier looks at an image.

    Args:
        network: maps ``inputs`` to logits ``[1, classes]``, has mixers in it, is in evaluation mode.
        inputs: the normalised image ``[1, 3, H, W]``.
        image: the same before normalisation, RGB uint8 ``[H, W, 3]``.
        methods: some of :data:`METHODS`; None takes what the model allows, without "heads", which runs it once a head.
        mixers: names or glob patterns of the mixers to look at; None takes all.
        query: the position that attends, (y, x) as shares of height and width; None: the mean over all.
        target: the class that relevance and heads are for; None for the best one.
        class_name: of a class.

    Raises:
        ValueError: an unknown method.
        TypeError, LookupError: a method that was asked for does not go with this model.
    """
    asked = methods is not None
    chosen = list(methods) if methods is not None else [m for m in METHODS if m != "heads"]
    if unknown := [m for m in chosen if m not in METHODS]:
        raise ValueError(f"methods={unknown}: accepted are {', '.join(METHODS)}")
    with torch.no_grad():
        probabilities = network(inputs).float().softmax(-1)[0]
    target = int(probabilities.argmax()) if target is None else target
    if not 0 <= target < len(probabilities):
        raise LookupError(f"target={target} is no class; accepted are 0 to {len(probabilities) - 1}")
    view = _View(network, inputs, image, mixers, query, target, asked)
    title = f"{class_name(target)} {100 * float(probabilities[target]):.1f} %"
    panels, left_out = [_Panel(title, functools.partial(_show, image=image, query=query))], []
    for method in chosen:
        try:
            panels += getattr(view, method)()
        except (TypeError, LookupError, ValueError) as error:
            if asked:
                raise
            left_out.append(f"{method}: {error}")
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.4 * columns, 3.7 * rows)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        panel.draw(axes)
        axes.set_title(panel.title, fontsize=9)
    return Explanation(figure, left_out)


class _View:
    """The panels of each method for one model and image."""

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        image: np.ndarray,
        mixers: str | Sequence[str] | None,
        query: tuple[float, float] | None,
        target: int,
        asked: bool,
    ):
        self.network, self.inputs, self.image = network, inputs, image
        self.mixers, self.query, self.target, self.asked = mixers, query, target, asked

    @functools.cached_property
    def records(self) -> list[AttentionRecord]:
        """Attention of all mixers that have it, heads averaged."""
        return [record for name in self.names for record in self._collect(name, True)]

    @functools.cached_property
    def names(self) -> list[str]:
        """The mixers to look at that have an attention map with this image, in the order in which they ran."""
        if self.mixers is not None:
            return [r.name for r in collect_attention(self.network, self.inputs, self.mixers)]
        found = [name for name in mixer_names(self.network) if self._collect(name, True)]
        if not found:
            raise TypeError("no mixer has an attention map between positions")
        return found

    def _collect(self, name: str, average: bool) -> list[AttentionRecord]:
        try:
            return collect_attention(self.network, self.inputs, name, average_heads=average)
        except (TypeError, LookupError):
            return []

    def attention(self) -> list[_Panel]:
        record = self.records[-1]
        return [self._heat(f"attention of {record.name}", attention_heat(record, self.query))]

    def rollout(self) -> list[_Panel]:
        return [self._heat(f"rollout over {len(self.records)} mixers", attention_rollout(self.records, self.query))]

    def flow(self) -> list[_Panel]:
        grid = self.records[-1].grid
        if not self.asked and grid[0] * grid[1] > _FLOW_POSITIONS:
            raise ValueError(f"{grid[0]} x {grid[1]} positions take long; ask for it to have it")
        last: list[AttentionRecord] = []
        for record in reversed(self.records):
            if record.grid != grid:
                break
            last.insert(0, record)
        query = self.query or (0.5, 0.5)
        flow = attention_flow(last, [position_of(query, *grid)])[0].reshape(grid).numpy()
        return [self._heat(f"flow over {len(last)} mixers to ({query[0]:g}, {query[1]:g})", flow)]

    def relevance(self) -> list[_Panel]:
        names = None if self.mixers is None else self.names
        heat, _ = relevance(self.network, self.inputs, self.target, names)
        return [self._heat("relevance for the class", heat.float().cpu().numpy())]

    def sampling(self) -> list[_Panel]:
        panels: list[_Panel] = []
        seen: set[type] = set()
        for name, mixer, x in _inputs_of_mixers(self.network, self.inputs):
            if type(mixer) in seen and self.mixers is None:
                continue  # one of each kind is enough unless asked for
            if self.mixers is not None and name not in self.names:
                continue
            drawings = mixer.sampling(x, self.query or (0.5, 0.5))
            if drawings:
                seen.add(type(mixer))
                title = f"{', '.join(d.label for d in drawings)} of {name}"
                panels.append(_Panel(title, functools.partial(draw_sampling, image=self.image, drawings=drawings)))
        if not panels:
            raise TypeError("no mixer samples: all look everywhere")
        return panels

    def distance(self) -> list[_Panel]:
        stride = self.inputs.shape[-1]
        points = []
        for name in self.names:
            for record in self._collect(name, False):
                points.append((name, attention_distance(record, stride / record.grid[1])))
        return [_Panel("mean attention distance of heads, pixels", functools.partial(_dots, points=points))]

    def heads(self) -> list[_Panel]:
        @torch.no_grad()
        def loss() -> float:
            return -float(self.network(self.inputs).float().log_softmax(-1)[0, self.target])

        found = head_importance(self.network, loss, None if self.mixers is None else self.names)
        if not found:
            raise TypeError("no mixer joins its heads in a layer of its own")
        points = list(found.items())
        return [_Panel("loss of the class without each head", functools.partial(_dots, points=points))]

    def _heat(self, title: str, heat: np.ndarray) -> _Panel:
        return _Panel(title, functools.partial(_show, image=overlay(self.image, heat), query=self.query))


@torch.no_grad()
def _inputs_of_mixers(network: nn.Module, inputs: Tensor) -> list[tuple[str, Mixer, Tensor]]:
    """What each mixer is given, ``[1, H, W, C]``, in the order in which they run."""
    found: list[tuple[str, Mixer, Tensor]] = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: Any, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].ndim == 4 and args[0].shape[0] == 1:
                found.append((name, module, args[0]))

        return record

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in network.named_modules() if isinstance(m, Mixer)]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _show(axes: Axes, image: np.ndarray, query: tuple[float, float] | None) -> None:
    axes.imshow(image)
    axes.set_axis_off()
    if query is not None:
        height, width = image.shape[:2]
        axes.plot(query[1] * width - 0.5, query[0] * height - 0.5, "o", ms=7, mfc="none", mec="#00e5ff", mew=2)


def _dots(axes: Axes, points: list[tuple[str, Tensor]]) -> None:
    """One column of points a mixer, one point a head."""
    for column, (_, values) in enumerate(points):
        axes.plot([column] * len(values), values.tolist(), "o", ms=3.5, color=COLOURS[0], alpha=0.75)
    axes.set_xlabel("mixers, first to last")
    axes.set_xticks(range(len(points)), [str(i + 1) for i in range(len(points))], fontsize=6)
    axes.axhline(0, color="#d9dee3", lw=0.8)
    axes.grid(True, axis="y", color="#d9dee3", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
