"""What a mixer costs in a host: parameters, multiply-accumulates, latency and peak memory, and how they grow.

Peak memory on the CPU is what the process's resident set reached (``VmHWM``) minus what it held before the first of
these images: in a fresh process, sizes ascending, so that nothing of an earlier measurement hides it. It counts what
the operating system had to give, the allocator's rounding included; a profiler of tensors would not see the scratch
memory of matrix products and convolutions. On a GPU it is the peak of allocated memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.arena.grid import Job, Settings, build_host
from zoo.arena.store import Row

_WARM_UP = 64  # pixels
_SECONDS = 0.4  # of repetitions for each size
_MIB = 2**20


def cost_rows(settings: Settings, job: Job) -> Iterator[Row]:
    """Measure a host with a mixer at all sizes; what cannot be measured is a row with the reason."""
    from zoo.complexity import count_flops, count_parameters, on_meta

    sizes = sorted(settings.sizes)
    model = build_host(job.host, job.mixer, image_size=sizes[0], small=False).eval()
    yield Row("parameters", count_parameters(model))
    counted = on_meta(lambda: build_host(job.host, job.mixer, image_size=sizes[0], small=False))
    for size in sizes:
        try:
            yield Row("flops", count_flops(counted, size), size=size)
        except Exception as error:
            yield Row("flops", error=f"{type(error).__name__}: {error}", size=size)
    yield from _device_rows(settings, model, torch.device("cpu"), sizes, strides=model.strides)
    if torch.cuda.is_available():
        yield from _device_rows(settings, model.cuda(), torch.device("cuda"), sizes, strides=model.strides)


def _device_rows(
    settings: Settings, model: nn.Module, device: torch.device, sizes: Sequence[int], strides: Sequence[int]
) -> Iterator[Row]:
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    meter = Meter(device)
    with torch.inference_mode():
        model(torch.zeros(1, 3, _WARM_UP, _WARM_UP, device=device))
        meter.start()
        times: dict[int, float] = {}
        peaks: dict[int, float] = {}
        for size in sizes:
            reason = _too_much(settings, size, times, peaks)
            if reason is None:
                try:
                    x = torch.randn(1, 3, size, size, device=device)
                    # Outside of the timing: the first pass of a size makes buffers and kernels.
                    first = timed(model, x, device)
                    peak = meter.peak()
                    runs = [timed(model, x, device)]
                    while sum(runs) < _SECONDS and len(runs) < 20 and first < settings.time_limit:
                        runs.append(timed(model, x, device))
                except (RuntimeError, MemoryError) as error:
                    reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            if reason is not None:
                yield Row("latency_ms", error=reason, size=size, device=name)
                yield Row("peak_memory_mib", error=reason, size=size, device=name)
                continue
            times[size] = statistics.median(runs)
            yield Row("latency_ms", 1e3 * times[size], size=size, device=name)
            if peak is None:
                yield Row("peak_memory_mib", error=f"unknown on {sys.platform}", size=size, device=name)
            else:
                peaks[size] = max(peak / _MIB, 0.0)
                yield Row("peak_memory_mib", peaks[size], size=size, device=name)
    for measure, values in (("time_exponent", times), ("memory_exponent", peaks)):
        # tokens are in proportion to the square of the side
        points = [((size / min(strides)) ** 2, v) for size, v in values.items() if v > 0]
        if len(points) >= 3:
            yield Row(measure, exponent(points), device=name)
        else:
            yield Row(measure, error=f"{len(points)} sizes were measured; three are needed", device=name)


def _too_much(settings: Settings, size: int, times: dict[int, float], peaks: dict[int, float]) -> str | None:
    """Why a size is not measured, judged by the sizes before it; None where it is."""
    for what, values, limit, unit in (
        ("time", times, settings.time_limit, "s"),
        ("memory", peaks, settings.memory_limit, "MiB"),
    ):
        expected = predicted(values, size)
        if expected is not None and expected > limit:
            return f"skipped: expected {what} of {expected:.3g} {unit} is above the limit of {limit:g} {unit}"
    return None


def predicted(values: dict[int, float], size: int) -> float | None:
    """A size's value by the power law through the two sizes before it (at least in proportion to tokens)."""
    known = [(s, v) for s, v in sorted(values.items()) if v > 0]
    if not known:
        return None
    last_size, last = known[-1]
    power = 2.0
    if len(known) > 1:
        power = max(power, math.log(last / known[-2][1]) / math.log(last_size / known[-2][0]))
    return last * (size / last_size) ** min(power, 4.0)


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """p of ``y = c x ** p``: the least-squares slope of log y over log x.

    Raises:
        ValueError: fewer than two different x, or a value that is not positive.
    """
    if len({x for x, _ in points}) < 2 or any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError(f"points={list(points)}: two different positive x with positive y are needed")
    log_x = [math.log(x) for x, _ in points]
    log_y = [math.log(y) for _, y in points]
    mean_x, mean_y = statistics.fmean(log_x), statistics.fmean(log_y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y))
    return covariance / sum((a - mean_x) ** 2 for a in log_x)


def timed(model: Any, x: torch.Tensor, device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    model(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class Meter:
    """Peak memory since :meth:`start`, in bytes."""

    def __init__(self, device: torch.device):
        self.device = device
        self._base: int | None = None

    def start(self) -> None:
        """Count from here."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._base = torch.cuda.memory_allocated(self.device)
            return
        _give_back()
        self._base = _status("VmRSS")
        # The peak so far belongs to loading libraries and building the model.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def peak(self) -> int | None:
        """The peak; None where this system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - (self._base or 0)
        highest = _status("VmHWM")
        return None if highest is None or self._base is None else highest - self._base


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def _give_back() -> None:
    """Have the C library return freed memory to the system, where it can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
