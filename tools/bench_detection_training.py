"""Small detectors trained for equal times on generated shapes, from one prepared backbone; `make bench-train` runs it.

    python tools/bench_detection_training.py [--minutes 30] [--only dino_nano] [--threads 2] [--work-dir DIR]

First the backbone (timm's ResNet-10-T at half width) learns to classify shapes, once. Then each detector, and Hugging
Face transformers' Deformable DETR with the same backbone, data, batches, augmentation and recipe, trains for that long.
A run goes on where it was stopped. Every tenth of the time the moving average of the weights is evaluated on images
that are not trained on (not counted as training time). Results: docs/benchmarks/detection_training.csv and curves.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.data.coco import CocoDetection
from zoo.data.shapes import Shapes
from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.model import DetectionModel, DetPreprocessor
from zoo.detection.variants._parts import nano_backbone
from zoo.files import save_atomically, write_file
from zoo.metrics.coco import CocoBoxes
from zoo.registry import MODELS, build

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("deformable_detr", "dab_detr", "dino", "co_detr", "focus_detr", "rfdetr")
PEER = "transformers_deformable_detr"
IMAGES, VALIDATION, SIZE, BATCH = 2000, 300, 128, 8
LR, BACKBONE_LR, WEIGHT_DECAY, CLIP, DECAY = 4e-4, 1e-4, 1e-4, 0.5, 0.999
WARMUP = 200


@dataclass
class Point:
    """One evaluation of one run."""

    detector: str
    minutes: float
    steps: int
    images: int
    ap: float
    ap50: float
    parameters: int


def prepared_backbone(folder: Path, minutes: float) -> Path:
    """The file with the backbone's weights, trained on the classes of single shapes if it is not there."""
    file = folder / "backbone.pth"
    if file.is_file():
        return file
    torch.manual_seed(0)
    data = Shapes("train", 4000, 64, data_seed=1)
    images = torch.stack([torch.from_numpy(data.load_image(i)).permute(2, 0, 1) for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    model = build({**nano_backbone(), "num_classes": 8}, MODELS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    started, right = time.perf_counter(), 0.0
    while (passed := (time.perf_counter() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * passed)) / 2
        chosen = torch.randint(len(labels), (64,), generator=generator)
        x = images[chosen].float().sub(120).div(60)
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(3)
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = 0.98 * right + 0.02 * float((logits.argmax(1) == labels[chosen]).float().mean())
    print(f"backbone: {100 * right:.1f} % of the last training batches", flush=True)
    save_atomically(file, lambda f: torch.save(model.state_dict(), f))
    return file


def load_backbone(backbone: nn.Module, file: Path) -> None:
    """Put the prepared weights into a backbone without a classifier; all of its tensors must be there."""
    state = torch.load(file, weights_only=True)
    own = backbone.state_dict()
    backbone.load_state_dict({k: v for k, v in state.items() if k in own})


class Peer(nn.Module):
    """transformers' two-stage Deformable DETR in the same size over the same backbone, as a model like ours."""

    def __init__(self, num_classes: int):
        super().__init__()
        import transformers

        self.data_preprocessor = DetPreprocessor()
        # Its own backbone is replaced by ours below; this one only tells it the channels.
        small = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[32, 64, 128, 256],
            depths=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        )
        config = transformers.DeformableDetrConfig(
            backbone_config=small,
            use_timm_backbone=False,
            num_labels=num_classes,
            d_model=128,
            encoder_layers=3,
            decoder_layers=3,
            encoder_ffn_dim=256,
            decoder_ffn_dim=256,
            num_feature_levels=3,
            two_stage=True,
            with_box_refine=True,
            two_stage_num_proposals=30,
            num_queries=30,
            dropout=0.0,
            auxiliary_loss=True,
            class_cost=2,
        )
        self.peer = transformers.DeformableDetrForObjectDetection(config)
        self.peer.model.backbone.model = _Maps(build(nano_backbone(), MODELS))
        self.num_classes = num_classes

    @property
    def backbone(self) -> nn.Module:
        return self.peer.model.backbone.model.backbone

    def forward(self, inputs: Tensor, data_samples: Any, mask: Tensor, mode: str) -> Any:
        if mode == "loss":
            labels = [
                {"class_labels": t["labels"], "boxes": t["boxes"]}
                for t in DetectionModel.targets(self, data_samples, inputs.device)  # type: ignore[arg-type]
            ]
            return {"loss": self.peer(pixel_values=inputs, pixel_mask=(~mask).long(), labels=labels).loss}
        out = self.peer(pixel_values=inputs, pixel_mask=(~mask).long())
        scores, pairs = out.logits.sigmoid().flatten(1).topk(100)
        query, labels_found = pairs // self.num_classes, pairs % self.num_classes
        boxes = cxcywh_to_xyxy(out.pred_boxes).gather(1, query[..., None].expand(-1, -1, 4))
        for sample, s, c, b in zip(data_samples, scores, labels_found, boxes):
            height, width = sample.ori_shape
            sample.set_pred((b * b.new_tensor([width, height, width, height])).clamp(min=0), c, s)
        return data_samples


class _Maps(nn.Module):
    """A backbone whose maps are a list, as transformers' detector reads them."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.backbone(x))


def make(name: str, backbone: Path) -> nn.Module:
    """A detector of a name, ready to train; the same seed for each."""
    torch.manual_seed(0)
    model: nn.Module = Peer(8) if name == PEER else DetectionModel(name, 8)
    inner = model.backbone if isinstance(model, Peer) else model.detector.backbone
    own, prepared = set(inner.state_dict()), set(torch.load(backbone, weights_only=True))
    if own <= prepared:
        load_backbone(inner, backbone)
    else:
        print(f"{name}: its own backbone is not the prepared one and starts from nothing", flush=True)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; the prepared backbone at a quarter of the rate."""
    inner = {id(p) for n, p in model.named_parameters() if "backbone" in n}
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if id(p) not in inner], "base": LR},
            {"params": [p for p in trained if id(p) in inner], "base": BACKBONE_LR},
        ],
        lr=LR,
        weight_decay=WEIGHT_DECAY,
    )


