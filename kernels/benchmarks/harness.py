"""What a benchmark is. A file ``bench_<operator>.py`` here defines ``benchmarks() -> list[Benchmark | Growth]``.

It is loaded by ``run.py`` from this folder, so it says ``from harness import Benchmark, Growth, Setup, randn``. Peers
are written in that file from their papers (or imported from an installed package) and take the same named inputs as
ours.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent

MODES = ("forward", "training")  # training is forward and backward

Implementation = Callable[..., torch.Tensor]


@dataclass
class Setup:
    """Inputs and implementations of one shape, on one device in one dtype.

    Attributes:
        inputs: named tensors; every implementation is called with all of them by name.
        ours: our operator.
        peers: the others, by name; the first is what outputs and gradients are compared with. An implementation that
            works in another layout converts the inputs outside the timed call through ``prepare``.
        grads: names of the inputs that get gradients in the training mode.
        bytes: compulsory traffic of the forward: each input once and each output once.
        flops: of the forward.
        prepare: by implementation name, from the inputs to those it is called with (untimed).
    """

    inputs: dict[str, torch.Tensor]
    ours: Implementation
    peers: dict[str, Implementation] = field(default_factory=dict)
    grads: tuple[str, ...] = ()
    bytes: int = 0
    flops: int = 0
    prepare: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Must:
    """An acceptance line: ``value`` is a ratio to ``peer``, or a fraction of the copy rate if ``peer`` is "copy"."""

    peer: str
    value: float
    mode: str = "forward"


@dataclass(frozen=True)
class Benchmark:
    """One operator at one shape.

    Attributes:
        operator: folder of the operator.
        shape: a short name of the shape, unique within the operator.
        make: (device, dtype) -> Setup. Called once for each device and dtype.
        cpu: acceptance lines on the CPU (float32, one thread); None: not run there.
        gpu: acceptance lines on a GPU (bfloat16); None: not run there.
        modes: those timed.
    """

    operator: str
    shape: str
    make: Callable[[torch.device, torch.dtype], Setup]
    cpu: tuple[Must, ...] | None = ()
    gpu: tuple[Must, ...] | None = ()
    modes: tuple[str, ...] = MODES


@dataclass(frozen=True)
class Growth:
    """How the forward's cost grows when the tokens become four times as many.

    Attributes:
        operator: folder of the operator.
        name: unique within the operator.
        make: (device, dtype, factor) -> Setup with ``factor`` (1 or 4) times the tokens; only ``ours`` is timed.
        tokens: at factor 1, for the plot.
        limit: largest accepted T(4N)/T(N) by device type; linear operators keep the default.
    """

    operator: str
    name: str
    make: Callable[[torch.device, torch.dtype, int], Setup]
    tokens: int
    limit: tuple[tuple[str, float], ...] = (("cpu", 5.2), ("cuda", 4.6))


def randn(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers that are the same on every device."""
    generator = torch.Generator().manual_seed(seed + 7919 * math.prod(shape) % 2**31)
    return (torch.randn(*shape, generator=generator) * scale).to(device=device, dtype=dtype)


def nbytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def collect(operators: list[str]) -> list[Benchmark | Growth]:
    """The benchmarks of all ``bench_*.py`` files, or of the named operators.

    Raises:
        ValueError: an operator without a file.
    """
    files = {p.stem.removeprefix("bench_"): p for p in sorted(HERE.glob("bench_*.py"))}
    for name in operators:
        if name not in files:
            raise ValueError(f"operator {name!r} has no benchmark: accepted are {', '.join(files)}")
    found: list[Benchmark | Growth] = []
    for name, path in files.items():
        if operators and name not in operators:
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        found += module.benchmarks()
    return found
