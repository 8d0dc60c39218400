"""Predictions for whole volumes: from files to label maps on the files' own grids."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from zoo.data.volume_folder import VolumeCase
from zoo.data.volume_grid import Preparation
from zoo.data.volume_intensity import check_normalisation
from zoo.data.volumes import Volume, read_channels
from zoo.inference.pipeline import Predictor
from zoo.inference.recorded import checkpoint_meta, config_of, model_arguments, needs_weights
from zoo.medical.cases import find_cases
from zoo.medical.model import VolumeSegmenter
from zoo.medical.postprocess import keep_largest_components
from zoo.medical.results import VolumeResult, VolumeResults
from zoo.registry import did_you_mean

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
#: Options of a call that go to :meth:`zoo.medical.model.VolumeSegmenter.whole` where they are given.
_WINDOW_OPTIONS = ("window", "overlap", "weighting", "mirror_axes", "axis")
RESTORE = ("probabilities", "labels")


class VolumePredictor(Predictor[VolumeResult]):
    """A segmentation model with the preparation of its volumes.

    Args:
        model: the segmentation model.
        preparation: grid and intensities that the network gets, as in training; those of the files by default.
        label_ids: what files of labels call the classes; their indices by default.
        axis: which axis of a volume a 2-D network gets slices across; the model's own by default.
        classes: names, background first.
        name: of the model.
        device, amp, compile: see :class:`zoo.inference.pipeline.Predictor`.

    Raises:
        ValueError: as many names, ids or normalisations as classes (channels) are needed.
    """

    task = "medical"
    #: ``window``, ``overlap``, ``weighting``, ``mirror_axes``, ``axis``: see
    #: :func:`zoo.medical.sliding.sliding_window`; the model's own by default.
    #: ``probabilities``: keep the softmax as well. ``largest_component``: of each class (True) or of these class names
    #: only the largest connected part. ``restore``: a result on another grid than the file's is brought back by linear
    #: interpolation of the probabilities, or of each class's share of the label map, which needs less memory.
    #: ``nan``, ``allow_missing_affine``: see :func:`zoo.data.volumes.read_volume`. ``progress``: called with (volume,
    #: windows done, windows in all).
    options: ClassVar[dict[str, Any]] = {
        "window": None, "overlap": None, "weighting": None, "mirror_axes": None, "axis": None,
        "probabilities": False, "largest_component": False, "restore": "probabilities", "nan": None,
        "allow_missing_affine": False, "progress": None,
    }  # fmt: skip

    def __init__(
        self,
        model: VolumeSegmenter,
        preparation: Preparation | Mapping[str, Any] | None = None,
        *,
        label_ids: Sequence[int] | None = None,
        axis: int | None = None,
        classes: Sequence[str] | None = None,
        name: str = "",
        device: str | torch.device = "auto",
        amp: bool | str | torch.dtype = False,
        compile: bool | dict[str, Any] = False,
    ):
        super().__init__(model, classes=classes, device=device, amp=amp)
        self.model, self.name, self.axis = model, name, axis
        if compile:
            model.compile_network(**(compile if isinstance(compile, dict) else {}))
        if isinstance(preparation, Mapping):
            preparation = Preparation.from_dict(dict(preparation))
        self.preparation = preparation or Preparation()
        self.channels = int(model.network.in_chans)
        check_normalisation(self.preparation.normalisation, self.channels)
        count = model.num_classes
        self.names = ["background", *map(str, range(1, count))] if self.classes is None else self.classes
        self.label_ids = list(range(count)) if label_ids is None else [int(i) for i in label_ids]
        for what, given in (("classes", self.names), ("label_ids", self.label_ids)):
            if len(given) != count:
                raise ValueError(f"{what}={given}: the model has {count} classes, the background among them")

    def check_options(self, **options: Any) -> None:
        if options["restore"] not in RESTORE:
            raise ValueError(f"restore={options['restore']!r}: accepted are {', '.join(RESTORE)}")
        self._cleaned(options["largest_component"])

    def __call__(  # type: ignore[override]
        self,
        images: Any,
        *,
        batch_size: int | None = None,
        stream: bool = False,
        on_error: str = "raise",
        keep_images: bool | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> VolumeResults | Iterator[VolumeResult]:
        """Predict, one result a case, in order; one volume is in memory at a time.

        Args:
            images: volumes, see :func:`zoo.medical.cases.find_cases`.
            batch_size: windows (slices of a 2-D network) the network gets at once; the model's own by default.
            stream: give an iterator, instead of a list.
            on_error: a volume that cannot be read raises an error that names it ("raise"), is left out and logged
                ("skip"), or gives a result with ``error`` ("report").
            keep_images: keep the first channel in the result; by default it is read again where it is wanted.
            workers: of no effect: volumes are read one after the other.
            **options: see :attr:`options`.

        Raises:
            ValueError, TypeError: an option is unknown or out of range.
            VolumeReadError: a volume cannot be used (``on_error="raise"``).
            FileNotFoundError: a path does not exist.
            RuntimeError: the network failed; the message names the volume.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: accepted are 1 and above")
        if on_error not in ("raise", "skip", "report"):
            raise ValueError(f"on_error={on_error!r}: accepted are 'raise', 'skip' and 'report'")
        for name in options:
            if name not in self.options:
                known = sorted(self.options)
                hint = did_you_mean(name, known) or f"; accepted are {', '.join(known)}"
                raise TypeError(f"{type(self).__name__} has no option {name!r}{hint}")
        full = {**self.options, **options, "batch": batch_size}
        self.check_options(**full)
        results = self._each(find_cases(images, self.channels), full, on_error, bool(keep_images))
        return results if stream else VolumeResults(results)

    def _each(
        self, cases: Sequence[VolumeCase], options: Mapping[str, Any], on_error: str, keep: bool
    ) -> Iterator[VolumeResult]:
        for case in cases:
            try:
                original = self._load_case(case, options)
            except (ValueError, OSError) as error:
                if on_error == "raise":
                    raise
                if on_error == "skip":
                    logger.warning("skipped: %s", error)
                else:
                    yield VolumeResult(case.images[0], error=str(error), case=case.name)
                continue
            result = self.predict_volume(original, **options, case=case.name)
            result._image = original.data[0] if keep else None
            result._read = partial(_first_channel, self, case, options)
            yield result

    def _load_case(self, case: VolumeCase, options: Mapping[str, Any]) -> Volume:
        return read_channels(
            case.images, self.channels, nan=options["nan"], allow_missing_affine=options["allow_missing_affine"]
        )

    def predict_volume(
        self, volume: Volume, *, case: str = "", batch: int | None = None, **options: Any
    ) -> VolumeResult:
        """The label map of one volume in memory.

        Args:
            volume: with ``data`` float32 ``[C, X, Y, Z]`` as in its file.
            case: name of the case.
            batch: windows the network gets at once.
            **options: see :attr:`options`.

        Raises:
            ValueError: another number of channels or axes, voxels that are no finite numbers, or a wrong option.
            RuntimeError: the network failed; the message names the volume.
        """
        options = {**self.options, **options}
        self.check_options(**options)
        where = case or volume.path or "the volume"
        if volume.data.ndim != 4 or len(volume.data) != self.channels:
            raise ValueError(f"{where} has shape {volume.data.shape}; accepted is [{self.channels}, X, Y, Z]")
        if not np.isfinite(volume.data).all():
            raise ValueError(f"{where} has voxels that are NaN or infinite")
        prepared = self.preparation.image(volume)
        labels, probabilities = self._labels(prepared, volume, where, batch, options)
        kept = self._cleaned(options["largest_component"])
        if kept:
            labels = keep_largest_components(labels, kept)
        return VolumeResult(
            volume.path or where,
            case=case,
            labels=labels,
            names=list(self.names),
            label_ids=list(self.label_ids),
            spacing=volume.spacing,
            probabilities=probabilities,
            _affine=volume.affine,
            _header=volume.header,
        )

    def _labels(
        self, prepared: Volume, original: Volume, where: str, batch: int | None, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Class indices on the original grid, and probabilities where they are asked for."""
        resampled = sorted(prepared.shape) != sorted(original.shape)
        soft = options["probabilities"] or (resampled and options["restore"] == "probabilities")
        found = self._whole(prepared, "probabilities" if soft else "labels", where, batch, options)
        if not soft:
            return np.ascontiguousarray(self.preparation.restore(found, original)), None
        kind = np.uint8 if len(found) <= 256 else np.int16
        labels, best = np.zeros(original.shape, kind), None
        kept = np.empty((len(found), *original.shape), np.float32) if options["probabilities"] else None
        for k, share in enumerate(found):  # class by class: the file's grid may be much finer than the network's
            share = self.preparation.restore(share, original)
            if kept is not None:
                kept[k] = share
            if best is None:
                best = np.array(share)
                continue
            better = share > best
            labels[better] = k
            np.maximum(best, share, out=best)
        return labels, kept

    def _whole(
        self, prepared: Volume, output: str, where: str, batch: int | None, options: Mapping[str, Any]
    ) -> np.ndarray:
        changes = {k: options[k] for k in _WINDOW_OPTIONS if options[k] is not None}
        if "axis" not in changes and self.axis is not None and self.model.dims == 2:
            changes["axis"] = self.axis
        if batch is not None:
            changes["batch"] = batch
        progress = options["progress"]
        try:
            x = self.model.data_preprocessor({"inputs": [torch.from_numpy(prepared.data)]})["inputs"]  # [1, C, X, Y, Z]
            with torch.autocast(self.device.type, dtype=self.amp or torch.bfloat16, enabled=self.amp is not None):
                found = self.model.whole(
                    x, progress=None if progress is None else partial(progress, where), output=output, **changes
                )
        except (ValueError, TypeError):
            raise
        except Exception as error:
            raise RuntimeError(f"the network failed on {where}: {type(error).__name__}: {error}") from error
        return found[0].cpu().numpy()

    def _cleaned(self, wanted: Any) -> list[int]:
        """Indices of the classes whose largest part alone stays."""
        if isinstance(wanted, bool):
            return list(range(1, len(self.names))) if wanted else []
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        unknown = [n for n in wanted if n not in self.names[1:]]
        if unknown:
            raise ValueError(f"largest_component: there is no class {unknown[0]!r}; accepted are {self.names[1:]}")
        return [self.names.index(n) for n in wanted]

    def for_export(self) -> Predictor[VolumeResult]:
        """Refused: exported files take images.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a model of volumes is not exported: an exported file takes RGB images, and windows, spacing and "
            "normalisation stay in Python"
        )


