"""Choose launch configurations of an operator's Triton kernels by measurement, on the benchmark's shapes.

    python kernels/benchmarks/tune.py --operator window_attention --device cuda [--shape "56 C96"] [--rounds 9] [--dry]

For each shape and mode of ``bench_<operator>.py``, and each kernel that it launches, a few candidates run in turns with
the default. A candidate whose output or gradients differ from the float32 result of the first peer by
more than the dtype's tolerance is dropped, as is one that does not compile. The fastest goes into
``zoo_kernels/tuning/<architecture>.json`` if it beats the default by three percent in the median; otherwise an entry
says that the default was the best there, so that no neighbour's entry serves the shape. The exit status is 2 without a
CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import measure
import report
import torch
from harness import Benchmark, Implementation, Setup, collect
from run import results, timed_call, wide

from zoo_kernels import tuning
from zoo_kernels.testing import TOLERANCE, rel_error

Config = dict[str, int]

#: A candidate must be this much faster than the default: less is noise, and the default needs no entry.
GAIN = 1.03


def warps(*counts: int, stages: Iterable[int] = (2,), **tile: Iterable[int]) -> list[Config]:
    """All combinations of warps, stages and tile sizes."""
    found: list[Config] = [{"num_warps": w, "num_stages": s} for w in counts for s in stages]
    for name, sizes in tile.items():
        found = [{**c, name: size} for c in found for size in sizes]
    return found


_DENSE = warps(4, 8, stages=(2, 3), BM=(64, 128), BN=(32, 64))
_ROUTED = warps(2, 4, stages=(2, 3), BLOCK_M=(32, 64), BLOCK_N=(32, 64))
_AGENT = warps(4, 8, stages=(2, 3), BLOCK_N=(32, 64, 128))
_DEFORM = [{"num_warps": w, "BLOCK": b} for w in (2, 4, 8) for b in (8, 16, 32, 64)]
_LINEAR = warps(4, 8, stages=(1, 2, 3), BN=(16, 32, 64, 128))
_NEIGHBORS = warps(4, 8, stages=(1, 2, 3), BK=(32, 64, 128))
_HALO = warps(4, 8, stages=(1, 2, 3), TQ=(16, 32, 64))
_CELL = [{"num_warps": w, "BP": p} for w in (1, 2, 4, 8) for p in (16, 32, 64)]

#: What is tried, by the kernel's name in the tables.
CANDIDATES: dict[str, list[Config]] = {
    "window_forward": warps(2, 4, 8, stages=(1, 2, 3), BM=(16, 32, 64)),
    "window_backward": warps(4, 8, stages=(1, 2), BM=(16, 32, 64)),
    "channel_gram": warps(4, 8, stages=(2, 3, 4), BLOCK_N=(32, 64, 128), BLOCK_C=(32, 64)),
    "dense_key_stats": _DENSE,
    "dense_forward": _DENSE,
    "dense_backward_keys": _DENSE,
    "dense_backward_queries": _DENSE,
    "dense_backward_bias": _DENSE,
    "routed_forward": _ROUTED,
    "routed_grad_q": _ROUTED,
    "routed_grad_kv": _ROUTED,
    "agent_collect": _AGENT,
    "agent_spread": _AGENT,
    "agent_grad_spread": _AGENT,
    "agent_grad_collect": _AGENT,
    "ms_deform_forward": _DEFORM,
    "ms_deform_backward": _DEFORM,
    "super_token_cell": _CELL,
    "super_token_mean": _CELL,
    "super_token_spread": _CELL,
    "linear_forward": _LINEAR,
    "linear_backward": _LINEAR,
    "linear_causal_forward": _LINEAR,
    "linear_causal_backward": _LINEAR,
    "linear_taylor_forward": _LINEAR,
    "linear_taylor_backward": _LINEAR,
    "neighborhood_forward": _NEIGHBORS,
    "neighborhood_grad_q": _NEIGHBORS,
    "neighborhood_grad_kv": _NEIGHBORS,
    "halo_forward": _HALO,
    "halo_grad_q": _HALO,
    "halo_grad_kv": warps(4, 8, stages=(1, 2), TQ=(32, 64), TK=(32, 64)),
}


def with_config(kernel: str, use: Config, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` with the kernel launched as ``use`` says; empty: as the launch site would without a table."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with tuning.trial(kernel, use):
            return call(*args, **kwargs)

    return run


def asked_by(setup: Setup, mode: str) -> list[tuning.Query]:
    """The launches of one call, without repetition; each kernel's first shape stands for all of the call."""
    with tuning.asked() as queries:
        results(setup.ours, setup.inputs, setup.grads, mode)
    return list({query.kernel: query for query in reversed(queries)}.values())[::-1]


def refusal(
    function: Implementation, setup: Setup, mode: str, expected: list[torch.Tensor], dtype: torch.dtype
) -> str | None:
    """Why a configuration cannot be used: it fails, or its results are wrong."""
    try:
        got = results(function, setup.inputs, setup.grads, mode)
        error = max(rel_error(g, e) for g, e in zip(got, expected, strict=True))
    except Exception as problem:  # whatever compiler or driver raise, the configuration is out
        return f"{type(problem).__name__}: {problem}".splitlines()[0][:120]
    return None if error <= TOLERANCE[dtype] else f"differs by {error:.1e}"


