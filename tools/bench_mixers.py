"""Mixers and ported backbones against their peers on this machine's CPU: interleaved rounds, same weights.

    python tools/bench_mixers.py [--rounds 11] [--only TEXT] [--threads 1 2] [--out docs/benchmarks/mixers_cpu.csv]

Pairs come from the files of ``tools/peers`` (``peers.registry.pair``). Outputs are compared before anything is timed; a
ratio is the median over rounds of (peer's time / our time), so above 1 we are faster. With one thread the time is this
process's CPU time, which other processes disturb least, with more it is wall time. Exit status 1 if a ratio is below
its target. With ``--only`` nothing is written.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402 (its folder is on the path only now)
from peers.registry import PAIRS, Pair  # noqa: E402

FIELDS = ("kind", "name", *bench_models.FIELDS)


def registered() -> list[Pair]:
    """All pairs of the files in ``tools/peers``, mixers first."""
    for path in sorted((ROOT / "tools" / "peers").glob("*.py")):
        importlib.import_module(f"peers.{path.stem}")
    return sorted(PAIRS.values(), key=lambda p: (p.kind != "mixer", p.name))


def measured(pair: Pair, rounds: int, threads: int) -> dict[str, Any]:
    """One row of the table."""
    run_ours, run_peer = pair.build()
    comparison = bench_models.Comparison(
        pair.what, "attnzoo", pair.peer, pair.target, run_ours, run_peer, pair.tolerance
    )
    return {"kind": pair.kind, "name": pair.name, **bench_models.measure(comparison, rounds, threads)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", metavar="TEXT", help="only pairs whose name contains this; nothing is written")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads to measure with")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "mixers_cpu.csv")
    args = parser.parse_args(argv)
    pairs = [p for p in registered() if not args.only or args.only in p.name]
    if not pairs:
        parser.error(f"--only {args.only}: no pair has this in its name; there are {', '.join(PAIRS)}")
    rows = []
    for threads in args.threads:
        for pair in pairs:
            rows.append(measured(pair, args.rounds, threads))
            row = rows[-1]
            spread, times = f"{row['low']} to {row['high']}", f"{row['ours_ms']} ms against {row['peer_ms']} ms"
            print(
                f"{row['kind']:8s} {row['name']:20s} {threads} thread(s): {row['ratio']:6.2f} x ({spread}), "
                f"target {row['target']}, {times}",
                flush=True,
            )
    if not args.only:
        bench_models.write_table(rows, FIELDS, args.out)
        print(f"written: {args.out}")
    slow = [f"{row['name']} ({row['ratio']} < {row['target']})" for row in rows if row["ratio"] < row["target"]]
    if slow:
        print(f"below target: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
