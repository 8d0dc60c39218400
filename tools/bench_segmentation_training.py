"""Small segmenters trained for given CPU times on generated shapes; `make bench-segment` runs it.

    python tools/bench_segmentation_training.py [--minutes 40] [--only mask2former] [--threads 2] [--until 0.82]

First each backbone learns to classify single shapes, once. Then UPerNet over three backbones, Mask R-CNN, Mask2Former
and Hugging Face transformers' Mask2Former (same backbone, data, batches, augmentation and recipe) train for `--minutes`
each on 600 images of 128 pixels with five shapes that hide parts of each other. Time is the process's CPU time, of all
threads. A run goes on where it was stopped. Every tenth of the time the moving average of
the weights is evaluated on 150 other images (not counted as training time). Results:
docs/benchmarks/segmentation_training.csv and curves.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.data.masks import compress_masks
from zoo.data.shapes import SHAPE_CLASSES, Shapes
from zoo.data.shapes_segmentation import ShapesSegmentation
from zoo.detection.data_sample import DetDataSample
from zoo.detection.model import DetectionModel
from zoo.metrics.coco_masks import evaluate_masks
from zoo.metrics.panoptic import PanopticQuality
from zoo.metrics.semantic import SemanticSegmentation
from zoo.registry import MODELS, build
from zoo.segmentation.geometry import ImageSize
from zoo.segmentation.mask_postprocess import mask_postprocess
from zoo.segmentation.model import SegmentationModel, SegPreprocessor
from zoo.segmentation.targets import mask_targets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from timed_run import (  # noqa: E402
    Recipe,
    TimedRun,
    load_backbone,
    predictions,
    prepared_backbone,
    shuffled_batch,
    with_earlier,
    write_points,
)

IMAGES, VALIDATION, SIZE, BATCH, CLASSES = 600, 150, 128, 8, 6
THINGS = tuple(range(1, CLASSES))  # 0 is the background
PEER = "transformers_mask2former"
SEMANTIC = ("upernet_davit_nano", "upernet_biformer_nano", "upernet_agent_swin_nano")
MASKS = ("mask_rcnn_nano", "mask2former_nano", PEER)
DENSE_RECIPE = Recipe(lr=1e-3, backbone_lr=5e-4, weight_decay=0.05, clip=1.0)
#: Backbones whose steps are faster in bfloat16 (1.5 to 1.7 times); BiFormer's gather is not.
IN_BFLOAT16 = ("upernet_davit_nano", "upernet_agent_swin_nano")
#: Agent-Swin learns to classify at half the rate
PREPARED_SLOWLY = ("upernet_agent_swin_nano",)
#: Agent-Swin takes some 2,000 steps to tell shapes apart, with batches of 4 as with those of 8
SMALLER_BATCHES = {"upernet_agent_swin_nano": 4}
QUERY_RECIPE = Recipe(lr=5e-4, backbone_lr=1.25e-4, weight_decay=1e-4, clip=1.0, drop=11 / 12)
RCNN_RECIPE = Recipe(lr=5e-4, backbone_lr=2.5e-4, weight_decay=1e-4, clip=1.0, drop=11 / 12)
#: of Mask2Former in both forms
POINTS = 1024


@dataclass
class Point:
    """One evaluation of one run; scores that it has not are None."""

    model: str
    minutes: float
    steps: int
    images: int
    miou: float | None
    mask_ap: float | None
    pq: float | None
    parameters: int

    def score(self) -> float:
        """The score that the run is about."""
        found = self.miou if self.model in SEMANTIC else self.mask_ap
        assert found is not None
        return found


class Peer(nn.Module):
    """transformers' Mask2Former in the same size over the same backbone, as a model like ours."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        from zoo.segmentation.variants._masks import nano_backbone

        self.data_preprocessor = SegPreprocessor()
        # Its own backbone is replaced by ours below; this one only tells it the channels.
        stages = [f"stage{i}" for i in (1, 2, 3, 4)]
        small = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], out_features=stages
        )
        config = transformers.Mask2FormerConfig(
            backbone_config=small,
            num_labels=CLASSES,
            num_queries=20,
            feature_size=96,
            mask_feature_size=96,
            hidden_dim=96,
            encoder_layers=3,
            encoder_feedforward_dim=256,
            decoder_layers=7,
            dim_feedforward=384,
            train_num_points=POINTS,
        )
        self.peer = transformers.Mask2FormerForUniversalSegmentation(config)
        self.peer.model.pixel_level_module.encoder = _Maps(build({**nano_backbone(), "num_classes": 0}, MODELS))

    @property
    def backbone(self) -> nn.Module:
        return self.peer.model.pixel_level_module.encoder.backbone

    def forward(self, inputs: Tensor, data_samples: Any, mode: str) -> Any:
        size = (inputs.shape[2], inputs.shape[3])
        if mode == "loss":
            targets = mask_targets(data_samples, size, CLASSES, 255, inputs.device)
            masks, labels = [t["masks"].float() for t in targets], [t["labels"] for t in targets]
            return {"loss": self.peer(pixel_values=inputs, mask_labels=masks, class_labels=labels).loss}
        out = self.peer(pixel_values=inputs)
        outputs = {"class_logits": out.class_queries_logits, "mask_logits": out.masks_queries_logits}
        sizes = [ImageSize(size, tuple(s.img_shape), tuple(s.ori_shape)) for s in data_samples]
        for sample, found in zip(data_samples, mask_postprocess(outputs, sizes, thing_classes=THINGS)):
            sample.set_pred(**found)
        return data_samples


