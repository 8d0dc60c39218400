"""Clocks and ceilings.

On one CPU thread process time, on more wall time; on a GPU events, and CUDA graphs for what is shorter than 50 us.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[dict[str, torch.Tensor]], object]

GRAPH_BELOW = 50e-6  # seconds
ROTATE_OVER = 128 << 20  # bytes: more than twice the L2 cache of an H200


class Clock:
    """Times calls on one device.

    Args:
        device: where the inputs are.
        target: seconds that a measurement of one implementation in one round should take at least (CPU).
    """

    def __init__(self, device: torch.device, target: float = 0.03):
        self.device = device
        self.target = target
        # Process time leaves out what other processes take, but adds up the threads of this one.
        self.now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def prepare(self, call: Call, inputs: dict[str, torch.Tensor], *, training: bool = False) -> Callable[[], float]:
        """Warm ``call`` up and return a function that measures it: seconds a call."""
        if self.device.type == "cuda":
            return self._cuda(call, inputs, training)
        call(inputs)
        start = self.now()
        call(inputs)
        once = max(self.now() - start, 1e-6)
        repeats = max(1, min(2000, round(self.target / once)))

        def measure() -> float:
            # One untimed call: the caches hold this implementation's own data, as in a loop over a model.
            call(inputs)
            start = self.now()
            for _ in range(repeats):
                call(inputs)
            return (self.now() - start) / repeats

        return measure

    def _cuda(self, call: Call, inputs: dict[str, torch.Tensor], training: bool) -> Callable[[], float]:
        size = sum(t.numel() * t.element_size() for t in inputs.values())
        copies = max(2, min(32, -(-ROTATE_OVER // max(size, 1))))
        sets = [inputs] + [
            {k: t.detach().clone().requires_grad_(t.requires_grad) for k, t in inputs.items()}
            for _ in range(copies - 1)
        ]
        for s in (*sets, *sets):
            call(s)
        torch.cuda.synchronize()

        def events() -> float:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            # Work in front of the first event hides the launch latency of what is timed.
            torch.cuda._sleep(2_000_000)
            begin.record()
            for s in sets:
                call(s)
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) * 1e-3 / len(sets)

        if training or min(events() for _ in range(3)) >= GRAPH_BELOW:
            return events
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for s in sets:
                call(s)

        def replay() -> float:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) * 1e-3 / len(sets)

        replay()
        return replay


def rounds(measures: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """``count`` interleaved rounds; the order turns by one each round. Seconds a call of each, by round."""
    names = list(measures)
    times: dict[str, list[float]] = {n: [] for n in names}
    for i in range(count):
        for n in names[i % len(names) :] + names[: i % len(names)]:
            times[n].append(measures[n]())
    return times


def ratio(ours: list[float], other: list[float]) -> float:
    """Median over the rounds of other / ours: how many times faster ours is."""
    return statistics.median(o / m for m, o in zip(ours, other))


def peak_memory(call: Call, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes that a call holds at its peak beyond what was held before, its output included (CUDA)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call(inputs)
    torch.cuda.synchronize()
    del out
    return torch.cuda.max_memory_allocated() - before


def ceilings(device: torch.device, count: int = 7) -> dict[str, float]:
    """Measured rates: copy and gather in bytes/s (read and written), matmul in FLOP/s."""
    clock = Clock(device)
    on_gpu = device.type == "cuda"
    big = torch.empty((1 << 30) if on_gpu else (64 << 20), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(big)
    # Random rows of 64 bytes from a table of 11 MB, as multi-scale deformable attention reads them.
    table = torch.randn(11_000_000 // 64, 16, device=device)
    rows = torch.randint(len(table), (1 << (22 if on_gpu else 18),), device=device)
    n = 8192 if on_gpu else 1024
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    work: dict[str, tuple[Call, dict[str, torch.Tensor], float]] = {
        "copy": (lambda i: i["to"].copy_(i["from"]), {"from": big, "to": target}, 2.0 * big.numel()),
        "gather": (lambda i: i["table"].index_select(0, i["rows"]), {"table": table, "rows": rows}, len(rows) * 128.0),
        "matmul": (lambda i: i["a"] @ i["a"], {"a": a}, 2.0 * n**3),
    }
    return {
        name: amount / statistics.median(rounds({name: clock.prepare(call, inputs)}, count)[name])
        for name, (call, inputs, amount) in work.items()
    }