def _first_channel(predictor: VolumePredictor, case: VolumeCase, options: Mapping[str, Any]) -> np.ndarray:
    return predictor._load_case(case, options).data[0]


def from_export(network: Any, facts: dict[str, Any], **options: Any) -> VolumePredictor:
    """Refused: models of volumes are not exported.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"the exported file of {facts.get('model')!r} is of a task that has no exported files")


def load_predictor(model: Any, weights: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """A :class:`VolumePredictor` of a model's name, a config or a model; a
    :class:`~zoo.medical.bag_inference.BagPredictor` of one for bags of patches.

    Grid, intensities, classes and ids are those that the checkpoint records, else those of the config's test data;
    ``preparation``, ``classes`` and ``label_ids`` among the options go before both.

    Raises:
        UnknownNameError, FileNotFoundError: no such model or config.
        CheckpointError, WeightsUnavailableError: the weights cannot be had or do not fit.
        ValueError: a config without weights, or one of another task.
    """
    from zoo.registry import MODELS
    from zoo.weights.load import load_weights

    _refuse_size(options)
    from zoo.medical.bag_inference import is_bag_model, load_bag_predictor

    if is_bag_model(model):
        return load_bag_predictor(model, weights, **options)
    if isinstance(model, str) and model in MODELS and MODELS.entry(model).meta.get("kind") == "classification":
        raise LookupError(
            f"{model} is a classifier, for which there is no prediction of files: `zoo test` evaluates it, and "
            f"zoo.medical.volume_classifier.VolumeClassifier gives its scores in Python"
        )
    if isinstance(model, nn.Module):
        wrapped = model if isinstance(model, VolumeSegmenter) else VolumeSegmenter(model)
        meta = {} if weights is None else checkpoint_meta(weights)
        if weights is not None:
            load_weights(wrapped, weights)
        return VolumePredictor(wrapped, **{**_recorded(meta), **options})
    if str(model) not in MODELS:
        from zoo.engine.config import load_config, require_known

        require_known(model)
        weights = needs_weights(model, weights)
        return _of_config(load_config(model), weights, checkpoint_meta(weights), options)
    from zoo.weights.hub import resolve_weights

    weights = resolve_weights(str(model)) if weights is None else weights
    meta = checkpoint_meta(weights)
    recorded = config_of(meta)
    if recorded is not None:  # trained here: its own classes, windows and preparation
        return _of_config(recorded, weights, meta, {"name": str(model), **options})
    segmenter = VolumeSegmenter(str(model))
    load_weights(segmenter, weights)
    own = _recorded(meta)
    if "preparation" not in own and "preparation" not in options:
        own["preparation"] = Preparation(normalisation="zscore")
        logger.warning(
            "%s does not say how volumes are normalised: each is brought to mean 0 and deviation 1, at its own spacing",
            weights,
        )
    return VolumePredictor(segmenter, **{"name": str(model), **own, **options})


def untrained_predictor(
    model: str | os.PathLike[str], *, num_classes: int | None = None, **options: Any
) -> VolumePredictor:
    """A :class:`VolumePredictor` as initialised with seed 0, on the CPU."""
    from zoo.registry import MODELS

    _refuse_size(options)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        if str(model) in MODELS:
            own = {"preparation": Preparation(normalisation="zscore"), "name": str(model), "device": "cpu"}
            return VolumePredictor(VolumeSegmenter(str(model), num_classes), **{**own, **options})
        from zoo.engine.config import load_config, require_known

        require_known(os.fspath(model))
        if num_classes is not None:
            raise ValueError(f"num_classes={num_classes}: a config has its own number")
        cfg = load_config(os.fspath(model))
        return VolumePredictor(_segmenter(cfg), **{**_of_data(cfg), "device": "cpu", **options})


def _refuse_size(options: dict[str, Any]) -> None:
    if options.pop("size", None) is not None:
        raise ValueError("size is of images; of volumes set window")


def _of_config(cfg: Any, weights: Any, meta: Mapping[str, Any], options: Mapping[str, Any]) -> VolumePredictor:
    from zoo.weights.load import load_weights

    model = _segmenter(cfg)
    load_weights(model, weights)
    return VolumePredictor(model, **{**_of_data(cfg), **_recorded(meta), **options})


def _segmenter(cfg: Any) -> VolumeSegmenter:
    kind = cfg.model.get("type")
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if name.rpartition(".")[2] != VolumeSegmenter.__name__:
        raise ValueError(f"the config's model is {name}, which does not segment volumes")
    return VolumeSegmenter(**model_arguments(cfg))


def _recorded(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the predictor that a checkpoint records of the data that the model was trained on."""
    data = meta.get("dataset_meta") or {}
    found: dict[str, Any] = {k: list(data[k]) for k in ("classes", "label_ids") if data.get(k)}
    if data.get("preparation"):
        found["preparation"] = Preparation.from_dict(dict(data["preparation"]))
    if data.get("axis") is not None:
        found["axis"] = int(data["axis"])
    return found


def _of_data(cfg: Any) -> dict[str, Any]:
    """What of the preparation a config's test data names."""
    spec = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    given = {k: spec.get(k) for k in ("spacing", "orientation")}
    return {"preparation": Preparation.from_dict({**given, "normalisation": spec.get("normalisation", "zscore")})}