class _Maps(nn.Module):
    """A backbone whose maps come as transformers' model reads them."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.feature_maps: list[Tensor] = []

    def forward(self, x: Tensor) -> _Maps:
        self.feature_maps = list(self.backbone(x))
        return self


class AsDetection:
    """A segmentation data set as a detector reads it: the background is no class.

    Args:
        data: images with instances, and with masks at the size of the image.
    """

    def __init__(self, data: ShapesSegmentation):
        self.data, self.set_epoch = data, data.set_epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.data[index]
        seg = sample["data_samples"]
        gt = seg.gt_instances
        kept = gt.masks.flatten(1).any(1)
        keys = ("img_path", "img_id", "sample_idx", "ori_shape", "img_shape")
        found = DetDataSample(metainfo={k: getattr(seg, k) for k in keys})
        found.set_gt(gt.boxes[kept], gt.labels[kept] - 1, gt.masks[kept])
        return {"inputs": sample["inputs"], "data_samples": found}


def backbone_spec(name: str) -> tuple[str, Any]:
    """The name of a run's backbone, and its spec without the number of classes."""
    if name in SEMANTIC:
        from zoo.segmentation.variants.upernet import NANO_BACKBONES

        inner = name.removeprefix("upernet_")
        return inner, NANO_BACKBONES[inner]
    from zoo.segmentation.variants._masks import nano_backbone

    return "resnet10t_nano", nano_backbone()


def make(name: str, backbone: Path) -> nn.Module:
    """A model of a name, ready to train; the same seed for each."""
    torch.manual_seed(0)
    model: nn.Module
    if name == PEER:
        model = Peer()
        load_backbone(model.backbone, backbone)
        return model
    if name.startswith("mask_rcnn"):
        model = DetectionModel(name, CLASSES - 1)
        load_backbone(model.detector.backbone, backbone)  # type: ignore[arg-type]
        return model
    options: dict[str, Any] = {}
    if name not in SEMANTIC:
        options["postprocess"] = partial(mask_postprocess, thing_classes=THINGS)
    model = SegmentationModel(name, CLASSES, **options)
    load_backbone(model.segmenter.backbone, backbone)  # type: ignore[arg-type]
    return model


class Run(TimedRun):
    """A model's training.

    Args:
        name: of the model.
        seconds: of CPU time in training.
        folder: where its state is.
        train, val: the data.
        backbone: the prepared weights.
    """

    def __init__(self, name: str, seconds: float, folder: Path, train: Any, val: Any, backbone: Path):
        super().__init__(name, seconds, folder / f"{name}.pth", Point)
        self.detects = name.startswith("mask_rcnn")
        self.batch_size = SMALLER_BATCHES.get(name, BATCH)
        self.train, self.val = AsDetection(train) if self.detects else train, val
        recipe = DENSE_RECIPE if name in SEMANTIC else RCNN_RECIPE if self.detects else QUERY_RECIPE
        if not self.finished:
            self.begin(make(name, backbone), replace(recipe, amp=name in IN_BFLOAT16))

    def batch(self) -> dict[str, Any]:
        return shuffled_batch(self.train, self.batch_size, self.steps)

    def scored(self) -> Point:
        """All scores that the model's predictions allow."""
        found = predictions(self.model, AsDetection(self.val) if self.detects else self.val)
        scores: dict[str, float] = {}
        if not self.detects:
            scores["miou"] = _metric(SemanticSegmentation(), self.val, found)["semantic/mIoU"]
        if self.name not in SEMANTIC:
            first = 0 if self.detects else 1
            scores["mask_ap"] = mask_ap(self.val, [f.pred_instances for f in found], first)
        if self.name not in SEMANTIC and not self.detects:
            scores["pq"] = _metric(PanopticQuality(), self.val, found)["panoptic/PQ"]
        rounded = {k: round(float(v), 4) for k, v in scores.items()}
        size = sum(p.numel() for p in self.model.parameters())
        images = self.steps * self.batch_size
        return Point(
            self.name,
            round(self.used / 60, 2),
            self.steps,
            images,
            rounded.get("miou"),
            rounded.get("mask_ap"),
            rounded.get("pq"),
            size,
        )


def _metric(metric: Any, data: Any, found: list[Any]) -> dict[str, float]:
    metric.dataset_meta = data.metainfo
    metric.process(None, [f.to_dict() for f in found])
    return metric.evaluate(len(data))


