"""Whole volumes on this machine's CPU: sliding windows and metrics against MONAI's, and the memory of a large scan.

    python tools/bench_medical.py [--rounds 11] [--only TEXT] [--threads 1] [--out docs/benchmarks/medical_cpu.csv]

Both sides slide the same network, with the same windows and weights, or score the same label maps; results are
compared before anything is timed. A ratio is the median over interleaved rounds of (MONAI's time / our time), so above
1 we are faster. With one thread the time is this process's CPU time, which other processes disturb least, with more it
is wall time. The memory rows are peak resident sizes of processes of their own: from a NIfTI file of 512 x 512 x 300
voxels to a label map of 14 classes in a file, with windows that overlap by a half, and by three quarters. Exit status 1
if a row misses its target. With ``--only`` nothing is written.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402 (its folder is on the path only now)

from zoo.medical.sliding import sliding_window  # noqa: E402
from zoo.metrics.volume import score_labels  # noqa: E402

FIELDS = ("what", "threads", "ratio", "low", "high", "ours", "monai", "unit", "rounds", "target")
MEMORY_LIMIT = 6.0
#: The scan whose memory is measured: voxels along X, Y, Z, and classes.
SCAN, CLASSES = (512, 512, 300), 14

Pair = tuple[Callable[[], Any], Callable[[], Any]]


class Pointwise(nn.Module):
    """A network that costs next to nothing, so that what is measured is what is around it."""

    def __init__(self, classes: int = CLASSES, dims: int = 3):
        super().__init__()
        self.dims, self.in_chans, self.num_classes = dims, 1, classes
        self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def unet(dims: int) -> nn.Module:
    """MONAI's residual U-Net."""
    from monai.networks.nets import UNet

    return UNet(dims, 1, 5, (16, 32, 64, 128), (2, 2, 2), num_res_units=2).eval()


def sliding_pair(network: nn.Module, size: tuple[int, ...], window: tuple[int, ...], batch: int, labels: bool) -> Pair:
    """Ours and MONAI's over the same volume; class indices instead of logits with ``labels``."""
    from monai.inferers import sliding_window_inference

    volume = torch.randn(1, 1, *size)
    # MONAI's own map is the same Gaussian, but nowhere below 0.001
    weights = torch.ones(())
    for n in window:
        x = torch.arange(n) - (n - 1) / 2
        weights = weights.unsqueeze(-1) * torch.exp(-0.5 * (x / (n / 8)) ** 2)

    def ours() -> Tensor:
        return sliding_window(network, volume, window, batch=batch, output="labels" if labels else "logits")

    def monai() -> Tensor:
        with torch.no_grad():
            found = sliding_window_inference(volume, window, batch, network, overlap=0.5, roi_weight_map=weights)
        return found.argmax(1) if labels else found

    a, b = ours(), monai()
    error = (
        float((a != b).float().mean()) if labels else float((a - b).norm() / b.norm())
    )  # ties may be decided otherwise
    if error > 1e-4:
        raise AssertionError(f"results differ by {error:.1e}")
    return ours, monai


def slices_pair(network: nn.Module, size: tuple[int, ...], batch: int) -> Pair:
    """A 2-D network over the slices of a volume, against MONAI's SliceInferer."""
    from monai.inferers import SliceInferer

    volume = torch.randn(1, 1, *size)
    inferer = SliceInferer(roi_size=size[:2], sw_batch_size=batch, spatial_dim=2, overlap=0.0)

    def ours() -> Tensor:
        return sliding_window(network, volume, None, axis=2, batch=batch)

    def monai() -> Tensor:
        with torch.no_grad():
            return inferer(volume, network)

    torch.testing.assert_close(ours(), monai(), rtol=1e-4, atol=1e-4)
    return ours, monai


def metrics_pair(size: tuple[int, ...], classes: int = 14) -> Pair:
    """Dice, HD95 and ASSD of all classes of one case."""
    from monai.metrics import DiceMetric, compute_average_surface_distance, compute_hausdorff_distance

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij")).astype(np.float32)
    truth, prediction = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for k in range(1, classes):
        centre = rng.uniform(0.2, 0.8, 3) * size
        radii = rng.uniform(0.04, 0.16, 3) * size
        for labels, shift in ((truth, 0.0), (prediction, 1.5)):
            inside = sum(((g - c - shift) / r) ** 2 for g, c, r in zip(grid, centre, radii)) < 1
            labels[inside] = k
    spacing, names = (0.8, 0.8, 2.5), [str(k) for k in range(classes)]

    def ours() -> list[tuple[float, float, float]]:
        return [(s.dice, s.hd95, s.assd) for s in score_labels(prediction, truth, spacing, names)]

    def monai() -> list[tuple[float, float, float]]:
        p, t = (nn.functional.one_hot(torch.from_numpy(v).long()).movedim(-1, 0)[None] for v in (prediction, truth))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dice = DiceMetric(include_background=False, reduction="none")(p, t)
            hd95 = compute_hausdorff_distance(p, t, percentile=95, spacing=spacing)
            assd = compute_average_surface_distance(p, t, symmetric=True, spacing=spacing)
        return [tuple(float(v[0, k]) for v in (dice, hd95, assd)) for k in range(classes - 1)]  # type: ignore[misc]

    np.testing.assert_allclose(ours(), monai(), rtol=1e-4)
    return ours, monai


