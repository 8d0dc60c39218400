"""Models against their public peers on this machine's CPU: ratios from one run, interleaved, same weights.

    python tools/bench_models.py [--rounds 9] [--only NAME] [--skip-compile] [--out docs/benchmarks/models_cpu.csv]

Outputs are compared before anything is timed. A ratio is the median over rounds of (peer's time / our time), so above
1 we are faster; time is this process's CPU time, which other processes disturb least, and wall time for two threads.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("what", "ours", "peer", "threads", "ratio", "low", "high", "ours_ms", "peer_ms", "rounds", "target")


@dataclass
class Comparison:
    """Two ways to compute the same thing."""

    what: str
    ours: str
    peer: str
    target: float
    run_ours: Callable[[], torch.Tensor]
    run_peer: Callable[[], torch.Tensor]
    tolerance: float = 1e-4


def davit_pair(batch: int = 4) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """Our DaViT-tiny and timm's with the same weights, and a batch of images."""
    import timm

    import zoo
    from zoo.weights.importers import timm_davit

    torch.manual_seed(0)
    peer = timm.create_model("davit_tiny", num_classes=1000).eval()
    ours = zoo.create_model("davit_tiny", num_classes=1000).eval()
    ours.load_state_dict(timm_davit.convert_state_dict("davit_tiny", peer.state_dict()))
    return ours, peer, torch.randn(batch, 3, 224, 224)


def comparisons(with_compile: bool) -> list[Callable[[], Comparison]]:
    """Builders of the comparisons, so that only what is measured is in memory."""

    def davit_eager() -> Comparison:
        ours, peer, x = davit_pair()
        return Comparison("DaViT-tiny 224 fp32 eager", "attnzoo", "timm", 1.0, lambda: ours(x), lambda: peer(x))

    def davit_bf16() -> Comparison:
        ours, _, x = davit_pair()
        import copy

        half, xh = copy.deepcopy(ours).bfloat16(), x.bfloat16()
        return Comparison(
            "DaViT-tiny 224 bf16 against our fp32",
            "attnzoo bf16",
            "attnzoo fp32",
            1.7,
            lambda: half(xh).float(),
            lambda: ours(x),
            tolerance=5e-2,
        )

    def davit_compiled() -> Comparison:
        ours, peer, x = davit_pair()
        c_ours, c_peer = torch.compile(ours), torch.compile(peer)
        return Comparison("DaViT-tiny 224 fp32 compiled", "attnzoo", "timm", 1.0, lambda: c_ours(x), lambda: c_peer(x))

    def biformer_eager() -> Comparison:
        sys.path.insert(0, str(ROOT / "tools"))
        from peers.biformer_gather import with_gather_attention

        import zoo

        torch.manual_seed(0)
        ours = zoo.create_model("biformer_tiny").eval()
        peer = with_gather_attention(ours)
        x = torch.randn(4, 3, 224, 224)
        return Comparison(
            "BiFormer-tiny 224 fp32 eager", "attnzoo", "gather formulation", 1.3, lambda: ours(x), lambda: peer(x)
        )

    def linear(name: str, size: int) -> Callable[[], Comparison]:
        def linear_attention() -> Comparison:
            sys.path.insert(0, str(ROOT / "tools"))
            from peers.linear_attention import with_plain_attention

            import zoo

            torch.manual_seed(0)
            ours = zoo.create_model(name).eval()
            peer = with_plain_attention(ours)
            x = torch.randn(4, 3, size, size)
            what = f"{name} {size} fp32 eager"
            return Comparison(what, "attnzoo", "the paper's formulation", 1.0, lambda: ours(x), lambda: peer(x))

        return linear_attention

    found = [davit_eager, davit_bf16, biformer_eager]
    found += [
        linear(name, size)
        for name, size in (
            ("inline_deit_tiny", 224),
            ("inline_pvt_tiny", 224),
            ("inline_swin_tiny", 224),
            ("inline_cswin_tiny", 224),
            ("mavit_tiny", 224),
            ("taylorshift_vit_tiny", 224),
            ("taylorshift_vit_micro", 512),
        )
    ]
    return [*found, davit_compiled] if with_compile else found


