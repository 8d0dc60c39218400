"""Intermediate results that modules hand out for auxiliary losses: attention maps, load-balancing terms.

A module that has something to hand out derives from :class:`Recorder` and calls ``keep`` in its forward pass; nothing
is kept unless someone asks:

>>> with recording(backbone, "attention") as records:
...     logits = backbone(images)
>>> loss = diversification(records["attention"])  # one tensor a block, in the order of the modules
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn


class Recorder(nn.Module):
    """A module that can hand out intermediate results, listed by name in ``records``."""

    #: names of what it can keep
    records: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self._wanted: tuple[str, ...] = ()
        self._kept: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        """Whether ``name`` is being recorded, so that what is only computed for it can be left out otherwise."""
        return name in self._wanted

    def keep(self, name: str, value: Tensor) -> None:
        """Hand out ``value`` under ``name`` if it is being recorded; graph and gradient stay attached."""
        if name in self._wanted:
            self._kept[name] = value


def recorders(model: nn.Module, name: str) -> list[Recorder]:
    """Modules of ``model`` that can hand out ``name``, in the order of the modules."""
    return [m for m in model.modules() if isinstance(m, Recorder) and name in m.records]


@contextmanager
def recording(model: nn.Module, *names: str) -> Iterator[dict[str, list[Tensor]]]:
    """Record ``names`` inside the block; the yielded dict is filled when the block ends.

    Raises:
        ValueError: no module of ``model`` has something of that name; the message lists the names that there are.
    """
    found = {name: recorders(model, name) for name in names}
    for name, modules in found.items():
        if not modules:
            known = sorted({n for m in model.modules() if isinstance(m, Recorder) for n in m.records})
            raise ValueError(
                f"{type(model).__name__} records no {name!r}; it records {', '.join(map(repr, known)) or 'nothing'}"
            )
    result: dict[str, list[Tensor]] = {}
    modules = list({id(m): m for ms in found.values() for m in ms}.values())
    for m in modules:
        m._wanted, m._kept = names, {}
    try:
        yield result
        for name, ms in found.items():
            result[name] = [m._kept[name] for m in ms if name in m._kept]
    finally:
        for m in modules:
            m._wanted, m._kept = (), {}
