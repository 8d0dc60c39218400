"""End-to-end throughput of zoo.predict over image files, as a share of the network's own throughput.

    python tools/bench_inference.py [--model davit_tiny] [--images 500] [--batch-size 16] [--rounds 3] [--threads N]
                                    [--out docs/benchmarks/inference_cpu.csv]

The network's own throughput is that of the same batches, decoded, prepared and normalised beforehand. Both are measured
in turns over the same images, and the ratio is the median of the rounds.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.9


def write_images(folder: Path, count: int) -> None:
    """JPEG photographs of the usual size of ImageNet's (500 x 375), different each: smooth shapes and some noise."""
    import cv2

    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = (375, 500) if i % 3 else (500, 375)
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += rng.integers(-12, 13, image.shape, dtype=np.int16)
        path = folder / f"{i:05d}.jpg"
        if not cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"OpenCV cannot write {path}")


def measure(model: str, images: int, batch_size: int, rounds: int) -> dict:
    """Images per second of the network and end to end, and their ratio, a round each."""
    from zoo.data.loading import read_image
    from zoo.inference.load import untrained_predictor

    predictor = untrained_predictor(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, images)
        files = sorted(folder.iterdir())
        batches = [
            [predictor.prepare(read_image(f))[0] for f in files[i : i + batch_size]]
            for i in range(0, images, batch_size)
        ]
        normalised = []
        for batch in batches:
            x = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255
            normalised.append((x - predictor.mean) / predictor.std)

        def network_alone() -> float:
            started = time.perf_counter()
            with torch.inference_mode():
                for x in normalised:
                    predictor.network(x)
            return time.perf_counter() - started

        def end_to_end() -> float:
            started = time.perf_counter()
            count = sum(1 for _ in predictor(folder, batch_size=batch_size, stream=True))
            seconds = time.perf_counter() - started
            if count != images:
                raise AssertionError(f"{count} results for {images} images")
            return seconds

        decode = time.perf_counter()
        for file in files[: min(50, images)]:
            predictor.prepare(read_image(file))
        decode = (time.perf_counter() - decode) / min(50, images)
        with torch.inference_mode():
            predictor.network(normalised[0])  # warm up
        alone, whole = [], []
        for i in range(rounds):
            for run, times in [(network_alone, alone), (end_to_end, whole)][:: 1 if i % 2 else -1]:
                times.append(run())
    ratios = [a / w for a, w in zip(alone, whole, strict=True)]
    return {
        "model": model,
        "images": images,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "network_images_per_second": round(images / statistics.median(alone), 2),
        "end_to_end_images_per_second": round(images / statistics.median(whole), 2),
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "target": TARGET,
        "prepare_ms_per_image": round(decode * 1e3, 2),
        "rounds": rounds,
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="davit_tiny")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "inference_cpu.csv")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    row = measure(args.model, args.images, args.batch_size, args.rounds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    for key, value in row.items():
        print(f"{key:<30} {value}")
    return 0 if row["ratio"] >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
