"""Segmentation on this machine's CPU against its peers: one run, interleaved, same weights.

    python tools/bench_segmentation.py [--rounds 9] [--only TEXT] [--threads 1 2]
        [--out docs/benchmarks/segmentation_cpu.csv]

A comparison times our call and the peer's in turn, whose outputs are compared first; its ratio is the median over
rounds of (peer's time / ours): above 1 we are faster, with the quartiles beside it. A measurement is one number of
ours, such as the memory of a process or images per second. To add one, write a function and list it in COMPARISONS or
MEASUREMENTS.
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
from typing import Any

import torch
from torch import Tensor

from zoo.files import write_file

ROOT = Path(__file__).resolve().parents[1]
CROP = 512


@dataclass
class Row:
    """One line of the table: a ratio (with quartiles, and both times) or a value in ``ours``."""

    what: str
    threads: int
    ratio: float | None
    low: float | None
    high: float | None
    ours: float
    peer: float | None
    unit: str
    rounds: int
    target: float


Calls = tuple[Callable[[], Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Comparison:
    """Two calls that compute the same: ``make()`` gives ours and the peer's."""

    what: str
    target: float
    make: Callable[[], Calls]
    #: largest relative difference of the outputs
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Measurement:
    """One number: ``measure(threads)``; ``target`` is what it is compared with by eye."""

    what: str
    unit: str
    target: float
    measure: Callable[[int], float]


def upernet_over_timm() -> Calls:
    """UPerNet over our DaViT-T and the same head over timm's, same weights, one image of 512 x 512."""
    from zoo.segmentation.segmenter import Segmenter
    from zoo.weights.importers import timm_davit

    torch.manual_seed(0)
    peer = Segmenter("timm:davit_tiny", "upernet").eval()
    ours = Segmenter("davit_tiny", "upernet").eval()
    own = {k.removeprefix("model."): v for k, v in peer.backbone.state_dict().items()}
    ours.backbone.load_state_dict(timm_davit.convert_state_dict("davit_tiny", own))
    ours.head.load_state_dict(peer.head.state_dict())
    return forward(ours, peer)


def upernet_over_timm_plain() -> Calls:
    """The same, and the peer's head computed in the order in which transformers computes it."""
    import transformers
    from transformers.models.upernet.modeling_upernet import UperNetHead

    from zoo.segmentation.segmenter import Segmenter
    from zoo.weights.importers import hf_upernet, timm_davit

    torch.manual_seed(0)
    peer = Segmenter("timm:davit_tiny", "upernet").eval()
    ours = Segmenter("davit_tiny", "upernet").eval()
    own = {k.removeprefix("model."): v for k, v in peer.backbone.state_dict().items()}
    ours.backbone.load_state_dict(timm_davit.convert_state_dict("davit_tiny", own))
    options: Any = dict(backbone_config=transformers.ConvNextConfig(), num_labels=150)
    config = transformers.UperNetConfig(**options)
    head = UperNetHead(config, ours.backbone.out_channels).eval()
    state = {f"decode_head.{k}": v for k, v in head.state_dict().items()}
    converted = hf_upernet.convert_state_dict(hf_upernet.CONVNEXT, state)
    ours.head.load_state_dict({k.removeprefix("head."): v for k, v in converted.items()})
    image = torch.randn(1, 3, CROP, CROP, generator=torch.Generator().manual_seed(1))
    return lambda: ours(image)["logits"], lambda: head(peer.backbone(image))


def segformer_head() -> Calls:
    """SegFormer-B5's head over maps of a 512 x 512 image, against transformers'."""
    import transformers
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    from zoo.segmentation.segformer import SegFormerHead
    from zoo.weights.importers import hf_segformer

    torch.manual_seed(0)
    widths = [64, 128, 320, 512]
    options: Any = dict(hidden_sizes=widths, decoder_hidden_size=768, num_labels=150)
    peer = SegformerDecodeHead(transformers.SegformerConfig(**options)).eval()
    ours = SegFormerHead(widths, 150, dim=768).eval()
    state = {f"decode_head.{k}": v for k, v in peer.state_dict().items()}
    converted = hf_segformer.convert_state_dict(hf_segformer.SEGMENTER, state)
    ours.load_state_dict({k.removeprefix("head."): v for k, v in converted.items()})
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, c, CROP // s, CROP // s, generator=generator) for c, s in zip(widths, (4, 8, 16, 32))]
    return lambda: ours(maps), lambda: peer(maps)


def pixel_decoder() -> Calls:
    """Mask2Former's pixel decoder over Swin-T's maps of a 512 x 512 image, against transformers'."""
    from peers.mask2former import pixel_decoders

    return pixel_decoders(CROP)


def forward(ours: torch.nn.Module, peer: torch.nn.Module) -> Calls:
    """Calls of two segmenters on one image."""
    image = torch.randn(1, 3, CROP, CROP, generator=torch.Generator().manual_seed(1))
    return lambda: ours(image)["logits"], lambda: peer(image)["logits"]