def compare(
    kernel: str, use: Config, call: measure.Call, inputs: dict[str, torch.Tensor], mode: str, rounds: int
) -> float:
    """How many times faster a call is with a configuration than with the default; both in turns."""
    clock = measure.Clock(next(iter(inputs.values())).device)
    pair = {
        name: clock.prepare(with_config(kernel, config, call), inputs, training=mode == "training")
        for name, config in (("default", {}), ("candidate", use))
    }
    times = measure.rounds(pair, rounds)
    return measure.ratio(times["candidate"], times["default"])


def tune(
    bench: Benchmark,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    candidates: dict[str, list[Config]] | None = None,
) -> dict[str, list[dict[str, Config]]]:
    """The table's entries for one benchmark, by kernel; ``use`` is empty where no candidate beats the default.

    Raises:
        ArithmeticError: the default configuration's results are wrong: nothing can be chosen.
    """
    candidates = CANDIDATES if candidates is None else candidates
    found: dict[str, list[dict[str, Config]]] = {}
    for mode in bench.modes:
        setup = bench.make(device, dtype)
        first = next(iter(setup.peers))
        exact = wide(setup.inputs, torch.float64 if device.type == "cpu" else torch.float32)
        exact = setup.prepare.get(first, lambda i: i)(exact)
        expected = results(setup.peers[first], exact, setup.grads, mode)
        inputs = setup.inputs
        if mode == "training":
            inputs = {k: t.detach().requires_grad_(k in setup.grads) for k, t in inputs.items()}
        for query in asked_by(setup, mode):
            if query.kernel in found or query.kernel not in candidates:
                continue  # the forward kernels were chosen by the forward's time
            default = dict(query.default)
            reason = refusal(with_config(query.kernel, {}, setup.ours), setup, mode, expected, dtype)
            if reason is not None:
                raise ArithmeticError(f"{bench.operator}, {bench.shape}, {mode}: the default {reason}")
            use: Config = {}
            best = GAIN
            for candidate in candidates[query.kernel]:
                if {**default, **candidate} == default:
                    continue
                reason = refusal(with_config(query.kernel, candidate, setup.ours), setup, mode, expected, dtype)
                if reason is not None:
                    print(f"  {query.kernel} {candidate}: {reason}", flush=True)
                    continue
                gain = compare(query.kernel, candidate, timed_call(setup.ours, setup.grads, mode), inputs, mode, rounds)
                print(f"  {query.kernel} {candidate}: {gain:.3f} times as fast", flush=True)
                if gain >= best:
                    use, best = candidate, gain
            taken = f"{use}, {best:.3f} times as fast" if use else "kept"
            print(f"{bench.operator}, {bench.shape}, {mode}: {query.kernel} default {default}: {taken}", flush=True)
            found[query.kernel] = [{"exact": dict(query.exact), "near": dict(query.near), "use": use}]
    return found


def merge(path: Path, fresh: dict[str, list[dict[str, Config]]]) -> None:
    """Put entries into a table in place of those of the same shapes."""
    table: dict[str, list[dict[str, Config]]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for kernel, entries in fresh.items():
        shapes = [(e["exact"], e["near"]) for e in entries]
        table[kernel] = [e for e in table.get(kernel, []) if (e["exact"], e["near"]) not in shapes] + entries
    lines = [
        f"  {json.dumps(kernel)}: [\n" + ",\n".join(f"    {json.dumps(e)}" for e in table[kernel]) + "\n  ]"
        for kernel in sorted(table)
    ]
    report.write(path, "{\n" + ",\n".join(lines) + "\n}\n" if lines else "{}\n")
    tuning.forget()


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operator", required=True, help="the operator's folder")
    parser.add_argument("--device", default="cuda", help="a CUDA device")
    parser.add_argument("--shape", default="", help="only shapes whose name contains this")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, at least 3")
    parser.add_argument("--dry", action="store_true", help="print only, write no table")
    args = parser.parse_args(arguments)
    if args.rounds < 3:
        parser.error(f"--rounds {args.rounds}: accepted is at least 3")
    device = torch.device(args.device)
    if device.type != "cuda" or not torch.cuda.is_available():
        found = "torch finds none" if device.type == "cuda" else "this is none"
        print(f"--device {args.device}: configurations are measured on a CUDA device, and {found}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    try:
        benches = [b for b in collect([args.operator]) if isinstance(b, Benchmark)]
    except ValueError as error:
        parser.error(str(error))
    benches = [b for b in benches if b.gpu is not None and args.shape in b.shape]
    if not benches:
        parser.error(f"--shape {args.shape!r}: no benchmark of {args.operator} on a GPU has a name with it")
    name = tuning.architecture(device)
    path = tuning.TABLES / f"{name}.json"
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = getattr(torch, args.dtype)
    with torch.cuda.device(device):
        for bench in benches:
            entries = tune(bench, device, dtype, args.rounds)
            if not entries:
                print(f"{bench.operator}, {bench.shape}: launches no kernel that has candidates")
            elif not args.dry:
                merge(path, entries)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
