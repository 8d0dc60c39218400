"""A config for a user's own images with boxes (COCO, VOC, YOLO): classes, heads, sizes and schedule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.data.detection_folder import build_dataset, find_detection_data, same_categories
from zoo.detection.model import DetectionModel
from zoo.engine import own_common
from zoo.engine.hooks import EMAHook
from zoo.engine.optim import WarmupCosineLR
from zoo.engine.own_common import candidates, check_positive, is_of, run_name, runner_values, worker_count, written
from zoo.metrics.coco import CocoBoxes
from zoo.metrics.coco_masks import CocoMasks
from zoo.registry import MODELS

# isort: split
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper

#: Images that a default schedule shows the detector, in total.
SHOWN = 60_000
#: Images of a median side below this are trained at their own scale, by default with a nano detector.
SMALL = 200


def is_detector(model: str) -> bool:
    """Whether a name is a detector's, or that of a family of detectors."""
    return is_of(model, task="detection")


def detector_name(model: str, small: bool) -> str:
    """The registered detector of a name; a family's name means its nano model for small images, else its ResNet-50.

    Raises:
        UnknownNameError: there is neither such a detector nor such a family.
    """
    names = candidates(model, "detector", task="detection")
    nano = [n for n in names if n.endswith("_nano")]
    if small and nano:
        return f"{model}_nano" if f"{model}_nano" in nano else nano[0]
    return min([n for n in names if n not in nano] or names, key=lambda n: ("50" not in n, len(n), n))


def needs_masks(model: str) -> bool:
    """Whether a registered detector learns from masks."""
    return bool(MODELS.entry(model).meta.get("masks"))


def own_detection_config(
    model: str,
    data: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
    lr: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    mixer: str | None = None,
    workers: int | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Config:
    """A training config for a detector on a folder of images with boxes, written to ``work_dir`` and read back.

    Category ids may be sparse: classes are numbered from 0 for the detector, whose heads get as many outputs as there
    are classes, and predictions carry the ids of the data. Without a val split a fifth of the images is held out.
    Models of masks (Mask R-CNN) need COCO annotations in which every object has a segmentation.

    Args:
        model: a detector's name, or a family's ("dino").
        data: a folder that :func:`zoo.data.detection_folder.find_detection_data` knows.
        epochs: by default as many as show the detector about 60,000 images, between 12 and 300.
        batch_size: by default 8 for small images, else 2.
        size: shorter side in pixels; by default 800, or the images' own where they are small.
        lr: learning rate; by default 4e-4 for nano detectors, else 1e-4, times the square root of batch_size / 8.
        weights: a checkpoint to start from; heads of other classes are replaced.
        mixer: a mixer for the encoder.
        workers: processes that load images; by default the cores but one, at most 4.
        work_dir: by default ``work_dirs/<model>_<folder>``.
        seed: of everything.

    Raises:
        UnknownNameError: no such detector.
        FileNotFoundError: no such folder, or files that it lists are missing.
        ValueError: the data cannot be trained on; for a model of masks also: it has none, or some annotations have none
            (the message names them).
    """
    check_positive(epochs=epochs, batch_size=batch_size, size=size)
    masks = needs_masks(detector_name(model, False))  # an unknown name ends here
    found = find_detection_data(data)
    train_spec, val_spec = found.training()
    if masks:
        if found.format != "coco":
            raise ValueError(
                f"{model} learns from masks, and {data} ({found.format}) has boxes only; COCO's format has them"
            )
        train_spec, val_spec = ({**s, "with_masks": True} for s in (train_spec, val_spec))
    train, val = build_dataset(train_spec), build_dataset(val_spec)
    same_categories(train, val)
    if not train.num_classes:
        raise ValueError(f"{data} has no classes")
    if len(train.table.labels) == 0:
        raise ValueError(f"{data} has no object to train on")
    side = median_side(train)
    small = side < SMALL
    name = detector_name(model, small)
    nano = name.endswith("_nano")
    size = size or (max(64, 32 * round(side / 32)) if small else 800)
    longest = round(size * 1333 / 800)
    batch_size = batch_size or max(1, min(8 if small else 2, len(train) // 4))
    epochs = epochs or max(12, min(300, round(SHOWN / len(train))))
    lr = lr or (4e-4 if nano else 1e-4) * (batch_size / 8) ** 0.5
    workers = worker_count(workers)
    out = Path(work_dir or Path("work_dirs") / run_name(name, data))
    scales = [max(32, 16 * round(size * f / 16)) for f in (0.75, 0.875, 1.0)]
    if small:
        augment = dict(recipe="resize", train=True, size=[*scales[1:], scales[-1] + 16], max_size=longest + 32)
    elif size == 800:
        augment = dict(recipe="detr", train=True)
    else:
        augment = dict(recipe="resize", train=True, size=scales, max_size=longest)

    def loader(spec: dict[str, Any], training: bool) -> dict[str, Any]:
        transform = augment if training else dict(train=False, size=size, max_size=longest)
        return dict(
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type=DefaultSampler, shuffle=training),
            dataset={**spec, "on_error": "skip", "transform": transform},
        )

    detector: dict[str, Any] = dict(type=name)
    if mixer is not None:
        detector["encoder_mixer"] = mixer
    metric: type[CocoBoxes] = CocoMasks if masks else CocoBoxes
    custom = {} if nano and weights is None else {"detector.backbone": dict(lr_mult=0.1)}
    values = {
        **runner_values(
            loader(train_spec, True),
            loader(val_spec, False),
            [dict(type=metric)],
            epochs=epochs,
            seed=seed,
            weights=weights,
            work_dir=out,
            save_best="coco/mask_AP" if masks else "coco/AP",
        ),
        "model": dict(type=DetectionModel, detector=detector, num_classes=train.num_classes),
        "optim_wrapper": dict(
            type=OptimWrapper,
            optimizer=dict(type=torch.optim.AdamW, lr=lr, weight_decay=1e-4),
            paramwise_cfg=dict(custom_keys=custom),
            clip_grad=dict(max_norm=0.5 if nano else 0.1),
        ),
        "param_scheduler": [dict(type=WarmupCosineLR, warmup_epochs=0.02 * epochs, min_ratio=0.02)],
        "custom_hooks": [dict(type=EMAHook, decay=0.999)],
    }
    objects = int((~train.table.crowd).sum())
    about = f"{name} on {Path(data).resolve().name} ({found.format}): {len(train)} images, {objects} objects, "
    return written(values, out / f"{run_name(name, data)}.py", f"{about}{train.num_classes} classes.")


def median_side(dataset: Any) -> float:
    """Median of the images' shorter sides in pixels: annotated, or of a sample of the files.

    Raises:
        ValueError: none of the sampled images can be read.
    """
    annotated = dataset.table.sizes.min(1)
    if len(annotated) and (annotated > 0).all():
        return float(np.median(annotated))
    return own_common.median_side(dataset)