def mask_ap(data: ShapesSegmentation, found: list[Any], first: int) -> float:
    """COCO's AP of masks.

    Args:
        data: what is there.
        found: for each image ``labels``, ``scores`` and ``masks``.
        first: the label of the first shape in ``found``.
    """
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": i + 1, "name": n} for i, n in enumerate(SHAPE_CLASSES[: CLASSES - 1])]
    results = []
    for i, f in enumerate(found):
        gt = data[i]["data_samples"].gt_instances
        truth["images"].append({"id": i, "height": gt.masks.shape[1], "width": gt.masks.shape[2]})
        for runs, mask, label in zip(compress_masks(gt.masks.numpy()), gt.masks, gt.labels.tolist()):
            box = [0.0, 0.0, 1.0, 1.0]  # masks are compared, boxes are not
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": i,
                    "category_id": label,
                    "bbox": box,
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": runs,
                }
            )
        for runs, label, score in zip(compress_masks(np.asarray(f.masks, bool)), f.labels.tolist(), f.scores.tolist()):
            results.append(
                {"image_id": i, "category_id": label - first + 1, "segmentation": runs, "score": float(score)}
            )
    return float(evaluate_masks(truth, results).stats["AP"])


def chosen(only: str | None) -> list[str]:
    """The runs whose name has ``only`` in it.

    Raises:
        ValueError: none has.
    """
    found = [n for n in (*SEMANTIC, *MASKS) if only in (None, n)] or [
        n for n in (*SEMANTIC, *MASKS) if only and only in n
    ]
    if not found:
        raise ValueError(f"--only {only}: there are {', '.join((*SEMANTIC, *MASKS))}")
    return found


def data(images: int = IMAGES, validation: int = VALIDATION) -> tuple[ShapesSegmentation, ShapesSegmentation]:
    """The images to train and to evaluate on."""
    augment = dict(recipe="crop", train=True, crop=SIZE, ratio_range=(0.75, 1.5), vflip=0.5, rotate=180)
    train = ShapesSegmentation("train", images, SIZE, transform=augment)
    return train, ShapesSegmentation("test", validation, SIZE, transform=dict(train=False))


def write_results(points: list[Point], csv_file: Path, picture: Path) -> None:
    """The table and the curves of all runs."""
    from zoo.viz.figures import COLOURS, new_figure, save_figure

    write_points(points, Point, csv_file)
    figure = new_figure(9.5, 4.2)
    panels = figure.subplots(1, 3)
    for axes, key, title in zip(panels, ("miou", "mask_ap", "pq"), ("mIoU", "mask AP", "PQ")):
        for number, name in enumerate(dict.fromkeys(p.model for p in points)):
            own = [(p.minutes, getattr(p, key)) for p in points if p.model == name and getattr(p, key) is not None]
            if own:
                style = "--" if name == PEER else "-"
                axes.plot(*zip(*own), style, marker="o", ms=3, color=COLOURS[number % len(COLOURS)], label=name)
        axes.set(xlabel="CPU minutes of training", title=f"{title} on held-out shapes", ylim=(0, None))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=6)
    save_figure(figure, picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40.0, help="CPU minutes of training of each")
    parser.add_argument("--backbone-minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="a run's name, or a part of several")
    parser.add_argument("--until", type=float, help="a run ends at the first evaluation with this score")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--validation", type=int, default=VALIDATION)
    parser.add_argument("--work-dir", default="work_dirs/bench_segmentation")
    parser.add_argument("--out", default=str(ROOT / "docs" / "benchmarks" / "segmentation_training.csv"))
    parser.add_argument("--picture", default=str(ROOT / "docs" / "images" / "segmentation_training.png"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = Path(args.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    train, val = data(args.images, args.validation)
    done: list[Point] = []
    for name in chosen(args.only):
        inner, spec = backbone_spec(name)
        shapes = Shapes("train", 8000, 64, data_seed=1, classes=SHAPE_CLASSES[: CLASSES - 1], occluders=(0, 0))
        classifier = partial(build, {**spec, "num_classes": CLASSES - 1}, MODELS)
        options: dict[str, Any] = {}
        if name in SEMANTIC:
            options = dict(warmup=100, half_size=0.7, amp=name in IN_BFLOAT16)
            options["lr"] = 5e-4 if name in PREPARED_SLOWLY else 1e-3
        file = folder / f"backbone_{inner}.pth"
        backbone = prepared_backbone(file, classifier, args.backbone_minutes, shapes, **options)
        run = Run(name, 60 * args.minutes, folder, train, val, backbone)
        run.run(
            lambda point: print(point, flush=True),
            lambda point: args.until is not None and point.score() >= args.until,
        )
        done += run.points
        points = with_earlier(done, Path(args.out), lambda p: p.model)
        write_results(points, Path(args.out), Path(args.picture))
        print(f"{name}: {run.points[-1].score()} after {run.points[-1].minutes} minutes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
