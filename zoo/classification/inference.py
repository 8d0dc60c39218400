"""Predictions of a classifier on images of any kind: files, folders, patterns, arrays, PIL images."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.data.loading import ImageReadError, is_image_file, read_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Prediction:
    """What a classifier says of one image.

    ``scores`` are the probabilities ``[num_classes]``; ``top`` is the best first, as (class name, probability).
    ``error`` is set, and the rest empty, for an image that could not be read.
    """

    source: str
    label: int = -1
    name: str = ""
    score: float = 0.0
    top: list[tuple[str, float]] = field(default_factory=list)
    scores: Tensor | None = None
    image: np.ndarray | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the image."""
        if self.error:
            return {"source": self.source, "error": self.error}
        return {
            "source": self.source,
            "label": self.label,
            "name": self.name,
            "score": self.score,
            "top": [{"name": n, "score": s} for n, s in self.top],
        }


class Predictor:
    """A classifier with its preprocessing.

    Args:
        network: maps normalised images ``[B, 3, h, w]`` to logits ``[B, num_classes]``.
        transform: maps an RGB uint8 image ``[H, W, 3]`` to uint8 ``[h, w, 3]`` of one size.
        mean, std: of the normalisation, for pixels in 0 ... 1.
        classes: class names; numbers where None.
        device: "auto" is the GPU if there is one.
        amp: compute in bfloat16 where that is safe (autocast).
    """

    def __init__(
        self,
        network: nn.Module,
        transform: Callable[[np.ndarray], np.ndarray],
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        classes: Sequence[str] | None = None,
        device: str | torch.device = "auto",
        amp: bool = False,
    ):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.network = network.eval().to(self.device)
        self.transform = transform
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.classes = None if classes is None else [str(c) for c in classes]
        self.amp = amp

    def __call__(
        self, images: Any, *, batch_size: int = 16, topk: int = 5, on_error: str = "raise", keep_images: bool = False
    ) -> Iterator[Prediction]:
        """Predict, one :class:`Prediction` an image, in order.

        Args:
            images: see :func:`expand`.
            batch_size: images a step.
            topk: how many of the best classes to name.
            on_error: an unreadable image raises ("raise") or gives a Prediction with ``error`` ("report").
            keep_images: put the RGB image into the Prediction, for drawing.
        """
        if batch_size < 1 or topk < 1:
            raise ValueError(f"batch_size={batch_size} and topk={topk} must be 1 or above")
        if on_error not in ("raise", "report"):
            raise ValueError(f"on_error={on_error!r}: accepted are 'raise' and 'report'")
        pending: list[tuple[str, np.ndarray | None, str | None]] = []
        for source, item in expand(images):
            try:
                pending.append((source, _as_rgb(item), None))
            except ImageReadError as error:
                if on_error == "raise":
                    raise
                pending.append((source, None, str(error)))
            if len(pending) == batch_size:
                yield from self._batch(pending, topk, keep_images)
                pending = []
        if pending:
            yield from self._batch(pending, topk, keep_images)

    @torch.inference_mode()
    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Logits ``[B, num_classes]`` float32 of RGB uint8 images ``[H, W, 3]``."""
        batch = np.stack([self.transform(image) for image in images])  # [B, h, w, 3]
        x = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float() / 255
        x = (x - self.mean) / self.std
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return self.network(x).float()

    def _batch(
        self, pending: list[tuple[str, np.ndarray | None, str | None]], topk: int, keep_images: bool
    ) -> Iterator[Prediction]:
        readable = [image for _, image, _ in pending if image is not None]
        scores = iter(self.logits(readable).softmax(-1).cpu()) if readable else iter(())
        for source, image, error in pending:
            if image is None:
                yield Prediction(source, error=error)
                continue
            probabilities = next(scores)
            best = probabilities.topk(min(topk, len(probabilities)))
            top = [(self.class_name(i), s) for s, i in zip(best.values.tolist(), best.indices.tolist())]
            yield Prediction(
                source,
                label=int(best.indices[0]),
                name=top[0][0],
                score=top[0][1],
                top=top,
                scores=probabilities,
                image=image if keep_images else None,
            )

    def class_name(self, index: int) -> str:
        """Name of a class; its number where names are not known."""
        return self.classes[index] if self.classes and index < len(self.classes) else str(index)


def predict(
    model: Any, images: Any, *, weights: str | os.PathLike[str] | None = None, **options: Any
) -> Iterator[Prediction]:
    """Predictions of a model on images.

    Args:
        model: a model name, a config (name or file), a :class:`Predictor`, or a backbone with a classifier.
        images: one image or many; see :func:`expand`.
        weights: checkpoint file; for a name without it, the weights that the index knows.
        **options: ``device``, ``amp``, ``classes`` of :class:`Predictor`; ``batch_size``, ``topk``, ``on_error``,
            ``keep_images`` of its call.
    """
    own = {k: options.pop(k) for k in ("device", "amp", "classes") if k in options}
    predictor = model if isinstance(model, Predictor) else load_predictor(model, weights, **own)
    return predictor(images, **options)


def load_predictor(model: Any, weights: str | os.PathLike[str] | None = None, **options: Any) -> Predictor:
    """A :class:`Predictor` of a model name, a config or a backbone with a classifier."""
    from zoo.registry import MODELS

    if isinstance(model, nn.Module):
        if weights is not None:
            from zoo.weights.load import load_weights

            load_weights(model, weights)
        return Predictor(model, _evaluation(224), **options)
    if str(model) in MODELS:
        return _predictor_of_name(str(model), weights, options)
    from zoo.engine.config import require_known

    require_known(model)
    return _predictor_of_config(model, weights, options)


def _predictor_of_name(name: str, weights: str | os.PathLike[str] | None, options: dict[str, Any]) -> Predictor:
    from zoo.weights.hub import resolve_weights
    from zoo.weights.index import model_info

    info = model_info(name)
    weights = resolve_weights(name) if weights is None else weights
    meta = _meta(weights)
    recorded = _recorded_config(meta)
    if recorded is not None:
        # trained here: its own preprocessing, which need not be the model's usual one
        return _predictor_of_config(recorded, weights, options, backbone=name, meta=meta)
    network = create_for_checkpoint(name, weights)
    options = {"classes": _classes(meta), **options}
    if info:
        options = {"mean": info.mean, "std": info.std, **options}
    return Predictor(network, _evaluation(info.input_size if info else 224), **options)


def _predictor_of_config(
    config: Any,
    weights: str | os.PathLike[str] | None,
    options: dict[str, Any],
    *,
    backbone: str | None = None,
    meta: dict[str, Any] | None = None,
) -> Predictor:
    from zoo.classification.model import ImageClassifier
    from zoo.data.transforms import build_transforms
    from zoo.engine.config import load_config
    from zoo.weights.load import load_weights

    if weights is None:
        raise ValueError(f"config {config} has no weights of its own; give a checkpoint file as weights")
    cfg = config if hasattr(config, "model") else load_config(config)
    arguments = {k: v for k, v in cfg.model.to_dict().items() if k != "type"}
    spec = arguments["backbone"]
    trained = spec.get("type") if isinstance(spec, dict) else spec
    if backbone is not None and str(getattr(trained, "__name__", trained)).rpartition(".")[2] != backbone:
        raise ValueError(f"{weights} was trained with the backbone {trained!r}, not {backbone!r}")
    model = ImageClassifier(**arguments)
    load_weights(model, weights)
    normalise = model.data_preprocessor
    options = {"classes": _classes(_meta(weights) if meta is None else meta), **options}
    return Predictor(
        _Logits(model),
        build_transforms(**cfg.test_dataloader.dataset.transform.to_dict()),
        mean=[m / 255 for m in normalise.mean.flatten().tolist()],
        std=[s / 255 for s in normalise.std.flatten().tolist()],
        **options,
    )


def _recorded_config(meta: dict[str, Any]) -> Any:
    """The config that a checkpoint of our runner records, checked, or None."""
    text = meta.get("cfg")
    if not text:
        return None
    from zoo.engine.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recorded.py"
        file.write_text(text, encoding="utf-8")
        return load_config(file)


class _Logits(nn.Module):
    """A task model as a map from normalised images to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, mode="tensor")


