"""A config for a user's own images with masks (mask files, COCO instances or panoptic): classes, heads, schedule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from zoo.complexity import on_meta
from zoo.data.check_segmentation import classes_of_values, mask_values
from zoo.data.segmentation import SegmentationDataset
from zoo.data.segmentation_folder import MASK_FORMATS, FoundMasks, build_dataset, find_mask_data
from zoo.engine.hooks import EMAHook
from zoo.engine.optim import WarmupPolyLR
from zoo.engine.own_common import (
    candidates,
    check_positive,
    is_of,
    median_side,
    run_name,
    runner_values,
    worker_count,
    written,
)
from zoo.metrics.coco_masks import CocoMasks
from zoo.metrics.panoptic import PanopticQuality
from zoo.metrics.semantic import SemanticSegmentation
from zoo.registry import MODELS
from zoo.segmentation.mask_postprocess import mask_postprocess
from zoo.segmentation.model import SegmentationModel

# isort: split
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper

#: Images that a default schedule shows the segmenter, in total.
SHOWN = 40_000
#: Images of a median side below this are trained at their own scale, by default with a nano segmenter.
SMALL = 200


def is_segmenter(model: str) -> bool:
    """Whether a name is a segmenter's, or that of a family of segmenters."""
    return is_of(model, task="segmentation")


def segmenter_name(model: str, small: bool) -> str:
    """The registered segmenter of a name; a family's name means its nano model for small images, else its smallest.

    Raises:
        UnknownNameError: there is neither such a segmenter nor such a family.
    """
    names = candidates(model, "segmenter", task="segmentation")
    nano = [n for n in names if n.endswith("_nano")]
    if small and nano:
        return nano[0]
    order = ("tiny", "b0", "50", "small")
    return min(
        [n for n in names if n not in nano] or names,
        key=lambda n: (next((i for i, word in enumerate(order) if word in n), len(order)), len(n), n),
    )


def kind_of(model: str) -> str:
    """ "semantic" for networks with a class a pixel, "masks" for those that classify masks."""
    network: Any = on_meta(MODELS.entry(model).builder)
    return getattr(getattr(network, "network", network), "kind", "semantic")


def data_format(model: str, data: str | os.PathLike[str]) -> str:
    """The format that a segmenter trains on in a folder: as ``zoo data check`` names it.

    Raises:
        FileNotFoundError, ValueError: see :func:`zoo.data.segmentation_folder.find_mask_data`.
    """
    found = find_mask_data(data).format
    return "masks" if found in MASK_FORMATS else found


