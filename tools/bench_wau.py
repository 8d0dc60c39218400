"""Window attention upsampling against its plain unfold formulation on this machine's CPU: interleaved rounds.

    python tools/bench_wau.py [--rounds 11] [--only TEXT] [--threads 1 2] [--out docs/benchmarks/wau_cpu.csv]

Both sides have the same weights; outputs and gradients are compared before anything is timed. A ratio is the median
over rounds of (unfold's time / our time), so above 1 we are faster. With one thread the time is this process's CPU
time, which other processes disturb least, with more it is wall time. Blocks with an MLP, which both sides compute
alike, are told beside those without and have no target. Exit status 1 if a ratio is below its target. With ``--only``
nothing is written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402 (its folder is on the path only now)
from peers.wau_unfold import with_unfold  # noqa: E402

from zoo.medical.wau import WindowAttentionUpsample  # noqa: E402

TARGET = 1.5
FIELDS = ("what", "direction", "threads", "ratio", "low", "high", "ours_ms", "unfold_ms", "rounds", "target")
#: name -> arguments of the block, batch and size of the lateral map
CASES: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "2-D 64 x 64, 64 channels": (dict(lateral_dim=64, coarse_dim=128, dim=64), 2, (64, 64)),
    "2-D 128 x 128, 32 channels": (dict(lateral_dim=32, coarse_dim=64, dim=32), 2, (128, 128)),
    "3-D 32^3, window 2": (dict(lateral_dim=32, coarse_dim=64, dim=32, window=2, dims=3), 1, (32, 32, 32)),
    "3-D 32^3, window 4": (dict(lateral_dim=32, coarse_dim=64, dim=32, window=4, dims=3), 1, (32, 32, 32)),
}


def blocks(name: str, mlp_ratio: float) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Our block, unfold's with the same weights, a lateral and a coarse map."""
    arguments, batch, sizes = CASES[name]
    torch.manual_seed(0)
    layer = WindowAttentionUpsample(**arguments, mlp_ratio=mlp_ratio)
    lateral = torch.randn(batch, arguments["lateral_dim"], *sizes)
    coarse = torch.randn(batch, arguments["coarse_dim"], *(n // s for n, s in zip(sizes, layer.stride)))
    return layer, with_unfold(layer), lateral, coarse


def gradients(block: nn.Module, lateral: Tensor, coarse: Tensor) -> list[Tensor]:
    """Output and gradients of both maps and all parameters, of the sum of squares of the output."""
    maps = lateral.detach().requires_grad_(), coarse.detach().requires_grad_()
    out = block(*maps)
    parameters = list(block.parameters())
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [*maps, *parameters])]


def forward(block: nn.Module, lateral: Tensor, coarse: Tensor) -> list[Tensor]:
    """The output alone."""
    with torch.inference_mode():
        return [block(lateral, coarse)]


def check_equal(ours: list[Tensor], peer: list[Tensor], what: str, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless each is near: the norm of the difference over the norm."""
    for a, b in zip(ours, peer, strict=True):
        error = float((a - b).norm() / b.norm().clamp_min(1e-12))
        if not error <= tolerance:
            raise AssertionError(f"{what}: results differ by {error:.2e}, more than {tolerance:.0e}")


def measure(name: str, mlp_ratio: float, direction: str, rounds: int, threads: int) -> dict[str, Any]:
    """One row of the table."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    layer, peer, lateral, coarse = blocks(name, mlp_ratio)
    run: Callable[..., list[Tensor]] = forward if direction == "forward" else gradients
    what = f"{name}, MLP {mlp_ratio}" if mlp_ratio else name
    check_equal(run(layer, lateral, coarse), run(peer, lateral, coarse), f"{what}, {direction}")
    times: dict[str, list[float]] = {"ours": [], "unfold": []}
    for i in range(rounds):
        pair = [("ours", layer), ("unfold", peer)]
        for key, block in pair if i % 2 else reversed(pair):
            started = clock()
            run(block, lateral, coarse)
            times[key].append(clock() - started)
    ratios = sorted(p / o for o, p in zip(times["ours"], times["unfold"], strict=True))
    return {
        "what": what,
        "direction": direction,
        "threads": threads,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "ours_ms": round(statistics.median(times["ours"]) * 1e3, 2),
        "unfold_ms": round(statistics.median(times["unfold"]) * 1e3, 2),
        "rounds": rounds,
        "target": TARGET if not mlp_ratio else "",
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name contains this; nothing is written")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure with")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "wau_cpu.csv")
    args = parser.parse_args(argv)
    names = [n for n in CASES if not args.only or args.only in n]
    if not names:
        parser.error(f"--only {args.only}: no case has this in its name; there are {', '.join(CASES)}")
    rows = []
    for threads in args.threads:
        for name in names:
            for mlp_ratio in (0.0, 2.0):
                for direction in ("forward", "forward and backward"):
                    row = measure(name, mlp_ratio, direction, args.rounds, threads)
                    rows.append(row)
                    print(
                        f"{row['what']:36s} {direction:20s} {threads} thread(s): {row['ratio']:.2f} x "
                        f"({row['low']} to {row['high']}), {row['ours_ms']} ms against {row['unfold_ms']} ms",
                        flush=True,
                    )
    if not args.only:
        bench_models.write_table(rows, FIELDS, args.out)
        print(f"written: {args.out}")
    slow = [r for r in rows if r["target"] and r["ratio"] < r["target"]]
    for row in slow:
        print(f"below target: {row['what']}, {row['direction']}, {row['threads']} thread(s)", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
