"""Benchmark the operators against their peers.

    python kernels/benchmarks/run.py --device cpu [--operator window_attention] [--threads 1] [--rounds 9]
    python kernels/benchmarks/run.py --device cuda
    python kernels/benchmarks/run.py --table

Before an implementation is timed its output, and in the training mode its gradients, are compared with the first peer
run in float64 (float32 on a GPU). Then all implementations of a shape are timed in interleaved rounds; a ratio is the
median over the rounds of the peer's time divided by ours. Results go to ``results/`` and from there, by ``--table``,
into ``kernels/README.md``. The exit status is 1 if an acceptance line was missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import platform
import re
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import report
import torch
from harness import Benchmark, Growth, Implementation, Must, collect

from zoo_kernels.testing import TOLERANCE, rel_error

SHOWN = ("operator", "shape", "mode", "implementation", "microseconds", "ratio", "must", "ok", "message")

README = Path(__file__).resolve().parents[1] / "README.md"


def version(package: str) -> str:
    """The installed version of a package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def about(device: torch.device, threads: int) -> dict[str, Any]:
    """The columns that describe the machine and the software."""
    info: dict[str, Any] = {"date": datetime.date.today().isoformat(), "python": platform.python_version()}
    info.update({p: version(p) for p in ("torch", "triton", "timm", "transformers")})
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
        out = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        driver, _, clocks = out[0].partition(", ") if out else ("", "", "")
        return {**info, "device": torch.cuda.get_device_name(device), "driver": driver, "clocks": clocks, "threads": ""}
    return {**info, "device": cpu_name(), "threads": threads}


def cpu_name() -> str:
    """The processor's model name."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def slug(info: dict[str, Any]) -> str:
    """File name of a device's results."""
    name = re.sub(r"[^a-z0-9]+", "-", info["device"].lower()).strip("-")
    return f"{name}-{info['threads']}thread.csv" if info["threads"] else f"{name}.csv"


