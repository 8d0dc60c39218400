"""Deformable DETR against Hugging Face transformers' on this machine's CPU: one run, interleaved, same weights.

    python tools/bench_detection.py [--rounds 7] [--only layer] [--threads 1 2] [--out FILE]

What is timed: an encoder layer at 100x100 + 50x50 + 25x25 + 13x13 tokens (forward; forward and backward), and a whole
Deformable-DETR-R50 on an 800 x 1066 image. Outputs are compared first. A ratio is the median over rounds of (peer's
time / our time): above 1 we are faster. Peak memory is that of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from zoo.files import write_file

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [(100, 100), (50, 50), (25, 25), (13, 13)]
IMAGE = (800, 1066)


@dataclass
class Row:
    """One line of the table; memory is in MiB and has no rounds."""

    what: str
    threads: int
    ratio: float
    low: float
    high: float
    ours: float
    peer: float
    unit: str
    rounds: int
    target: float


def r50() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our Deformable-DETR-R50 and transformers' with the same random weights."""
    import transformers

    from zoo.registry import MODELS, build
    from zoo.weights.importers import hf_deformable_detr as importer

    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    config = transformers.DeformableDetrConfig(backbone_config=backbone, use_timm_backbone=False, num_labels=91)
    peer = transformers.DeformableDetrForObjectDetection(config).eval()
    ours = build(importer.config_from_official(importer.ENTRY, config.to_dict()), MODELS).eval()
    ours.load_state_dict(importer.convert_state_dict(importer.ENTRY, peer.state_dict()))
    return ours, peer


def whole_image() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Calls of both detectors on one image."""
    ours, peer = r50()
    image = torch.randn(1, 3, *IMAGE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, *IMAGE, dtype=torch.bool)

    @torch.no_grad()
    def run_ours() -> Tensor:
        return ours(image, mask)["pred_boxes"]

    @torch.no_grad()
    def run_peer() -> Tensor:
        return peer(pixel_values=image, pixel_mask=(~mask).long()).pred_boxes

    return run_ours, run_peer


def encoder_layer(backward: bool) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Calls of one encoder layer of both, in training mode without dropout for the backward pass."""
    import transformers
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer

    from zoo.detection.deformable_transformer import DeformableEncoderLayer, encoder_reference_points

    torch.manual_seed(0)
    config = transformers.DeformableDetrConfig(dropout=0.0, use_timm_backbone=False, backbone_config=None)
    peer = DeformableDetrEncoderLayer(config)
    for value in peer.state_dict().values():
        value.add_(torch.randn_like(value) * 0.02)
    ours = DeformableEncoderLayer(dropout=0.0)
    names = {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
    state = {}
    for key, value in peer.state_dict().items():
        for theirs, own in names.items():
            key = key.replace(theirs, own)
        state[key] = value
    ours.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    count = sum(h * w for h, w in SHAPES)
    tokens = torch.randn(1, count, 256, generator=generator)
    pos = torch.randn(1, count, 256, generator=generator)
    padding = torch.zeros(1, count, dtype=torch.bool)
    points = encoder_reference_points(SHAPES, torch.ones(1, len(SHAPES), 2))
    shapes = torch.tensor(SHAPES)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])

    def call_ours(x: Tensor) -> Tensor:
        return ours(x, pos, points, SHAPES, padding)

    def call_peer(x: Tensor) -> Tensor:
        out = peer(
            hidden_states=x,
            attention_mask=~padding,
            spatial_position_embeddings=pos,
            reference_points=points,
            spatial_shapes=shapes,
            spatial_shapes_list=SHAPES,
            level_start_index=starts,
        )
        return out[0] if isinstance(out, tuple) else out

    def timed(call: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            if not backward:
                with torch.no_grad():
                    return call(tokens)
            x = tokens.detach().requires_grad_(True)
            call(x).square().mean().backward()
            assert x.grad is not None
            return x.grad

        return run

    return timed(call_ours), timed(call_peer)


CASES: dict[str, tuple[Callable[[], tuple[Callable[[], Tensor], Callable[[], Tensor]]], float]] = {
    "encoder layer, forward": (lambda: encoder_layer(False), 2.5),
    "encoder layer, forward and backward": (lambda: encoder_layer(True), 1.7),
    "R50, 800 x 1066 image": (whole_image, 1.5),
}


def measure(what: str, threads: int, rounds: int) -> Row:
    """Interleaved rounds of one comparison; the order within a round alternates.

    Raises:
        ValueError: the outputs differ by more than 1e-4 (relative), or gradients by more than 1e-3: these jump where a
            sampling point crosses from one pixel to the next, which rounding decides.
    """
    make, target = CASES[what]
    torch.set_num_threads(threads)
    ours, peer = make()
    a, b = ours(), peer()
    error = float((a - b).norm() / b.norm())
    if not error <= (1e-3 if "backward" in what else 1e-4):
        raise ValueError(f"{what}: outputs differ by {error:.1e} (relative)")
    times: tuple[list[float], list[float]] = ([], [])
    clock = time.process_time if threads == 1 else time.perf_counter
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            started = clock()
            (ours, peer)[which]()
            times[which].append(clock() - started)
    ratios = sorted(p / o for o, p in zip(*times))
    own, theirs = (round(1000 * statistics.median(t), 2) for t in times)
    ratio = statistics.median(ratios)
    return Row(
        what, threads, round(ratio, 3), round(ratios[0], 3), round(ratios[-1], 3), own, theirs, "ms", rounds, target
    )


def peak(which: str, size: str) -> int:
    """Peak resident memory of a process that runs one of the two (in MiB)."""
    command = [sys.executable, __file__, "--peak", which, "--case", size]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_peak(which: str, case: str) -> None:
    """Run one of the two once and print by how much the peak of this process's memory is above what it held (MiB).

    Linux alone tells this (``/proc``), so that the comparison of memory runs there alone.
    """
    torch.set_num_threads(1)
    make, _ = CASES[case]
    run = make()[which == "peer"]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = _status("VmRSS")
    run()
    print((_status("VmHWM") - before) // 1024)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", help="part of the names of what is measured")
    parser.add_argument("--out", default=str(ROOT / "docs" / "benchmarks" / "detection_cpu.csv"))
    parser.add_argument("--peak", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=tuple(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: accepted are 1 and above")
    if args.peak:
        report_peak(args.peak, args.case)
        return 0
    rows = []
    for what in CASES:
        if args.only and args.only not in what:
            continue
        for threads in args.threads:
            rows.append(measure(what, threads, args.rounds))
            print(rows[-1], flush=True)
        own, theirs = peak("ours", what), peak("peer", what)
        ratio = round(theirs / max(own, 1), 3)
        rows.append(Row(f"{what}: peak memory", 1, ratio, ratio, ratio, own, theirs, "MiB", 1, 1.0))
        print(rows[-1], flush=True)
    text = io.StringIO()
    import transformers

    text.write(
        f"# {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {datetime.date.today()}\n"
    )
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_file(args.out, text.getvalue())
    missed = [r.what for r in rows if r.ratio < r.target]
    print(f"written: {args.out}; below target: {', '.join(missed) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
