"""Predictions of a classifier: its typed result, and the pipeline from a name, a config or an exported file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from zoo.inference.pipeline import Predictor, Sample
from zoo.inference.recorded import checkpoint_meta, classes_of, config_of, model_arguments, needs_weights
from zoo.inference.results import Result, Results

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Prediction(Result):
    """What a classifier says of one image.

    Attributes:
        label: index of the best class; -1 where there is an ``error``.
        name: its name.
        score: its probability.
        top: the best classes, best first, as (name, probability).
        scores: probabilities of all classes ``[num_classes]``, float32 on the CPU.
    """

    label: int = -1
    name: str = ""
    score: float = 0.0
    top: list[tuple[str, float]] = field(default_factory=list)
    scores: Tensor | None = field(default=None, repr=False, compare=False)
    _best: list[int] = field(default_factory=list, repr=False)

    def body(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "name": self.name,
            "score": self.score,
            "top": [{"name": n, "score": s} for n, s in self.top],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row for each of the best classes: ``rank``, ``label``, ``name``, ``score``."""
        return [
            {"rank": rank, "label": label, "name": name, "score": score}
            for rank, (label, (name, score)) in enumerate(zip(self._best, self.top))
        ]

    def coco_entries(self, image_id: int) -> list[dict[str, Any]]:
        """One entry for each of the best classes; ``category_id`` is the label. COCO has no results of classification,
        so they are its detections without a box."""
        return [
            {"image_id": image_id, "category_id": label, "score": score}
            for label, (_, score) in zip(self._best, self.top)
        ]

    def draw(self) -> Image:
        """The image above bars of the best classes."""
        import PIL.Image

        from zoo.viz.predictions import Prediction as Picture
        from zoo.viz.predictions import draw_predictions

        image = self.image  # first, for its error where there is none
        names, scores = zip(*self.top)
        picture = Picture(image, names, scores, title=Path(self.source).name)
        figure = draw_predictions([picture], columns=1, topk=len(names))
        figure.set_dpi(120)
        canvas: Any = figure.canvas  # Agg's
        canvas.draw()
        return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())


class Classifier(Predictor[Prediction]):
    """A classifier with its preprocessing.

    Args:
        network: maps normalised images ``[B, 3, h, w]`` to logits ``[B, num_classes]``.
        transform: maps an RGB uint8 image ``[H, W, 3]`` to uint8 ``[h, w, 3]`` of one size, or arguments of
            :func:`zoo.data.transforms.build_transforms` as a dict, which an exported file can record.
        score: "softmax", or "sigmoid" for classes that do not exclude each other.
        name: of the model, for exported files.
        **options: of :class:`zoo.inference.pipeline.Predictor`.
    """

    task = "classification"
    options: ClassVar[dict[str, Any]] = {"topk": 5}

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        transform: Callable[[np.ndarray], np.ndarray] | dict[str, Any],
        *,
        score: str = "softmax",
        name: str = "",
        **options: Any,
    ):
        from zoo.data.transforms import build_transforms

        super().__init__(network, **options)
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"score={score!r}: accepted are 'softmax' and 'sigmoid'")
        self.transform_spec = {**transform, "train": False} if isinstance(transform, dict) else None
        self.transform = build_transforms(**self.transform_spec) if self.transform_spec else transform
        self.score, self.name = score, name

    def check_options(self, **options: Any) -> None:
        if options["topk"] < 1:
            raise ValueError(f"topk={options['topk']}: accepted are 1 and above")

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, None]:
        return self.transform(image), None  # type: ignore[operator]

    def results(self, outputs: Tensor, samples: Sequence[Sample], **options: Any) -> list[Prediction]:
        logits = outputs.float()
        scores = (logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()).cpu()  # [B, num_classes]
        best = scores.topk(min(options["topk"], scores.shape[1]))
        found = []
        for sample, row, labels, values in zip(samples, scores, best.indices.tolist(), best.values.tolist()):
            names = [self.class_name(i) for i in labels]
            found.append(
                Prediction(
                    sample.item.source,
                    frame=sample.item.frame,
                    size=sample.size,
                    label=labels[0],
                    name=names[0],
                    score=values[0],
                    top=list(zip(names, values)),
                    scores=row,
                    _best=labels,
                )
            )
        return found

    def failed(self, sample: Sample) -> Prediction:
        return Prediction(sample.item.source, frame=sample.item.frame, error=str(sample.error))

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        """Logits ``[B, num_classes]`` float32 of RGB uint8 images ``[H, W, 3]``."""
        return self.forward([self.prepare(image)[0] for image in images]).float()


def predict(
    model: Any, images: Any, *, weights: str | os.PathLike[str] | None = None, **options: Any
) -> Results[Any] | Iterator[Result]:
    """Predictions of a classifier on images; see :func:`zoo.api.predict`."""
    from zoo.inference.load import predict as run

    return run(model, images, weights=weights, **options)