#: name -> what makes the pair, and the target of its ratio
CASES: dict[str, tuple[Callable[[], Pair], float | None]] = {
    "U-Net, 128 x 128 x 96, window 64 x 64 x 48, 1 at once": (
        lambda: sliding_pair(unet(3), (128, 128, 96), (64, 64, 48), 1, False), 1.0,
    ),
    "U-Net, 128 x 128 x 96, window 64 x 64 x 48, 4 at once": (
        lambda: sliding_pair(unet(3), (128, 128, 96), (64, 64, 48), 4, False), 1.0,
    ),
    "U-Net, 128 x 128 x 96, to labels": (
        lambda: sliding_pair(unet(3), (128, 128, 96), (64, 64, 48), 2, True), 1.0,
    ),
    "U-Net 2-D, slices of 128 x 128 x 64, 8 at once": (lambda: slices_pair(unet(2), (128, 128, 64), 8), 1.0),
    "the sliding alone: 1 x 1 x 1 convolution to 14 classes, 192 x 192 x 96": (
        lambda: sliding_pair(Pointwise(), (192, 192, 96), (64, 64, 48), 1, False), 1.0,
    ),
    "the sliding alone, to labels": (
        lambda: sliding_pair(Pointwise(), (192, 192, 96), (64, 64, 48), 1, True), 1.0,
    ),
    "Dice, HD95 and ASSD of 13 organs, 256 x 256 x 96": (lambda: metrics_pair((256, 256, 96)), None),
}  # fmt: skip


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """One row of the table: ours against MONAI's."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    make, target = CASES[name]
    pair = dict(zip(("ours", "monai"), make()))
    times: dict[str, list[float]] = {"ours": [], "monai": []}
    for i in range(rounds):
        for key in ("ours", "monai") if i % 2 else ("monai", "ours"):
            started = clock()
            pair[key]()
            times[key].append(clock() - started)
    ratios = sorted(p / o for o, p in zip(times["ours"], times["monai"], strict=True))
    return {
        "what": name,
        "threads": threads,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        **{key: round(statistics.median(t), 4) for key, t in times.items()},
        "unit": "s",
        "rounds": rounds,
        "target": "" if target is None else target,
    }


def memory(overlap: float) -> dict[str, Any]:
    """One row of the table: peak resident size of a process that predicts the scan, GiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--scan", folder, "--overlap", str(overlap)]
        subprocess.run([*command, "--make"], check=True)
        run = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, windows = run.stdout.split()[-2:]
    return {
        "what": f"{' x '.join(map(str, SCAN))}, file to file, {CLASSES} classes, {windows} windows: peak memory",
        "ours": round(float(peak), 2),
        "unit": "GiB",
        "rounds": 1,
        "target": f"below {MEMORY_LIMIT}",
    }


def predict_scan(folder: Path, overlap: float, make: bool) -> None:
    """In a process of its own: write the scan, or predict it and print the peak resident size and the windows."""
    import resource

    from zoo.data.volumes import Volume, write_volume

    affine = np.diag([0.8, 0.8, 1.5, 1.0])
    if make:
        rng = np.random.default_rng(0)
        data = np.stack([rng.integers(-1000, 1000, SCAN[:2], dtype=np.int16) for _ in range(SCAN[2])], -1)
        write_volume(folder / "scan.nii", data, Volume(data, affine, (0.8, 0.8, 1.5)))
        return
    from zoo.data.volume_grid import Preparation
    from zoo.medical.inference import VolumePredictor
    from zoo.medical.model import VolumeSegmenter

    torch.set_num_threads(1)
    done = [0]
    model = VolumeSegmenter(Pointwise(), window=(96, 96, 96), overlap=overlap)
    given = {"kind": "ct", "lower": -1000, "upper": 1000, "mean": 0, "std": 500}
    predictor = VolumePredictor(model, Preparation(normalisation=given), device="cpu")

    def progress(case: str, now: int, total: int) -> None:
        done[0] = total

    (result,) = predictor(folder / "scan.nii", progress=progress)
    result.save(folder / "labels.nii.gz")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, done[0])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", metavar="TEXT", help="only rows whose name contains this; nothing is written")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads to measure with")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "medical_cpu.csv")
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--overlap", type=float, default=0.5, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.scan is not None:
        predict_scan(args.scan, args.overlap, args.make)
        return 0
    names = [n for n in CASES if not args.only or args.only in n]
    with_memory = not args.only or args.only in "memory"
    if not names and not with_memory:
        parser.error(f"--only {args.only}: no row has this in its name; there are {', '.join([*CASES, 'memory'])}")
    rows, missed = [], []
    for threads in args.threads:
        for name in names:
            row = measure(name, args.rounds, threads)
            rows.append(row)
            print(
                f"{name}, {threads} thread(s): {row['ratio']:.2f} x ({row['low']} to {row['high']}), "
                f"{row['ours']} s against {row['monai']} s",
                flush=True,
            )
            if row["target"] and row["ratio"] < row["target"]:
                missed.append(row["what"])
    for overlap in (0.5, 0.75) if with_memory else ():
        row = memory(overlap)
        rows.append(row)
        print(f"{row['what']} {row['ours']} GiB", flush=True)
        if row["ours"] > MEMORY_LIMIT:
            missed.append(row["what"])
    if not args.only:
        bench_models.write_table(rows, FIELDS, args.out)
        print(f"written: {args.out}")
    for what in missed:
        print(f"target missed: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
