"""Predictions of a bag's classifier: class probabilities, and attention over the places of the patches."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from zoo.data.bags import BAG_ENDINGS, Bag, is_bag_file, read_bag
from zoo.files import save_atomically
from zoo.inference.pipeline import Predictor
from zoo.inference.recorded import checkpoint_meta, classes_of, config_of, model_arguments, needs_weights
from zoo.inference.results import Result, Results
from zoo.medical.bag_classifier import BagClassifier, attention_of
from zoo.registry import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


@dataclass
class BagResult(Result):
    """What a classifier says of one slide.

    Attributes:
        label: index of the best class; -1 where there is an ``error``.
        name: its name.
        score: its probability.
        scores: probabilities of all classes.
        names: of the classes.
        attention: float32 ``[N]``, its sum is one.
        coords: float32 ``[N, 2]``, x and y of the patches in pixels of the slide.
    """

    label: int = -1
    name: str = ""
    score: float = 0.0
    scores: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    attention: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    coords: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32), repr=False)

    def body(self) -> dict[str, Any]:
        best = np.argsort(-self.attention, kind="stable")[:10]
        return {
            "label": self.label,
            "name": self.name,
            "score": self.score,
            "scores": dict(zip(self.names, self.scores)),
            "patches": len(self.attention),
            "most_attended": [
                {"x": float(self.coords[i, 0]), "y": float(self.coords[i, 1]), "attention": float(self.attention[i])}
                for i in best
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a class, best first: ``label``, ``name``, ``score``."""
        order = np.argsort([-s for s in self.scores], kind="stable")
        return [{"label": int(i), "name": self.names[i], "score": self.scores[i]} for i in order]

    def coco_entries(self, image_id: int) -> list[dict[str, Any]]:
        """One entry, without a box."""
        return [{"image_id": image_id, "category_id": self.label, "score": self.score}]

    def draw(self) -> Image:
        """The heat map: attention over the places of the patches."""
        import PIL.Image

        from zoo.viz.slides import draw_slide

        title = f"{Path(self.source).name}: {self.name} {self.score:.3f}"
        figure = draw_slide(self.attention, self.coords, title=title)
        figure.set_dpi(120)
        canvas: Any = figure.canvas  # Agg's
        canvas.draw()
        return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())

    def save_attention(self, path: str | os.PathLike[str]) -> Path:
        """Write x, y and attention of every patch as CSV, atomically."""
        lines = ["x,y,attention", *(f"{x:g},{y:g},{a:.9g}" for (x, y), a in zip(self.coords, self.attention))]
        return save_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))


class BagPredictor(Predictor[BagResult]):
    """A bag's classifier.

    Args:
        model: the classifier.
        classes: names; numbers where None.
        name: of the model.
        device, amp: see :class:`zoo.inference.pipeline.Predictor`.
        compile: compile the head; a dict has arguments of ``torch.compile``.
    """

    task = "medical"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        model: BagClassifier,
        *,
        classes: Sequence[str] | None = None,
        name: str = "",
        device: str | torch.device = "auto",
        amp: bool | str | torch.dtype = False,
        compile: bool | dict[str, Any] = False,
    ):
        super().__init__(model, classes=classes, device=device, amp=amp)
        if classes is not None and len(classes) != model.num_classes:
            raise ValueError(f"classes={list(classes)}: the model has {model.num_classes} classes")
        self.model, self.name = model, name
        if compile:
            model.compile_network(**(compile if isinstance(compile, dict) else {}))

    def __call__(  # type: ignore[override]
        self, images: Any, *, stream: bool = False, on_error: str = "raise", **options: Any
    ) -> Results[BagResult] | Iterator[BagResult]:
        """Predict, one result a bag, in order.

        Args:
            images: files of bags, folders of them, patterns, :class:`~zoo.data.bags.Bag`, or a list of these.
            stream: give an iterator, instead of a list.
            on_error: a bag that cannot be used raises ("raise"), is left out and logged ("skip"), or gives a result
                with ``error`` ("report").
            **options: ``batch_size``, ``workers`` and ``keep_images`` are accepted and of no effect.

        Raises:
            BagError, FileNotFoundError: a bag cannot be used (``on_error="raise"``).
            ValueError, TypeError: an option is unknown or out of range.
        """
        if on_error not in ("raise", "skip", "report"):
            raise ValueError(f"on_error={on_error!r}: accepted are 'raise', 'skip' and 'report'")
        known = ("batch_size", "workers", "keep_images")
        for option in options:
            if option not in known:
                raise TypeError(f"{type(self).__name__} has no option {option!r}{did_you_mean(option, known)}")
        results = self._each(find_bags(images), on_error)
        return results if stream else Results(results)

    def _each(self, bags: Sequence[Bag | Path], on_error: str) -> Iterator[BagResult]:
        for item in bags:
            try:
                bag = item if isinstance(item, Bag) else read_bag(item)
                self._check(bag)
            except (ValueError, FileNotFoundError) as error:
                if on_error == "raise":
                    raise
                if on_error == "skip":
                    logger.warning("skipped: %s", error)
                else:
                    yield BagResult(str(item), error=str(error))
                continue
            yield self.predict_bag(bag)

    def _check(self, bag: Bag) -> None:
        dim = self.model.head.in_dim
        if bag.features.shape[1] != dim:
            raise ValueError(f"{bag.path} has features of width {bag.features.shape[1]}, the model takes {dim}")

    @torch.inference_mode()
    def predict_bag(self, bag: Bag) -> BagResult:
        """The result of one bag."""
        x = torch.from_numpy(bag.features).to(self.device)
        with torch.autocast(self.device.type, dtype=self.amp or torch.bfloat16, enabled=self.amp is not None):
            output = self.model([x], mode="tensor")[0]
        scores = self.model.probabilities(output)
        label = int(scores.argmax())
        names = [self.class_name(i) for i in range(self.model.num_classes)]
        return BagResult(
            bag.path or "a bag",
            label=label,
            name=names[label],
            score=float(scores[label]),
            scores=scores.tolist(),
            names=names,
            attention=attention_of(output, label).cpu().numpy(),
            coords=bag.coords,
        )

    def for_export(self) -> Predictor[BagResult]:
        """Refused: exported files take images.

        Raises:
            ValueError: always.
        """
        raise ValueError("a model of bags is not exported: an exported file takes RGB images")