def _evaluation(size: int) -> Callable[[np.ndarray], np.ndarray]:
    from zoo.data.transforms import build_transforms

    return build_transforms(train=False, size=size)


def create_for_checkpoint(name: str, weights: str | os.PathLike[str]) -> nn.Module:
    """A model whose classifier has the checkpoint's size, loaded."""
    from zoo.api import create_model
    from zoo.weights.load import load_weights

    model = create_model(name)
    last = model.num_layers() - 1
    report = load_weights(model, weights, strict=False)
    heads = [c for k, (m, c) in report.mismatched.items() if model.layer_id(k) == last and len(m) > 1]
    if heads and not report.missing and not report.unexpected:
        model = create_model(name, num_classes=heads[0][0])
        load_weights(model, weights)
    elif not report.exact:
        load_weights(model, weights)  # says what differs
    return model


def _classes(meta: dict[str, Any]) -> list[str] | None:
    """Class names that a checkpoint of ours records, or None."""
    names = (meta.get("dataset_meta") or {}).get("classes")
    return [str(n) for n in names] if names else None


def _meta(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint of ours says about itself: ``cfg``, ``dataset_meta`` ...; empty for others."""
    path = Path(weights)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            recorded = (file.metadata() or {}).get("attnzoo_meta")
        return json.loads(recorded) if recorded else {}
    from zoo.weights.checkpoint import read_checkpoint

    content = read_checkpoint(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


def expand(images: Any) -> Iterator[tuple[str, Any]]:
    """(name, image) pairs of what a user may give.

    Accepts a file, a folder (its images, sorted, with sub-folders), a glob pattern, a PIL image, an RGB uint8 array
    ``[H, W, 3]``, or an iterable of these.

    Raises:
        FileNotFoundError: a path or pattern matches nothing, or a folder holds no images.
    """
    if isinstance(images, str | os.PathLike):
        yield from ((str(p), p) for p in _files(os.fspath(images)))
    elif isinstance(images, np.ndarray | Tensor) or not isinstance(images, Iterable):
        yield "image", images
    else:
        for i, item in enumerate(images):
            if isinstance(item, str | os.PathLike):
                yield from expand(item)
            else:
                yield f"image {i}", item


def _files(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if is_image_file(p))
        if not found:
            raise FileNotFoundError(f"the folder {text} holds no images")
        return found
    if path.exists():
        return [path]
    if glob.has_magic(text):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())
        if found:
            return found
        raise FileNotFoundError(f"no file matches {text!r}")
    raise FileNotFoundError(f"no such file: {text}")


def _as_rgb(item: Any) -> np.ndarray:
    """RGB uint8 ``[H, W, 3]``."""
    if isinstance(item, str | os.PathLike):
        return read_image(item)
    if hasattr(item, "convert"):  # PIL
        return np.asarray(item.convert("RGB"))
    array = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    if array.ndim == 2:
        array = np.stack([array] * 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"an image array has shape {array.shape} and dtype {array.dtype}; uint8 [H, W, 3] is expected")
    return array