def measure(c: Comparison, rounds: int, threads: int) -> dict:
    """Compare outputs, then time both sides alternately."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    with torch.inference_mode():
        a, b = c.run_ours(), c.run_peer()
        error = float((a - b).norm() / b.norm())
        if not error <= c.tolerance:
            raise AssertionError(f"{c.what}: outputs differ by {error:.2e}, more than {c.tolerance:.0e}")
        ours, peer = [], []
        for i in range(rounds):
            order = [(c.run_ours, ours), (c.run_peer, peer)]
            for run, times in order if i % 2 else reversed(order):
                started = clock()
                run()
                times.append(clock() - started)
    ratios = sorted(p / o for o, p in zip(ours, peer, strict=True))
    return {
        "what": c.what,
        "ours": c.ours,
        "peer": c.peer,
        "threads": threads,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "ours_ms": round(statistics.median(ours) * 1e3, 1),
        "peer_ms": round(statistics.median(peer) * 1e3, 1),
        "rounds": rounds,
        "target": c.target,
    }


def peak_memory(batch: int = 16) -> dict:
    """Memory that one forward pass adds to the process, ours and timm's, each in its own process."""
    code = """
import re, torch
import {module}
def peak():  # of this program alone; resource.getrusage counts the one that started it, too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
net = {module}.create_model("davit_tiny", num_classes=1000).eval()
with torch.inference_mode():
    net(torch.zeros(1, 3, 64, 64))
    x = torch.randn({batch}, 3, 224, 224)
    before = peak()
    net(x)
print(peak() - before)
"""
    kib = {}
    for module in ("zoo", "timm"):
        command = [sys.executable, "-c", code.format(module=module, batch=batch)]
        runs = [int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
        kib[module] = statistics.median(runs)
    return {
        "what": f"DaViT-tiny 224 batch {batch}, peak memory added by a forward pass (ratio: timm's / ours)",
        "ours": f"{kib['zoo'] / 1024:.0f} MiB",
        "peer": f"timm {kib['timm'] / 1024:.0f} MiB",
        "ratio": round(kib["timm"] / kib["zoo"], 3),
        "target": 1.0,
    }


def start_up(rounds: int) -> list[dict]:
    """Wall time of `import torch`, of what `import zoo` adds, and of `zoo list`, each a fresh process."""

    def seconds(*command: str) -> float:
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    bare, torch_only = seconds("-c", "pass"), seconds("-c", "import torch")
    both, listing = seconds("-c", "import torch, zoo"), seconds("-m", "zoo.cli", "list")
    share = (both - torch_only) / (torch_only - bare)
    return [
        {"what": "import zoo, as a share of import torch (target: below)", "ratio": round(share, 3), "target": 0.5},
        {"what": "zoo list, seconds (target: below)", "ratio": round(listing, 2), "target": 3.0},
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="only comparisons whose function name contains this")
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out (it takes minutes)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "models_cpu.csv")
    args = parser.parse_args()
    rows = []
    for build in comparisons(not args.skip_compile):
        if args.only and args.only not in build.__name__:
            continue
        comparison = build()
        for threads in (1, 2):
            rows.append(measure(comparison, args.rounds, threads))
            print({k: rows[-1][k] for k in ("what", "threads", "ratio", "low", "high", "target")}, flush=True)
        torch.compiler.reset()
    for extra in (lambda: [peak_memory()], lambda: start_up(args.rounds)):
        for row in [] if args.only else extra():
            rows.append(row)
            print(row, flush=True)
    if not args.only:
        write(rows, args.out)
    return 0


def write(rows: list[dict], out: Path) -> None:
    """The table as CSV, with what it was measured on and when."""
    import timm

    about = write_table(rows, FIELDS, out, timm=timm.__version__)
    page = out.parent.parent / "benchmarks.md"
    page.write_text(markdown(rows, about), encoding="utf-8")
    print(f"written: {out} and {page}")


def write_table(rows: list[dict], columns: Sequence[str], out: Path, **versions: str) -> dict[str, str]:
    """The rows as CSV, with what they were measured on and when, which is given back; all or nothing."""
    today = datetime.date.today().isoformat()
    about = {"cpu": _cpu_name(), "torch": torch.__version__, **versions, "date": today}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*columns, *about))
        writer.writeheader()
        writer.writerows([{**row, **about} for row in rows])
    os.replace(temporary, out)
    return about


def markdown(rows: list[dict], about: dict[str, str]) -> str:
    """``docs/benchmarks.md``: the rows as a table."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured on {about['cpu']}, torch {about['torch']}, timm {about['timm']}, {about['date']}; nothing has been",
        "measured on a GPU. `make bench` measures again and rewrites this page. A ratio is the median over rounds of",
        "the peer's time divided by ours, both alternating in one process after their outputs were compared: above 1",
        "we are faster. Process CPU time with one thread, wall time with two. Operators: `kernels/README.md`.",
        "",
        "| what | threads | ours | peer | ratio (low to high) | target |",
        "|---|--:|---|---|--:|--:|",
    ]
    for r in rows:
        ours = f"{r['ours']} {r['ours_ms']} ms" if "ours_ms" in r else r.get("ours", "")
        peer = f"{r['peer']} {r['peer_ms']} ms" if "peer_ms" in r else r.get("peer", "")
        spread = f" ({r['low']} to {r['high']})" if "low" in r else ""
        lines.append(
            f"| {r['what']} | {r.get('threads', '')} | {ours} | {peer} | {r['ratio']}{spread} | {r['target']} |"
        )
    return "\n".join(lines) + "\n"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