def sliding_memory(threads: int) -> float:
    """Peak memory in GiB of a process of its own that segments an image of 8192 x 8192 by windows of 512 x 512."""
    program = f"""
import resource
import numpy as np, torch
from zoo.segmentation.inference import untrained_predictor
torch.set_num_threads({threads})
predictor = untrained_predictor("upernet_davit_nano", num_classes=150)
image = np.random.default_rng(0).integers(0, 256, (8192, 8192, 3), np.uint8)
(result,) = predictor([image], sliding=(512, 384))
assert result.label_map.shape == (8192, 8192)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def miou_rate(threads: int) -> float:
    """Images a second of the metric: 2,000 of 1024 x 2048 with 150 classes (100 pairs of maps, 20 times)."""
    from zoo.metrics.semantic import SemanticSegmentation

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(100):
        coarse = torch.randint(150, (2, 1, 32, 64), generator=generator).float()  # segments, some of them wrong
        truth, found = torch.nn.functional.interpolate(coarse, size=(1024, 2048)).to(torch.int64)[:, 0]
        truth[:8] = 255
        found = torch.where(torch.rand(truth.shape, generator=generator) < 0.8, truth % 150, found)
        samples.append({"gt_sem_seg": truth, "pred_sem_seg": found})
    metric = SemanticSegmentation()
    metric.dataset_meta = {"classes": [str(i) for i in range(150)], "ignore_index": 255}
    started = time.perf_counter()
    for number in range(2000):
        metric.process(None, [{**samples[number % 100], "sample_idx": number}])
    metric.evaluate(2000)
    return 2000 / (time.perf_counter() - started)


COMPARISONS = [
    Comparison("UPerNet-DaViT-T at 512x512, the same head over timm's DaViT", 1.05, upernet_over_timm),
    Comparison("UPerNet-DaViT-T at 512x512, transformers' head over timm's DaViT", 1.05, upernet_over_timm_plain),
    Comparison("SegFormer-B5's head at 512x512, transformers'", 1.0, segformer_head),
    Comparison("Mask2Former's pixel decoder at 512x512, transformers'", 2.5, pixel_decoder),
]
MEASUREMENTS = [
    Measurement("sliding-window memory 8192x8192, UPerNet-DaViT-nano, 150 classes", "GiB", 4.0, sliding_memory),
    Measurement("mIoU of 2,000 images of 1024x2048 with 150 classes", "images/s", 100.0, miou_rate),
]


def timed(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.inference_mode()
def compare(case: Comparison, threads: int, rounds: int) -> Row:
    """Outputs compared, then timed in turn.

    Raises:
        AssertionError: the outputs differ.
    """
    torch.set_num_threads(threads)
    ours, peer = case.make()
    a, b = ours(), peer()
    difference = float((a - b).norm() / b.norm())
    if not difference <= case.tolerance:
        raise AssertionError(f"{case.what}: outputs differ by {difference:.1e}, accepted is {case.tolerance:.0e}")
    pairs = []
    for number in range(rounds):
        if number % 2:
            pairs.append((timed(ours), timed(peer)))
        else:
            other = timed(peer)
            pairs.append((timed(ours), other))
    ratios = [p / o for o, p in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    own, theirs = (round(1e3 * statistics.median(times), 2) for times in zip(*pairs))
    middle, low, high = (round(x, 3) for x in (middle, low, high))
    return Row(case.what, threads, middle, low, high, own, theirs, "ms", rounds, case.target)


def measure(case: Measurement, threads: int) -> Row:
    torch.set_num_threads(threads)
    value = round(case.measure(threads), 3)
    return Row(case.what, threads, None, None, None, value, None, case.unit, 1, case.target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timings of each side, two at least (default 9)")
    parser.add_argument("--only", default="", help="only what has this text in its name")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default 1 and 2)")
    parser.add_argument("--out", type=Path, help="write the table to this CSV file")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: accepted are whole numbers from 2")
    rows = []
    cases: list[Comparison | Measurement] = [*COMPARISONS, *MEASUREMENTS]
    for case in cases:
        if args.only.lower() not in case.what.lower():
            continue
        for threads in args.threads:
            row = compare(case, threads, args.rounds) if isinstance(case, Comparison) else measure(case, threads)
            rows.append(row)
            result = f"{row.ours} {row.unit}" if row.ratio is None else f"{row.ratio} ({row.low} to {row.high})"
            print(f"{row.what}, {threads} threads: {result}, aimed at {row.target}", flush=True)
    if args.out is not None:
        table = io.StringIO()
        about = {"machine": platform.machine(), "torch": torch.__version__, "date": str(datetime.date.today())}
        writer = csv.DictWriter(table, [*(f.name for f in fields(Row)), *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **about} for row in rows)
        write_file(args.out, table.getvalue())


if __name__ == "__main__":
    main()