def load_predictor(model: Any, weights: str | os.PathLike[str] | None = None, **options: Any) -> Classifier:
    """A :class:`Classifier` of a model name, a config or a backbone with a classifier.

    Raises:
        UnknownNameError, FileNotFoundError: no such model or config.
        CheckpointError, WeightsUnavailableError: the weights cannot be had or do not fit.
        ValueError: a config without weights, or a checkpoint of another model.
    """
    from zoo.registry import MODELS

    if isinstance(model, nn.Module):
        if weights is not None:
            from zoo.weights.load import load_weights

            load_weights(model, weights)
        return _classifier_of_module(model, options)
    if str(model) in MODELS:
        return _classifier_of_name(str(model), weights, options)
    from zoo.engine.config import require_known

    require_known(model)
    return _classifier_of_config(model, weights, options)


def untrained_predictor(model: str | os.PathLike[str], *, num_classes: int | None = None, **options: Any) -> Classifier:
    """A :class:`Classifier` as initialised with seed 0, on the CPU; ``num_classes`` is the model's own by default."""
    import torch

    from zoo.registry import MODELS

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if str(model) in MODELS:
            entry = MODELS.entry(str(model))
            network: nn.Module = entry.builder(**({} if num_classes is None else {"num_classes": num_classes}))
            options = {"size": entry.meta.get("input_size", 224), **options}
            return _classifier_of_module(network, {"name": str(model), "device": "cpu", **options})
        from zoo.classification.model import ImageClassifier
        from zoo.engine.config import load_config, require_known

        require_known(os.fspath(model))
        if num_classes is not None:
            raise ValueError(f"num_classes={num_classes}: a config has its own number")
        cfg = load_config(os.fspath(model))
        network = ImageClassifier(**model_arguments(cfg))
        transform = cfg.test_dataloader.dataset.transform.to_dict()
        if "size" in options:
            transform["size"] = options.pop("size")
        return Classifier(_Logits(network), transform, device="cpu", **{**_of_task_model(network), **options})


def from_export(network: Callable[[Tensor], Tensor], facts: dict[str, Any], **options: Any) -> Classifier:
    """A :class:`Classifier` around an exported network; ``facts`` are what its file records."""
    return Classifier(
        network,
        facts["transform"],
        score=facts["score"],
        name=facts["model"],
        **{"mean": facts["mean"], "std": facts["std"], "classes": facts["classes"], **options},
    )


def _classifier_of_module(model: nn.Module, options: dict[str, Any]) -> Classifier:
    from zoo.classification.model import ImageClassifier

    size = options.pop("size", 224)
    if isinstance(model, ImageClassifier):
        return Classifier(_Logits(model), dict(size=size), **{**_of_task_model(model), **options})
    return Classifier(model, dict(size=size), **options)


def _of_task_model(model: Any) -> dict[str, Any]:
    normalise = model.data_preprocessor
    return {
        "mean": [m / 255 for m in normalise.mean.flatten().tolist()],
        "std": [s / 255 for s in normalise.std.flatten().tolist()],
        "score": model.score,
    }


def _classifier_of_name(name: str, weights: str | os.PathLike[str] | None, options: dict[str, Any]) -> Classifier:
    from zoo.registry import MODELS
    from zoo.weights.hub import resolve_weights
    from zoo.weights.index import model_info

    info = model_info(name)
    weights = resolve_weights(name) if weights is None else weights
    meta = checkpoint_meta(weights)
    recorded = config_of(meta)
    if recorded is not None:
        # trained here: its own preprocessing, which need not be the model's usual one
        return _classifier_of_config(recorded, weights, options, backbone=name, meta=meta)
    network = create_for_checkpoint(name, weights)
    options = {"classes": classes_of(meta), "name": name, **options}
    if info:
        options = {"mean": info.mean, "std": info.std, **options}
    size = options.pop("size", None) or (info.input_size if info else MODELS.entry(name).meta.get("input_size", 224))
    return Classifier(network, dict(size=size), **options)


def _classifier_of_config(
    config: Any,
    weights: str | os.PathLike[str] | None,
    options: dict[str, Any],
    *,
    backbone: str | None = None,
    meta: dict[str, Any] | None = None,
) -> Classifier:
    from zoo.classification.model import ImageClassifier
    from zoo.engine.config import load_config
    from zoo.weights.load import load_weights

    weights = needs_weights(config, weights)
    cfg = config if hasattr(config, "model") else load_config(config)
    arguments = model_arguments(cfg)
    spec = arguments["backbone"]
    trained = spec.get("type") if isinstance(spec, dict) else spec
    trained = str(getattr(trained, "__name__", trained)).rpartition(".")[2]
    if backbone is not None and trained != backbone:
        raise ValueError(f"{weights} was trained with the backbone {trained!r}, not {backbone!r}")
    model = ImageClassifier(**arguments)
    load_weights(model, weights)
    transform = cfg.test_dataloader.dataset.transform.to_dict()
    if "size" in options:
        transform["size"] = options.pop("size")
    own = {
        "classes": classes_of(checkpoint_meta(weights) if meta is None else meta),
        "name": trained,
        **_of_task_model(model),
    }
    return Classifier(_Logits(model), transform, **{**own, **options})


class _Logits(nn.Module):
    """A task model as a map from normalised images to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, mode="tensor")


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
