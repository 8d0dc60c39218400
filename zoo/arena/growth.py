"""How a mixer's own time grows with tokens: 1k to 16k of them, on one CPU thread, and whether that is as claimed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from zoo.arena.grid import Job, Settings
from zoo.arena.measure import exponent, predicted
from zoo.arena.store import Row
from zoo.mixers.base import build_mixer

#: Maps (H, W) of 1,024 to 16,384 tokens.
MAPS = ((32, 32), (32, 64), (64, 64), (64, 128), (128, 128))
DIM, HEADS = 64, 4

#: Largest exponent of a mixer that claims to be linear: 1, and what caches and fixed costs may add.
LINEAR = 1.15

_SECONDS = 2.5  # of measuring after the first round
_ROUNDS = 7


def growth_rows(settings: Settings, job: Job) -> Iterator[Row]:
    """CPU seconds of one image at each number of tokens (the least of several rounds) and the fitted exponent."""
    found: dict[int, float] = {}
    for tokens, value in cpu_times(job.mixer, settings.time_limit, settings.memory_limit).items():
        if isinstance(value, str):
            yield Row("mixer_cpu_ms", error=value, size=tokens)
        else:
            found[tokens] = value
            yield Row("mixer_cpu_ms", 1e3 * value, size=tokens)
    if len(found) >= 3:
        yield Row("mixer_time_exponent", exponent(list(found.items())))
    else:
        yield Row("mixer_time_exponent", error=f"{len(found)} sizes were measured; three are needed")


def cpu_times(
    mixer: Any, time_limit: float = 3.0, memory_limit: float = 3000.0, dim: int = DIM, num_heads: int = HEADS
) -> dict[int, float | str]:
    """Tokens -> CPU seconds of a forward pass, or why it was not measured.

    Sizes are measured in turns, and of each the least time counts, which other load on the machine disturbs least.

    Args:
        mixer: spec of a mixer.
        time_limit: seconds of one pass; what is expected to take longer is skipped.
        memory_limit: MiB that the attention matrices of a mixer that grows quadratically may take.
        dim, num_heads: of the mixer.
    """
    torch.manual_seed(0)
    module = build_mixer(mixer, dim, num_heads, MAPS[0]).eval()
    inputs = {h * w: torch.randn(1, h, w, dim) for h, w in MAPS}
    times: dict[int, float] = {}
    skipped: dict[int, float | str] = {}

    def seconds(tokens: int) -> float:
        started = time.process_time()
        module(inputs[tokens])
        return time.process_time() - started

    with torch.inference_mode():
        module(inputs[MAPS[0][0] * MAPS[0][1]])
        for tokens in inputs:
            expected = predicted({round(n**0.5 * 1000): t for n, t in times.items()}, round(tokens**0.5 * 1000))
            matrix = num_heads * tokens**2 * 4 / 2**20
            if expected is not None and expected > time_limit:
                skipped[tokens] = f"skipped: expected time of {expected:.3g} s is above the limit of {time_limit:g} s"
            elif module.growth == "quadratic" and matrix > memory_limit:
                skipped[tokens] = f"skipped: attention of {matrix:.0f} MiB is above the limit of {memory_limit:g} MiB"
            else:
                times[tokens] = seconds(tokens)
        for done in range(1, _ROUNDS):
            started = time.process_time()
            for tokens in times:
                times[tokens] = min(times[tokens], seconds(tokens))
            if (time.process_time() - started) * (done + 1) > _SECONDS:
                break
    return {**times, **skipped}


def exceeds(claim: str, fitted: float) -> bool:
    """Whether a fitted exponent contradicts what the mixer claims (``Mixer.growth``)."""
    return claim == "linear" and fitted > LINEAR