def wide(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The floating inputs in another dtype."""
    return {k: t.detach().to(dtype) if t.is_floating_point() else t for k, t in inputs.items()}


def timed_call(function: Implementation, grads: tuple[str, ...], mode: str) -> measure.Call:
    """A call of one implementation in one mode; gradients by a fixed incoming gradient of ones."""
    if mode == "forward":

        def forward(inputs: dict[str, torch.Tensor]) -> object:
            with torch.no_grad():
                return function(**inputs)

        return forward

    def training(inputs: dict[str, torch.Tensor]) -> object:
        out = function(**inputs)
        return torch.autograd.grad(out, [inputs[g] for g in grads if g in inputs], torch.ones_like(out))

    return training


def results(
    function: Implementation, inputs: dict[str, torch.Tensor], grads: tuple[str, ...], mode: str
) -> list[torch.Tensor]:
    """Output and, in the training mode, gradients of a fixed random projection."""
    if mode == "forward":
        with torch.no_grad():
            return [function(**inputs)]
    leaves = {k: t.detach().requires_grad_(k in grads) for k, t in inputs.items()}
    out = function(**leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [leaves[g] for g in grads], weight)]


def run_benchmark(
    bench: Benchmark, device: torch.device, dtype: torch.dtype, rounds: int, copy_rate: float
) -> list[dict[str, Any]]:
    """All rows of one operator and shape."""
    musts: tuple[Must, ...] = (bench.cpu if device.type == "cpu" else bench.gpu) or ()
    rows: list[dict[str, Any]] = []
    for mode in bench.modes:
        setup = bench.make(device, dtype)
        base = {"operator": bench.operator, "shape": bench.shape, "dtype": str(dtype)[6:], "mode": mode}
        everyone: dict[str, Implementation] = {"ours": setup.ours, **setup.peers}
        expected: list[torch.Tensor] | None = None
        if setup.peers:
            first = next(iter(setup.peers))
            exact = wide(setup.inputs, torch.float64 if device.type == "cpu" else torch.float32)
            exact = setup.prepare.get(first, lambda i: i)(exact)
            expected = results(setup.peers[first], exact, setup.grads, mode)
        clock = measure.Clock(device)
        measures: dict[str, Callable[[], float]] = {}
        errors: dict[str, float] = {}
        peak: dict[str, int] = {}
        for name, function in everyone.items():
            inputs = setup.prepare.get(name, lambda i: i)(setup.inputs)
            try:
                if expected is not None:
                    got = results(function, inputs, setup.grads, mode)
                    errors[name] = max(rel_error(g, e) for g, e in zip(got, expected, strict=True))
                    allowed = TOLERANCE[dtype] * (1 if name == "ours" else 5)
                    if errors[name] > allowed:
                        raise ArithmeticError(f"differs from {next(iter(setup.peers))} by {errors[name]:.1e}")
                if mode == "training":
                    inputs = {k: t.detach().requires_grad_(k in setup.grads) for k, t in inputs.items()}
                call = timed_call(function, setup.grads, mode)
                if device.type == "cuda":
                    peak[name] = measure.peak_memory(call, inputs)
                measures[name] = clock.prepare(call, inputs, training=mode == "training")
            except (ArithmeticError, RuntimeError, AssertionError, ImportError) as error:
                # A failed implementation keeps its row and gets no time.
                message = f"failed: {type(error).__name__}: {error}"[:200]
                rows.append({**base, "implementation": name, "message": message, "ok": "no" if name == "ours" else ""})
        times = measure.rounds(measures, rounds)
        for name, series in times.items():
            middle = statistics.median(series)
            q20, *_, q80 = statistics.quantiles(series, n=5)
            row = {
                **base,
                "implementation": name,
                "microseconds": f"{middle * 1e6:.1f}",
                "q20": f"{q20 * 1e6:.1f}",
                "q80": f"{q80 * 1e6:.1f}",
                "peak_bytes": peak.get(name),
                "error": f"{errors[name]:.1e}" if name in errors else None,
            }
            if mode == "forward" and setup.bytes:
                row["gb_per_s"] = f"{setup.bytes / middle / 1e9:.1f}"
                row["copy_fraction"] = f"{setup.bytes / middle / copy_rate:.3f}"
            if mode == "forward" and setup.flops:
                row["tflops"] = f"{setup.flops / middle / 1e12:.3f}"
            must = next((m for m in musts if m.mode == mode and m.peer == ("copy" if name == "ours" else name)), None)
            value: float | None = None
            if name != "ours" and "ours" in times:
                value = measure.ratio(times["ours"], series)
                row["ratio"] = f"{value:.2f}"
            elif name == "ours" and setup.bytes:
                value = setup.bytes / middle / copy_rate
            if must is not None and value is not None:
                row["must"], row["ok"] = must.value, "yes" if value >= must.value else "no"
            rows.append(row)
    return rows


def run_growth(growth: Growth, device: torch.device, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """The two rows of a growth line: at N and at 4 N tokens."""
    clock = measure.Clock(device)
    measures = {}
    for factor in (1, 4):
        setup = growth.make(device, dtype, factor)
        measures[str(factor)] = clock.prepare(timed_call(setup.ours, (), "forward"), setup.inputs)
    times = measure.rounds(measures, rounds)
    grown = measure.ratio(times["1"], times["4"])
    limit = dict(growth.limit)[device.type]
    base = {"operator": growth.operator, "shape": growth.name, "dtype": str(dtype)[6:], "mode": "growth"}
    small, large = (f"{statistics.median(times[f]) * 1e6:.1f}" for f in ("1", "4"))
    return [
        {**base, "implementation": "ours", "microseconds": small, "tokens": growth.tokens},
        {
            **base,
            "implementation": "ours at 4 N",
            "microseconds": large,
            "tokens": 4 * growth.tokens,
            "ratio": f"{grown:.2f}",
            "must": f"<= {limit}",
            "ok": "yes" if grown <= limit else "no",
        },
    ]


def main() -> int:
    """Parse the command line, run, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--operator", action="append", default=[], help="only this operator (may be repeated)")
    parser.add_argument("--shape", default="", help="only shapes whose name contains this")
    parser.add_argument("--mode", choices=("forward", "training", "growth"), help="only this mode")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (acceptance lines hold for 1)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, at least 7 for a result to be kept")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, on CUDA bfloat16"
    )
    parser.add_argument("--dry", action="store_true", help="print only, keep no results")
    parser.add_argument("--table", action="store_true", help="write the table of the kept results into the README")
    args = parser.parse_args()
    if args.table:
        report.into_readme(README, report.table(sorted(report.RESULTS.glob("*.csv"))))
        for path in report.RESULTS.glob("*.csv"):
            report.plot(path)
        return 0
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: accepted is at least 2")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    dtype = getattr(torch, args.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    info = about(device, args.threads)
    path = report.RESULTS / slug(info)
    keep = not args.dry and args.rounds >= 7
    limits = measure.ceilings(device)
    shown = {k: f"{v / 1e9:.1f} {'GFLOP/s' if k == 'matmul' else 'GB/s'}" for k, v in limits.items()}
    print(info, shown, flush=True)
    rows: list[dict[str, Any]] = [
        {"operator": "ceiling", "shape": k, "mode": "rate", "implementation": "torch", "message": v}
        for k, v in shown.items()
    ]
    missed = 0
    for bench in collect(args.operator):
        name = bench.name if isinstance(bench, Growth) else bench.shape
        if args.shape not in name:
            continue
        if isinstance(bench, Growth):
            if args.mode not in (None, "growth"):
                continue
            fresh = run_growth(bench, device, dtype, args.rounds)
        else:
            if (bench.cpu if device.type == "cpu" else bench.gpu) is None or args.mode == "growth":
                continue
            fresh = run_benchmark(restricted(bench, args.mode), device, dtype, args.rounds, limits["copy"])
        for row in fresh:
            print(*(str(row[c]) for c in SHOWN if row.get(c) not in (None, "")), sep="  ", flush=True)
        missed += sum(r.get("ok") == "no" for r in fresh)
        rows += fresh
        if keep:
            report.merge(path, [{**info, **r} for r in rows])
    if keep:
        report.plot(path)
    if missed:
        print(f"{missed} acceptance line(s) missed")
    return 1 if missed else 0


def restricted(bench: Benchmark, mode: str | None) -> Benchmark:
    """The benchmark with one of its modes only."""
    if mode is None:
        return bench
    return dataclasses.replace(bench, modes=tuple(m for m in bench.modes if m == mode))


if __name__ == "__main__":
    raise SystemExit(main())