def find_bags(images: Any) -> list[Bag | Path]:
    """Bags of files, folders, patterns or lists of them, in the order given; those of a folder by name.

    Raises:
        FileNotFoundError: a path, or what a pattern stands for, does not exist.
        ValueError: a folder has no bags, or nothing was given.
    """
    if isinstance(images, Bag):
        return [images]
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if is_bag_file(p))
            if not found:
                raise ValueError(f"there are no bags ({', '.join(BAG_ENDINGS)}) in {path}")
            return list(found)
        if not path.exists() and glob.has_magic(str(path)):
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
            if not matches:
                raise FileNotFoundError(f"nothing matches {str(path)!r}")
            return list(matches)
        if not path.exists():
            raise FileNotFoundError(f"there is no bag {str(path)!r}")
        return [path]
    if not isinstance(images, Iterable):
        raise ValueError(f"{images!r} is no bag: accepted are files, folders, patterns and lists of them")
    listed = [bag for item in images for bag in find_bags(item)]
    if not listed:
        raise ValueError("no bags were given")
    return listed


def load_bag_predictor(model: Any, weights: str | os.PathLike[str] | None = None, **options: Any) -> BagPredictor:
    """A :class:`BagPredictor` of a head's name, a config or a model.

    Raises:
        UnknownNameError, FileNotFoundError: no such model or config.
        CheckpointError, WeightsUnavailableError: the weights cannot be had or do not fit.
        ValueError: a config without weights, or one of another task.
    """
    from zoo.registry import MODELS
    from zoo.weights.load import load_weights

    if isinstance(model, nn.Module):
        wrapped = model if isinstance(model, BagClassifier) else BagClassifier(model)
        if weights is not None:
            load_weights(wrapped, weights)
        meta = {} if weights is None else checkpoint_meta(weights)
        return BagPredictor(wrapped, **{"classes": classes_of(meta), **options})
    if str(model) in MODELS:
        from zoo.weights.hub import resolve_weights

        weights = resolve_weights(str(model)) if weights is None else weights
        meta = checkpoint_meta(weights)
        recorded = config_of(meta)
        built = _of_config(recorded) if recorded is not None else BagClassifier(str(model))
        options = {"name": str(model), **options}
    else:
        from zoo.engine.config import load_config, require_known

        require_known(model)
        weights = needs_weights(model, weights)
        built, meta = _of_config(load_config(model)), checkpoint_meta(weights)
    load_weights(built, weights)
    return BagPredictor(built, **{"classes": classes_of(meta), **options})


def _of_config(cfg: Any) -> BagClassifier:
    kind = cfg.model.get("type")
    if str(getattr(kind, "__name__", kind)).rpartition(".")[2] != BagClassifier.__name__:
        raise ValueError(f"the config's model is {kind}, not BagClassifier: bags are predicted by that alone")
    return BagClassifier(**model_arguments(cfg))


def is_bag_model(model: Any) -> bool:
    """Whether a model's name, a config or a module is of bags."""
    from zoo.registry import MODELS

    if isinstance(model, nn.Module):
        return isinstance(model, BagClassifier)
    if str(model) in MODELS:
        return MODELS.entry(str(model)).meta.get("kind") == "bags"
    from zoo.engine.config import load_config, require_known

    require_known(model)
    kind = load_config(model, check=False).model.get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2] == BagClassifier.__name__
