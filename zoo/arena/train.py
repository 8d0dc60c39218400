"""Classification in the arena: one recipe for every mixer, on the embedded digits or on the user's images.

AdamW with a cosine schedule after a short warm-up, label smoothing; photographs are shifted and mirrored at random.
The recipe is tuned for no mixer; it says how mixers compare when nobody tunes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.arena.corrupt import corrupt, corruption_names
from zoo.arena.grid import TASKS, Job, Settings, build_host
from zoo.arena.store import Row
from zoo.data.base import ImageDataset, stratified_split
from zoo.files import save_atomically

_EVAL_BATCH = 256


@dataclass(frozen=True)
class Images:
    """Images of one size with their labels, and the corrupted test images.

    Attributes:
        train, test: uint8 ``[N, S, S, 3]``.
        train_labels, test_labels: int64 ``[N]``.
        corrupted: name -> uint8 ``[severities * N, S, S, 3]``, the severities one after the other.
        classes: how many.
        augment: whether training images are shifted and mirrored (digits are centred, and mirrored ones are no digits).
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    corrupted: dict[str, np.ndarray]
    classes: int
    augment: bool


@TASKS.register(name="classification")
class Classification:
    """Training from scratch, accuracy on held-out images, accuracy on the same images corrupted."""

    @staticmethod
    def prepare(settings: Settings, path: Path) -> None:
        """Write the images that all jobs share; what is there already is kept."""
        if not path.is_file():
            _write(path, load_images(settings))

    @staticmethod
    def rows(settings: Settings, job: Job, path: Path) -> Iterator[Row]:
        """Train with each seed; a seed that fails is a row with its error."""
        images = _read(path)
        for seed in settings.seeds:
            try:
                found = train_once(settings, job.host, job.mixer, images, seed)
            except Exception as error:
                yield Row("top1", error=f"{type(error).__name__}: {error}", seed=seed)
                continue
            for measure, value in found.items():
                yield Row(measure, value, seed=seed)


def train_once(settings: Settings, host: str, mixer: Any, images: Images, seed: int) -> dict[str, float]:
    """Train a host with a mixer once and measure it.

    Returns:
        "top1", "train_loss" (mean over the last epoch), "train_s", "robust_top1" (mean over corruptions) and
        "corruption.<name>"; accuracies in per cent.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = build_host(host, mixer, num_classes=images.classes, image_size=settings.image_size).to(device)
    inputs, labels = _to_tensor(images.train, device), torch.from_numpy(images.train_labels).to(device)
    mean, std = _statistics(images.train, device)
    optimizer = torch.optim.AdamW(_groups(model), lr=settings.learning_rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)

    def loss_of(chosen: Tensor) -> Tensor:
        x = (inputs[chosen.to(device)].float() / 255 - mean) / std
        if images.augment:
            x = _augmented(x, generator)
        return F.cross_entropy(model(x), labels[chosen.to(device)], label_smoothing=0.1)

    losses, seconds = fit(
        model, optimizer, loss_of, len(inputs), settings.batch_size, settings.epochs, settings.learning_rate, generator
    )
    found = {
        "top1": accuracy(model, images.test, images.test_labels, mean, std),
        "train_loss": float(np.mean(losses)),
        "train_s": seconds,
    }
    robust = {
        f"corruption.{name}": accuracy(model, pixels, np.tile(images.test_labels, len(settings.severities)), mean, std)
        for name, pixels in images.corrupted.items()
    }
    return {**found, "robust_top1": float(np.mean(list(robust.values()))), **robust}


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    samples: int,
    batch_size: int,
    passes: int,
    learning_rate: float,
    generator: torch.Generator,
) -> tuple[list[float], float]:
    """Train a model, and put it into evaluation mode.

    Args:
        loss_of: indices of samples -> their loss.
        samples: how many there are.
        learning_rate: before the schedule.
        generator: of the order of the samples.

    Returns:
        Losses of the last pass, and seconds.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    steps, step = passes * -(-samples // batch_size), 0
    started = time.perf_counter()
    model.train()
    losses: list[float] = []
    for _ in range(passes):
        losses = []
        for chosen in torch.randperm(samples, generator=generator).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            loss = loss_of(chosen)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} at step {step + 1} of {steps}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
    seconds = time.perf_counter() - started
    model.eval()
    return losses, seconds