def own_segmentation_config(
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
    """A training config for a segmenter on a folder of images with masks, written to ``work_dir`` and read back.

    Networks with a class a pixel (UPerNet, Semantic FPN, SegFormer, FCN) take folders of masks and panoptic data; those
    that classify masks (MaskFormer, Mask2Former) take COCO instances too, and learn what the data has: semantic maps,
    panoptic segments or instances. The classes come from ``classes.txt``, from the annotations, or are the values that
    occur in the masks. Without a val split a fifth is held out.

    Args:
        model: a segmenter's name, or a family's ("upernet").
        data: a folder that :func:`zoo.data.segmentation_folder.find_mask_data` knows.
        epochs: by default as many as show the segmenter about 40,000 images, between 12 and 300.
        batch_size: by default 8 for small images, else 4.
        size: side of the crops in pixels; by default 512, or about the images' own where they are small.
        lr: learning rate; by default 1e-3 for nano networks, else 1e-4, times the square root of batch_size / 8 (of
            networks that classify masks 4e-4 and 1e-4).
        weights: a checkpoint to start from; heads of other classes are replaced.
        mixer: not taken: a backbone with another mixer has a config of its own.
        workers: processes that load images; by default the cores but one, at most 4.
        work_dir: by default ``work_dirs/<model>_<folder>``.
        seed: of everything.

    Raises:
        UnknownNameError: no such segmenter.
        FileNotFoundError: no such folder, or images without masks.
        ValueError: the data cannot be trained on, or not by this kind of network.
    """
    check_positive(epochs=epochs, batch_size=batch_size, size=size)
    if mixer is not None:
        raise ValueError(f"mixer={mixer!r}: a segmenter over a host with a mixer needs a config; see configs/hosts")
    segmenter_name(model, False)  # an unknown name ends here
    found = with_classes(find_mask_data(data))
    specs = found.training()
    train, val = build_dataset(specs[0]), build_dataset(specs[1])
    if train.classes != val.classes:
        raise ValueError(f"training and validation data have different classes: {train.classes} and {val.classes}")
    side = median_side(train)
    small = side < SMALL
    name = segmenter_name(model, small)
    kind, nano = kind_of(name), name.endswith("_nano")
    target = found.targets[0]
    if target == "panoptic" and kind == "semantic":
        target = "semantic"
    if target == "instance" and kind == "semantic":
        raise ValueError(
            f"{data} has instances; {name} gives each pixel a class. MaskFormer and Mask2Former learn them"
        )
    size = size or (max(64, 32 * round(side / 32)) if small else 512)
    batch_size = batch_size or max(1, min(8 if small else 4, len(train) // 4))
    epochs = epochs or max(12, min(300, round(SHOWN / len(train))))
    lr = lr or (1e-4 if not nano else 1e-3 if kind == "semantic" else 4e-4) * (batch_size / 8) ** 0.5
    workers = worker_count(workers)
    out = Path(work_dir or Path("work_dirs") / run_name(name, data))
    augment = dict(
        recipe="crop",
        train=True,
        crop=size,
        size=size,
        max_size=4 * size,
        ratio_range=[0.75, 1.5] if small else [0.5, 2.0],
        cat_max_ratio=0.75 if target == "semantic" else 1.0,
    )

    def loader(spec: dict[str, Any], training: bool) -> dict[str, Any]:
        whole = dict(train=False) if small else dict(train=False, size=size, max_size=4 * size)
        dataset = {**spec, "targets": [target], "on_error": "skip", "transform": augment if training else whole}
        return dict(
            batch_size=batch_size if training or small else 1,
            num_workers=workers,
            persistent_workers=workers > 0,
            drop_last=training,  # batch normalisation needs two values a channel
            sampler=dict(type=DefaultSampler, shuffle=training),
            dataset=dataset,
        )

    metric, best = _METRICS[target]
    values = {
        **runner_values(
            loader(specs[0], True),
            loader(specs[1], False),
            [dict(type=metric)],
            epochs=epochs,
            seed=seed,
            weights=weights,
            work_dir=out,
            save_best=best,
        ),
        "model": _model(name, kind, target, train),
        "optim_wrapper": dict(
            type=OptimWrapper,
            optimizer=dict(type=torch.optim.AdamW, lr=lr, weight_decay=0.01 if kind == "semantic" else 0.05),
            paramwise_cfg=dict(
                custom_keys={} if nano and weights is None else {"segmenter.backbone": dict(lr_mult=0.1)}
            ),
            clip_grad=dict(max_norm=1.0 if kind == "semantic" else 0.1),
        ),
        "param_scheduler": [dict(type=WarmupPolyLR, warmup_epochs=0.02 * epochs, warmup_start=1e-3)],
        "custom_hooks": [dict(type=EMAHook, decay=0.999)],
    }
    about = f"{name} on {Path(data).resolve().name} ({found.format}): {len(train)} images, {train.num_classes} classes."
    return written(values, out / f"{run_name(name, data)}.py", about)


_METRICS: dict[str, tuple[Any, str]] = {
    "semantic": (SemanticSegmentation, "semantic/mIoU"),
    "panoptic": (PanopticQuality, "panoptic/PQ"),
    "instance": (CocoMasks, "coco/mask_AP"),
}


def _model(name: str, kind: str, target: str, train: SegmentationDataset) -> dict[str, Any]:
    spec: dict[str, Any] = dict(
        type=SegmentationModel,
        segmenter=dict(type=name),
        num_classes=train.num_classes,
        ignore_index=train.ignore_index,
    )
    if kind != "semantic":
        # What the data does not have is not predicted: there is nothing to compare it with.
        task = {"semantic": "sem_seg", "panoptic": "panoptic", "instance": "instances"}[target]
        things = [k for k, thing in enumerate(train.things or [True] * train.num_classes) if thing]
        spec["mask_source"] = task
        spec["postprocess"] = dict(type=mask_postprocess, tasks=[task], thing_classes=things)
    return spec


def with_classes(found: FoundMasks) -> FoundMasks:
    """The same, with the classes that the values in the masks stand for where no file names them.

    Raises:
        ValueError: the values are no class indices.
    """
    if found.format != "masks" or all("classes" in spec for spec in found.splits.values()):
        return found
    own = classes_of_values(mask_values(found))
    return FoundMasks(found.format, {split: {**spec, **own} for split, spec in found.splits.items()})
