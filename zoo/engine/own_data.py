"""A config for a user's own folder of images: classes, head, normalisation and schedule follow from the data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.loss import LabelSmoothingCrossEntropy

from zoo.classification.model import ImageClassifier
from zoo.data.image_folder import ImageFolder, find_splits
from zoo.data.loading import read_image
from zoo.engine.optim import WarmupCosineLR
from zoo.engine.own_common import check_positive, run_name, runner_values, worker_count, written
from zoo.metrics.accuracy import Accuracy
from zoo.registry import MODELS
from zoo.weights.index import model_info

# isort: split
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper

#: Images that a default schedule shows the model, in total; the number of epochs follows from the size of the data.
SHOWN = 60_000
#: Images that the normalisation is computed from.
SAMPLED = 500


def own_data_config(
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
    """A training config for ``model`` on the images of a folder, written to ``work_dir`` and read back from there.

    The folder has ``train`` and ``val`` sub-folders with one folder a class each, or the class folders directly, of
    which a stratified fifth is held out. Images of a median side under 96 pixels are trained at their own scale with
    light augmentation, others at the model's size with timm's. Normalisation is that of the weights, or without
    weights the data's own mean and deviation.

    Args:
        model: a model's name.
        data: the folder.
        epochs: by default as many as show the model about 60,000 images, between 10 and 300.
        batch_size: by default 64, less for small data so that an epoch has ten steps.
        size: image side in pixels.
        lr: learning rate; by default 1e-3 (1e-4 from weights) times the square root of batch_size / 64.
        weights: a checkpoint to start from; its classifier is replaced when it has other classes.
        mixer: for the hosts, the mixer.
        workers: processes that load images; by default the cores but one, at most 4.
        work_dir: by default ``work_dirs/<model>_<folder>``.
        seed: of everything.

    Raises:
        UnknownNameError: no such model.
        FileNotFoundError: no such folder.
        ValueError: the folder holds no class folders with images.
    """
    MODELS.entry(model)  # an unknown name ends here
    check_positive(epochs=epochs, batch_size=batch_size, size=size)
    train_root, val_root = find_splits(data)
    train = ImageFolder(train_root) if val_root else ImageFolder(train_root, part="train")
    if train.num_classes < 2:
        raise ValueError(f"{train_root} holds {train.num_classes} class folder(s) with images; two are needed")
    side, mean, std = statistics(train)
    info = model_info(model)
    full = int(np.max(info.input_size if info else MODELS.entry(model).meta.get("input_size", 224)))
    small = side < 96
    size = size or (min(full, max(32, 32 * round(side / 32))) if small else full)
    if weights is not None and info:
        mean, std = list(info.mean), list(info.std)
    count = len(train)
    batch_size = batch_size or max(4, min(64, count // 10))
    epochs = epochs or max(10, min(300, round(SHOWN / count)))
    lr = lr or (1e-4 if weights else 1e-3) * (batch_size / 64) ** 0.5
    workers = worker_count(workers)
    out = Path(work_dir or Path("work_dirs") / run_name(model, data))

    def loader(part: str, shuffle: bool) -> dict[str, Any]:
        own = {"root": str(Path(val_root or train_root).resolve())} if part == "val" else {}
        return dict(
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type=DefaultSampler, shuffle=shuffle),
            dataset=dict(
                type=ImageFolder,
                root=own.get("root", str(Path(train_root).resolve())),
                classes=list(train.classes),
                part="all" if val_root else part,
                on_error="skip",
                transform=dict(recipe=("light" if small else "imagenet"), train=part == "train", size=size),
            ),
        )

    backbone: dict[str, Any] = dict(type=model)
    if mixer is not None:
        backbone["mixer"] = mixer
    values = {
        **runner_values(
            loader("train", True),
            loader("val", False),
            [dict(type=Accuracy, topk=(1, 5))],
            epochs=epochs,
            seed=seed,
            weights=weights,
            work_dir=out,
        ),
        "model": dict(
            type=ImageClassifier,
            backbone=backbone,
            num_classes=train.num_classes,
            loss=dict(type=LabelSmoothingCrossEntropy, smoothing=0.1),
            data_preprocessor=dict(mean=[m * 255 for m in mean], std=[s * 255 for s in std]),
        ),
        "optim_wrapper": dict(
            type=OptimWrapper,
            optimizer=dict(type=torch.optim.AdamW, lr=lr, weight_decay=0.05),
            clip_grad=dict(max_norm=5.0),
        ),
        "param_scheduler": [dict(type=WarmupCosineLR, warmup_epochs=0.05 * epochs, min_ratio=0.01)],
    }
    about = f"{model} on {Path(data).name}: {count} training images, {train.num_classes} classes."
    return written(values, out / f"{run_name(model, data)}.py", about)


def statistics(dataset: ImageFolder) -> tuple[float, list[float], list[float]]:
    """Median image side in pixels, and mean and deviation of the channels (0 ... 1), of an even sample of images."""
    step = max(1, len(dataset) // SAMPLED)
    sides, means, squares = [], [], []
    for index in range(0, len(dataset), step):
        try:
            image = read_image(dataset.path_of(index))
        except ValueError:  # unreadable images are reported when they are trained on, and by `zoo data check`
            continue
        pixels = image.reshape(-1, 3).astype(np.float64) / 255
        sides.append(min(image.shape[:2]))
        means.append(pixels.mean(0))
        squares.append((pixels**2).mean(0))
    if not sides:
        raise ValueError(f"none of the images of {dataset.root} can be read; look at `zoo data check {dataset.root}`")
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 1e-4))
    return float(np.median(sides)), [round(float(m), 4) for m in mean], [round(float(s), 4) for s in std]
