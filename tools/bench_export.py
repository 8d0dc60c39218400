"""onnxruntime against PyTorch on this machine's CPU, a model of each family: ratios from one run, interleaved.

    python tools/bench_export.py [--models NAME ...] [--batch 1] [--rounds 7] [--threads 1]
                                 [--out docs/benchmarks/export_cpu.csv]

Each model is exported as initialised and compared with PyTorch before anything is timed. A ratio is the median over
rounds of (PyTorch's time / onnxruntime's time): above 1 onnxruntime is faster, below 1 the table says so. Without
--models it takes the smallest model of each family that is made for images of 224 pixels or more.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FIELDS = (
    "family", "model", "image", "batch", "threads", "eager_ms", "onnx_ms", "ratio", "low", "high", "faster",
    "error", "rounds", "cpu", "torch", "onnxruntime", "date", "note",
)  # fmt: skip


def chosen() -> list[str]:
    """The smallest model of each family that is made for images of 224 pixels or more."""
    from zoo.complexity import count_parameters, on_meta
    from zoo.registry import MODELS

    smallest: dict[str, tuple[int, str]] = {}
    for name in MODELS.names(task="classification"):
        meta = MODELS.entry(name).meta
        if meta.get("input_size", 0) >= 224:
            count = count_parameters(on_meta(MODELS.get(name)))
            family = meta["family"]
            smallest[family] = min(smallest.get(family, (count, name)), (count, name))
    return [name for _, (_, name) in sorted(smallest.items())]


def measure(name: str, batch: int, rounds: int, threads: int) -> dict:
    """One line of the table; without times where the model cannot be exported."""
    import onnxruntime

    from zoo.export import ExportError, export_model, load_exported
    from zoo.inference.load import untrained_predictor
    from zoo.registry import MODELS

    torch.set_num_threads(threads)
    predictor = untrained_predictor(name)
    row = {
        "family": MODELS.entry(name).meta["family"],
        "model": name,
        "batch": batch,
        "threads": threads,
        "rounds": rounds,
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        try:
            report = export_model(predictor, path, batch=batch)
        except ExportError as error:
            return {**row, "note": " ".join(str(error).split())}
        exported = load_exported(path, threads=threads)
    height, width = report.facts["size"]
    row |= {"image": f"{height}x{width}", "error": f"{report.max_error:.1e}", "note": " ".join(report.notes)}
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    eager: list[float] = []
    onnx: list[float] = []
    with torch.inference_mode():
        for _ in range(2):
            predictor.network(x), exported(x)
        for i in range(rounds):
            for run, times in [(predictor.network, eager), (exported, onnx)][:: 1 if i % 2 else -1]:
                started = time.perf_counter()
                run(x)
                times.append(time.perf_counter() - started)
    ratios = sorted(e / o for e, o in zip(eager, onnx, strict=True))
    ratio = statistics.median(ratios)
    return {
        **row,
        "eager_ms": round(statistics.median(eager) * 1e3, 2),
        "onnx_ms": round(statistics.median(onnx) * 1e3, 2),
        "ratio": round(ratio, 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "faster": "yes" if ratio >= 1 else "no",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "export_cpu.csv")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for name in args.models or chosen():
            row = measure(name, args.batch, args.rounds, args.threads)
            writer.writerow(row)
            file.flush()
            said = f"{row['ratio']:.2f}x" if "ratio" in row else "not exported"
            print(f"{name:<28} {said:<14} {row.get('note', '')}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
