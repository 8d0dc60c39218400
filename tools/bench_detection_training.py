"""Small detectors trained for equal CPU times on generated shapes, from one backbone; `make bench-train` runs it.

    python tools/bench_detection_training.py [--minutes 60] [--only dino_nano] [--threads 2] [--work-dir DIR]
                                             [--export weights/dino_nano_shapes.safetensors]

First the backbone (timm's ResNet-10-T at half width) learns to classify shapes, once. Then each detector, and Hugging
Face transformers' Deformable DETR with the same backbone, data, batches, augmentation and recipe, trains for that long.
Time is the process's CPU time, of all threads. A run goes on where it was stopped. Every tenth of the time the moving
average of the weights is evaluated on images that are not trained on (not counted as training time). Results:
docs/benchmarks/detection_training.csv and curves. `--export` writes the averaged weights of a run in half precision, as
a checkpoint that `zoo predict` reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.coco import CocoDetection
from zoo.data.shapes import Shapes
from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.model import DetectionModel, DetPreprocessor
from zoo.detection.variants._parts import nano_backbone
from zoo.metrics.coco import CocoBoxes
from zoo.registry import MODELS, build

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from timed_run import Recipe, TimedRun, load_backbone, predictions, shuffled_batch, with_earlier, write_points  # noqa: E402
from timed_run import prepared_backbone as prepare  # noqa: E402

FAMILIES = ("deformable_detr", "dab_detr", "dino", "co_detr", "focus_detr", "rfdetr")
PEER = "transformers_deformable_detr"
IMAGES, VALIDATION, SIZE, BATCH = 2000, 300, 128, 8
#: as in the family's papers, the rate drops at 11/12 of the training
RECIPE = Recipe(lr=4e-4, backbone_lr=1e-4, weight_decay=1e-4, clip=0.5, drop=11 / 12)
#: RF-DETR has no encoder behind its backbone; its authors do not slow the backbone down
OWN_RECIPES = {"rfdetr_nano": replace(RECIPE, backbone_lr=RECIPE.lr)}
#: Co-DINO's recipes suppress softly what overlaps
OWN_POSTPROCESS = {
    "co_dino_nano": dict(type="zoo.detection.co_postprocess.best_of_pairs_clipped", count=300, soft_threshold=0.8)
}


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
    return prepare(folder / "backbone.pth", lambda: build({**nano_backbone(), "num_classes": 8}, MODELS), minutes)


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
    model: nn.Module
    model = Peer(8) if name == PEER else DetectionModel(name, 8, postprocess=OWN_POSTPROCESS.get(name))
    inner = model.backbone if isinstance(model, Peer) else model.detector.backbone
    own, prepared = set(inner.state_dict()), set(torch.load(backbone, weights_only=True))
    if own <= prepared:
        load_backbone(inner, backbone)
    else:
        print(f"{name}: its own backbone is not the prepared one and starts from nothing", flush=True)
    return model


class Run(TimedRun):
    """A detector's training, which can be stopped and gone on with.

    Args:
        name: of the detector.
        seconds: of CPU time in training.
        folder: where its state is.
        train, val: the data.
        backbone: the prepared weights.
    """

    def __init__(self, name: str, seconds: float, folder: Path, train: Any, val: Any, backbone: Path):
        super().__init__(name, seconds, folder / f"{name}.pth", Point)
        self.train, self.val = train, val
        if not self.finished:
            self.begin(make(name, backbone), OWN_RECIPES.get(name, RECIPE))

    def batch(self) -> dict[str, Any]:
        return shuffled_batch(self.train, BATCH, self.steps)

    def scored(self) -> Point:
        """AP on the validation images."""
        metric = CocoBoxes()
        metric.dataset_meta = self.val.metainfo
        metric.process(None, [s.to_dict() for s in predictions(self.model, self.val)])
        stats = metric.evaluate(len(self.val))
        size = sum(p.numel() for p in self.model.parameters())
        ap, ap50 = round(stats["coco/AP"], 4), round(stats["coco/AP50"], 4)
        return Point(self.name, round(self.used / 60, 2), self.steps, self.steps * BATCH, ap, ap50, size)


def export(run: Run, file: Path) -> None:
    """Write the averaged weights of a run in half precision, with the names of the classes and the preprocessing.

    Raises:
        ValueError: there is no recipe of the detector for generated shapes, or several.
    """
    from zoo.engine.config import config_text, list_configs, load_config
    from zoo.weights.checkpoint import save_safetensors

    recipes = [n for n in list_configs() if n.startswith(run.name.replace("_", "-") + "_") and n.endswith("_shapes")]
    if len(recipes) != 1:
        raise ValueError(f"{run.name} has the recipes {recipes} for shapes; one is expected")
    meta = {
        "cfg": config_text(load_config(recipes[0])),
        "dataset_meta": {k: list(run.val.metainfo[k]) for k in ("classes", "category_ids")},
    }
    state = {
        k.removeprefix("detector."): v.half() if v.is_floating_point() else v
        for k, v in run.average.items()
        if k.startswith("detector.")
    }
    save_safetensors(file, state, {"format": "pt", "attnzoo_meta": json.dumps(meta)})


def chosen(only: str | None) -> list[str]:
    """The small detectors of each family that has one, and the peer."""
    names = [n for f in FAMILIES for n in MODELS.names("*_nano", family=f, task="detection")]
    names = [n for n in names if n != "dab_deformable_detr_nano"] + [PEER]
    found = [n for n in names if only in (None, n)] or [n for n in names if only and only in n]
    if not found:
        raise ValueError(f"--only {only}: there are {', '.join(names)}")
    return found


def data(folder: Path, images: int, validation: int) -> tuple[Any, Any]:
    """The shapes as COCO files, written once, to train and to validate on."""
    for split, count in (("train", images), ("val", validation)):
        file = folder / "coco" / "annotations" / f"instances_{split}.json"
        if not file.is_file() or len(json.loads(file.read_text(encoding="utf-8"))["images"]) != count:
            Shapes(split, count, SIZE, objects=(1, 5)).write_coco(folder / "coco")
    at = folder / "coco" / "annotations"
    augment = dict(recipe="resize", train=True, size=(112, 128, 144))
    train = CocoDetection(at / "instances_train.json", transform=augment)
    return train, CocoDetection(at / "instances_val.json", transform=dict(train=False, size=SIZE))


def write_results(points: list[Point], csv_file: Path, picture: Path) -> None:
    """The table and the curves of all runs."""
    from zoo.viz.figures import COLOURS, new_figure, save_figure

    write_points(points, Point, csv_file)
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    for number, name in enumerate(dict.fromkeys(p.detector for p in points)):
        own = [p for p in points if p.detector == name]
        style = "--" if name == PEER else "-"
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([p.minutes for p in own], [p.ap for p in own], style, marker="o", ms=3, color=colour, label=name)
    axes.set(xlabel="CPU minutes of training", ylabel="box AP on held-out shapes", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="CPU minutes of training for each detector")
    parser.add_argument("--backbone-minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="a detector's name, or a part of several")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--validation", type=int, default=VALIDATION)
    parser.add_argument("--export", type=Path, help="where the weights of the only run go")
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
    names = chosen(args.only)
    if args.export is not None and (len(names) != 1 or names[0] == PEER):
        raise ValueError(f"--export writes the weights of one detector of ours; --only chooses {', '.join(names)}")
    for name in names:
        run = Run(name, 60 * args.minutes, folder, train, val, backbone)
        run.run(lambda point: print(point, flush=True))
        everything[name] = run.points
        if args.export is not None:
            export(run, args.export)
    points = with_earlier([p for ps in everything.values() for p in ps], Path(args.out), lambda p: p.detector)
    write_results(points, Path(args.out), Path(args.picture))
    for name, points in everything.items():
        print(f"{name}: AP {points[-1].ap} after {points[-1].minutes} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