class Run:
    """A detector's training by the clock, which can be stopped and gone on with.

    Args:
        name: of the detector.
        seconds: of training.
        folder: where its state is.
        train, val: the data.
        backbone: the prepared weights.
    """

    def __init__(self, name: str, seconds: float, folder: Path, train: Any, val: Any, backbone: Path):
        self.name, self.seconds, self.train, self.val = name, seconds, train, val
        self.file = folder / f"{name}.pth"
        self.model = make(name, backbone)
        self.optimizer = make_optimizer(self.model)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.used, self.steps, self.points = 0.0, 0, []
        if self.file.is_file():
            saved = torch.load(self.file, weights_only=True)
            if saved["seconds"] != seconds:
                raise ValueError(
                    f"{self.file} is of a run of {saved['seconds']} s, not {seconds} s; use another folder"
                )
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average, self.used, self.steps = saved["average"], saved["used"], saved["steps"]
            self.points = [Point(**p) for p in saved["points"]]

    def save(self) -> None:
        """Write everything that going on needs."""
        content = {
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "used": self.used,
            "steps": self.steps,
            "points": [asdict(p) for p in self.points],
        }
        save_atomically(self.file, lambda f: torch.save(content, f))

    def batch(self) -> dict[str, Any]:
        """The batch of the next step: it follows from the step alone."""
        per_epoch = len(self.train) // BATCH
        epoch, number = divmod(self.steps, per_epoch)
        self.train.set_epoch(epoch)
        order = np.random.default_rng(epoch).permutation(len(self.train))[number * BATCH : (number + 1) * BATCH]
        samples = [self.train[int(i)] for i in order]
        return {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}

    def step(self) -> None:
        """One step of the optimizer; its rate follows from the share of the time that is used.

        Raises:
            FloatingPointError: the loss is no finite number.
        """
        torch.manual_seed(self.steps)
        self.model.train()
        data = self.model.data_preprocessor(self.batch(), True)
        losses = self.model(**data, mode="loss")
        loss = sum(v for k, v in losses.items() if "loss" in k)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.name}: the loss of step {self.steps} is {float(loss)}")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        rate = min(1.0, (self.steps + 1) / WARMUP) * (
            0.02 + 0.98 * (1 + math.cos(math.pi * self.used / self.seconds)) / 2
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        self.optimizer.step()
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)
                else:
                    self.average[key].copy_(value)
        self.steps += 1

    @torch.no_grad()
    def evaluate(self) -> Point:
        """AP of the averaged weights on the validation images."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        metric = CocoBoxes()
        metric.dataset_meta = self.val.metainfo
        for start in range(0, len(self.val), 20):
            samples = [self.val[i] for i in range(start, min(start + 20, len(self.val)))]
            data = {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}
            found = self.model(**self.model.data_preprocessor(data), mode="predict")
            metric.process(None, [s.to_dict() for s in found])
        self.model.load_state_dict(own)
        stats = metric.evaluate(len(self.val))
        size = sum(p.numel() for p in self.model.parameters())
        ap, ap50 = round(stats["coco/AP"], 4), round(stats["coco/AP50"], 4)
        return Point(self.name, round(self.used / 60, 2), self.steps, self.steps * BATCH, ap, ap50, size)

    def run(self, note: Callable[[Point], None]) -> None:
        """Train to the end of the time; evaluates at every tenth of it and saves there and each minute."""
        saved = time.perf_counter()
        while self.used < self.seconds:
            started = time.perf_counter()
            self.step()
            self.used += time.perf_counter() - started
            if self.used >= self.seconds * (len(self.points) + 1) / 10 or self.used >= self.seconds:
                self.points.append(self.evaluate())
                note(self.points[-1])
                self.save()
            elif time.perf_counter() - saved > 60:
                self.save()
                saved = time.perf_counter()


def chosen(only: str | None) -> list[str]:
    """The small detectors of each family that has one, and the peer."""
    names = [n for f in FAMILIES for n in MODELS.names("*_nano", family=f, task="detection")]
    names = [n for n in names if n != "dab_deformable_detr_nano"] + [PEER]
    found = [n for n in names if only is None or only in n]
    if not found:
        raise ValueError(f"--only {only}: there are {', '.join(names)}")
    return found


def data(folder: Path, images: int, validation: int) -> tuple[Any, Any]:
    """The shapes as COCO files, written once, to train and to validate on."""
    for split, count in (("train", images), ("val", validation)):
        file = folder / "coco" / "annotations" / f"instances_{split}.json"
        if not file.is_file() or len(json.loads(file.read_text())["images"]) != count:
            Shapes(split, count, SIZE, objects=(1, 5)).write_coco(folder / "coco")
    at = folder / "coco" / "annotations"
    augment = dict(recipe="resize", train=True, size=(112, 128, 144))
    train = CocoDetection(at / "instances_train.json", transform=augment)
    return train, CocoDetection(at / "instances_val.json", transform=dict(train=False, size=SIZE))


def write_results(points: list[Point], csv_file: Path, picture: Path) -> None:
    """The table and the curves of all runs."""
    from zoo.viz.figures import COLOURS, new_figure, save_figure

    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(p) for p in points)
    write_file(csv_file, text.getvalue())
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(p.detector for p in points)):
        own = [p for p in points if p.detector == name]
        style = "--" if name == PEER else "-"
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([p.minutes for p in own], [p.ap for p in own], style, marker="o", ms=3, color=colour, label=name)
    axes.set(xlabel="minutes of training", ylabel="box AP on held-out shapes", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of training for each detector")
    parser.add_argument("--backbone-minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="part of a detector's name")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--validation", type=int, default=VALIDATION)
    parser.add_argument("--work-dir", default="work_dirs/bench_detection")
    parser.add_argument("--out", default=str(ROOT / "docs" / "benchmarks" / "detection_training.csv"))
    parser.add_argument("--picture", default=str(ROOT / "docs" / "images" / "detection_training.png"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = Path(args.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = prepared_backbone(folder, args.backbone_minutes)
    train, val = data(folder, args.images, args.validation)
    everything: dict[str, list[Point]] = {}
    for name in chosen(args.only):
        run = Run(name, 60 * args.minutes, folder, train, val, backbone)
        run.run(lambda point: print(point, flush=True))
        everything[name] = run.points
    others = _earlier(Path(args.out), everything)
    write_results(
        [p for points in {**others, **everything}.values() for p in points], Path(args.out), Path(args.picture)
    )
    for name, points in everything.items():
        print(f"{name}: AP {points[-1].ap} after {points[-1].minutes} minutes")
    return 0


def _earlier(file: Path, new: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Runs that the table has already and this call did not make."""
    found: dict[str, list[Point]] = {}
    if file.is_file():
        with file.open(newline="") as opened:
            for row in csv.DictReader(opened):
                values = [row[f.name] for f in fields(Point)]
                kinds = (str, float, int, int, float, float, int)
                point = Point(*(kind(v) for kind, v in zip(kinds, values)))
                if point.detector not in new:
                    found.setdefault(point.detector, []).append(point)
    return found


if __name__ == "__main__":
    sys.exit(main())