@torch.no_grad()
def accuracy(model: nn.Module, pixels: np.ndarray, labels: np.ndarray, mean: Tensor, std: Tensor) -> float:
    """Per cent of images ``[N, S, S, 3]`` whose largest logit is that of their label."""
    right = 0
    for start in range(0, len(pixels), _EVAL_BATCH):
        x = (_to_tensor(pixels[start : start + _EVAL_BATCH], mean.device).float() / 255 - mean) / std
        expected = torch.from_numpy(labels[start : start + _EVAL_BATCH]).to(mean.device)
        right += int((model(x).argmax(1) == expected).sum())
    return 100 * right / len(pixels)


def load_images(settings: Settings) -> Images:
    """The images of the settings: digits, or the user's folder (see ``zoo data check`` for its layouts)."""
    train_set, test_set, augment = _datasets(settings)
    train, train_labels = _pixels(train_set, settings.image_size, settings.max_train)
    test, test_labels = _pixels(test_set, settings.image_size, settings.max_test)
    corrupted = {
        name: np.stack(
            [corrupt(image, name, severity, seed=i) for severity in settings.severities for i, image in enumerate(test)]
        )
        for name in corruption_names()
    }
    return Images(train, train_labels, test, test_labels, corrupted, train_set.num_classes, augment)


def _datasets(settings: Settings) -> tuple[ImageDataset, ImageDataset, bool]:
    if settings.data is None:
        from zoo.data.digits import Digits

        size = settings.image_size
        return Digits("train", size=size), Digits("test", size=size), False
    from zoo.data.image_folder import ImageFolder, find_splits

    train, val = find_splits(settings.data)
    if val is None:
        return ImageFolder(train, part="train"), ImageFolder(train, part="val"), True
    folder = ImageFolder(train)
    return folder, ImageFolder(val, classes=folder.classes), True


def _pixels(dataset: ImageDataset, size: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``limit`` images, the same share of every class, cut square and resized, and their labels."""
    chosen = list(range(len(dataset)))
    if len(chosen) > limit:
        chosen = stratified_split(dataset.labels.tolist(), limit / len(chosen))[1]
    images = [_square(dataset.load_image(i), size) for i in chosen]
    return np.stack(images), dataset.labels[chosen]


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """The largest square in the middle of ``[H, W, 3]``, resized to ``[size, size, 3]``."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _write(path: Path, images: Images) -> None:
    arrays: dict[str, Any] = {f"corrupted.{name}": pixels for name, pixels in images.corrupted.items()}
    for name in ("train", "train_labels", "test", "test_labels"):
        arrays[name] = getattr(images, name)
    arrays["classes"], arrays["augment"] = np.array(images.classes), np.array(images.augment)
    save_atomically(path, lambda file: np.savez(file, **arrays))


def _read(path: Path) -> Images:
    with np.load(path, allow_pickle=False) as stored:
        corrupted = {k.partition(".")[2]: stored[k] for k in stored.files if k.startswith("corrupted.")}
        arrays = {k: stored[k] for k in ("train", "train_labels", "test", "test_labels")}
        return Images(**arrays, corrupted=corrupted, classes=int(stored["classes"]), augment=bool(stored["augment"]))


def _to_tensor(pixels: np.ndarray, device: torch.device) -> Tensor:
    """[N, S, S, 3] to uint8 [N, 3, S, S]"""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device)


def _statistics(pixels: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [1, 3, 1, 1] each, for pixels in 0 ... 1."""
    flat = pixels.reshape(-1, 3) / 255.0
    mean, std = flat.mean(0), np.maximum(flat.std(0), 1e-3)
    return tuple(torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std))  # type: ignore[return-value]


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of [B, 3, S, S] by up to an eighth of the side, and mirror half of them."""
    batch, side = x.shape[0], x.shape[-1]
    reach = side // 8
    shift = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator)
    rows, columns = (shift + torch.arange(side)).to(x.device)  # [B, S] each, places in the padded image
    x = F.pad(x, (reach,) * 4, mode="replicate")
    image = torch.arange(batch, device=x.device)[:, None, None]
    x = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    flip = torch.rand(batch, generator=generator) < 0.5
    return torch.where(flip.to(x.device)[:, None, None, None], x.flip(3), x)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: vectors (biases, norms) have none."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _schedule(step: int, steps: int) -> float:
    """Warm-up over the first tenth, then a cosine to zero."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
