"""From a network to a graph: ``torch.export`` with as much left open as the model allows."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: "all": number of images, height and width are free; "batch": the number of images; "none": nothing.
DYNAMIC = ("all", "batch", "none")


class ExportError(RuntimeError):
    """A model that a format cannot hold, or whose file does not compute what the model computes."""


def stride_of(network: nn.Module) -> int:
    """What a free height and width are multiples of: the largest stride of the network's backbone."""
    for module in network.modules():
        strides = getattr(module, "stage_strides", None) or getattr(module, "strides", None)
        if isinstance(strides, tuple | list) and strides:
            return int(max(strides))
    return 32


def capture(
    network: nn.Module, size: tuple[int, int], dynamic: str, batch: int = 2
) -> tuple[torch.export.ExportedProgram, int]:
    """The graph of a network in evaluation mode on the CPU.

    Args:
        network: takes ``[B, 3, h, w]`` float32.
        size: height and width.
        dynamic: one of :data:`DYNAMIC`.
        batch: number of images where it is not dynamic.

    Returns:
        The graph, and what height and width are multiples of (1 where they are fixed).

    Raises:
        ExportError: it cannot be captured so; the message has torch's reason.
    """
    if dynamic not in DYNAMIC:
        raise ValueError(f"dynamic={dynamic!r}: accepted are {', '.join(DYNAMIC)}")
    multiple = stride_of(network) if dynamic == "all" else 1
    images = torch.randn(2 if dynamic != "none" else batch, 3, *size)
    shapes: dict[int, Any] = {}
    if dynamic != "none":
        shapes[0] = torch.export.Dim.DYNAMIC
    if dynamic == "all":
        # Two different sizes of two or more units each, since torch takes equal numbers for the same one and one for a
        # constant.
        height = max(2, -(-size[0] // multiple))
        width = max(2, -(-size[1] // multiple)) + 1
        images = torch.randn(2, 3, height * multiple, width * multiple)
        shapes[2] = multiple * torch.export.Dim("_h", min=1, max=64)
        shapes[3] = multiple * torch.export.Dim("_w", min=1, max=64)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(network, (images,), dynamic_shapes=(shapes,), strict=False), multiple
    except Exception as error:  # torch.export raises UserError, RuntimeError, ValueError, AssertionError ...
        raise ExportError(f"torch.export with dynamic={dynamic!r}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Kind and the telling line of an exception of torch's exporters, which write pages of advice."""
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    telling = [x for x in lines if x.startswith(("<class", "Cannot", "Constraints", "Could not", "Unsupported", "No "))]
    return f"{type(error).__name__}: {(telling or lines or ['no details'])[0][:300]}"


def compiler() -> str | None:
    """Path of a C++ compiler that AOTInductor can use, or None."""
    import os

    named = os.environ.get("CXX")
    return next((p for c in (named, "g++", "clang++", "c++", "cl") if c and (p := shutil.which(c))), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' log and warnings, which tell about torch's inside."""
    import warnings

    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "torch._inductor", "onnxscript", "root")]
    levels = [x.level for x in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels):
            one.setLevel(level)
