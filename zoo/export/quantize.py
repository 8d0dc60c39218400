"""ONNX in int8 by onnxruntime's static quantisation, with what it costs in accuracy."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.export import facts as file_facts
from zoo.export.capture import ExportError, quiet, reason
from zoo.export.model import export_model
from zoo.export.runtime import load_exported

#: Images beyond those for calibration that accuracy is measured on, at most.
_EVALUATED = 1000
Image = Callable[[], np.ndarray]


@dataclass
class QuantizationReport:
    """What int8 costs, measured on images that did not calibrate it.

    Attributes:
        path: of the int8 file.
        calibrated_on, evaluated_on: numbers of images.
        float_accuracy, int8_accuracy: top-1 in percent; None where the images have no labels of the model's classes.
        agreement: share of images in percent for which both name the same class.
        float_bytes, int8_bytes: sizes of the files.
    """

    path: str
    calibrated_on: int
    evaluated_on: int
    float_accuracy: float | None
    int8_accuracy: float | None
    agreement: float
    float_bytes: int
    int8_bytes: int

    @property
    def change(self) -> float | None:
        """Change of accuracy in percentage points; None without labels."""
        if self.float_accuracy is None or self.int8_accuracy is None:
            return None
        return self.int8_accuracy - self.float_accuracy

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "change": self.change}

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.path}: int8, {self.int8_bytes / 1e6:.1f} MB instead of {self.float_bytes / 1e6:.1f} MB, calibrated "
            f"on {self.calibrated_on} images"
        ]
        if self.change is not None:
            lines.append(
                f"top-1 on {self.evaluated_on} other images: {self.int8_accuracy:.2f} % instead of "
                f"{self.float_accuracy:.2f} % ({self.change:+.2f} points)"
            )
        lines.append(f"the same class as in float32 for {self.agreement:.2f} % of {self.evaluated_on} images")
        return "\n".join(lines)


def export_int8(
    predictor: Any,
    path: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    dynamic: str = "batch",
    batch: int = 1,
    images: int = 128,
    max_drop: float | None = None,
) -> QuantizationReport:
    """Export a classifier to ONNX, quantise it and measure what that changes.

    Args:
        predictor: a :class:`zoo.classification.inference.Classifier`.
        path: ``.onnx`` file to write.
        data: "digits", or a folder of images; where its sub-folders have the names of the model's classes they are
            labels.
        dynamic, batch: see :func:`zoo.export.model.export_model`.
        images: how many images calibrate; they are drawn evenly from all, and others measure.
        max_drop: percentage points of accuracy (of agreement, without labels) that may be lost.

    Raises:
        ExportError: the model cannot be exported or quantised, or loses more than ``max_drop``; nothing is left at
            ``path``.
        ValueError: too few images, or a wrong argument.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: an int8 file has the ending .onnx")
    if predictor.task != "classification":
        raise ValueError(f"task={predictor.task!r}: int8 is measured for classifiers")
    calibration, evaluation = split(*dataset(data, predictor.classes), images)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        plain, small = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export_model(predictor, plain, format="onnx", dynamic=dynamic, batch=batch)
        quantize(plain, small, [image() for image, _ in calibration], predictor)
        report = _measure(plain, small, evaluation, path, len(calibration))
        lost = 100 - report.agreement if report.change is None else -report.change
        if max_drop is not None and lost > max_drop:
            raise ExportError(f"int8 loses {lost:.2f} points, more than max_drop={max_drop:g}; {path} was not written")
        os.replace(small, path)
    return report


def quantize(
    source: str | os.PathLike[str], out: str | os.PathLike[str], images: Sequence[np.ndarray], predictor: Any
) -> None:
    """Quantise an ONNX file that ``zoo export`` wrote: weights to int8 a channel, activations to uint8.

    Args:
        source: the float32 file.
        out: file to write.
        images: RGB uint8 ``[H, W, 3]``, from whose activations the ranges are taken.
        predictor: prepares them.

    Raises:
        ExportError: onnxruntime cannot quantise it.
        ImportError: onnxruntime or onnx is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ImportError("int8 needs onnx and onnxruntime: pip install 'attnzoo[export]'") from error
    exported = load_exported(source, device="cpu")
    count = exported.facts["batch"] if exported.facts["dynamic"] == "none" else 1

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(images, count, predictor)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory(dir=Path(out).parent) as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        try:
            with quiet():
                # Shapes come from the exporter; onnxruntime's symbolic inference knows fewer operators.
                quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
                quantize_static(
                    prepared,
                    str(out),
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    activation_type=QuantType.QUInt8,
                    op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                )
        except Exception as error:  # onnxruntime raises whatever its passes run into
            raise ExportError(f"onnxruntime cannot quantise {source}: {reason(error)}") from error
    model = onnx.load(str(out))
    facts = {**exported.facts, "int8": True}
    for entry in list(model.metadata_props):
        model.metadata_props.remove(entry)
    model.metadata_props.add(key=file_facts.KEY, value=file_facts.dump(facts))
    onnx.save(model, str(out))


def _batches(images: Sequence[np.ndarray], count: int, predictor: Any) -> Iterator[np.ndarray]:
    """Normalised batches ``[count, 3, h, w]``; what is left over at the end is not used."""
    for start in range(0, len(images) - count + 1, count):
        pixels = np.stack([predictor.prepare(i)[0] for i in images[start : start + count]])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        yield ((x - predictor.mean) / predictor.std).numpy()


def dataset(data: str | os.PathLike[str], classes: Sequence[str] | None) -> tuple[list[Image], list[int] | None]:
    """Images to be loaded, and their labels among ``classes`` where the data has such.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
    """
    if str(data) == "digits":
        from zoo.data.digits import Digits

        digits = Digits("test", size=32)
        images: list[Image] = [lambda i=i: digits.load_image(i) for i in range(len(digits))]  # type: ignore[misc]
        same = classes is not None and list(classes) == [str(c) for c in digits.classes]
        return images, [int(x) for x in digits.labels] if same else None
    from zoo.data.loading import read_image
    from zoo.inference.sources import find_files

    files = find_files(os.fspath(data))
    images = [lambda f=f: read_image(f) for f in files]  # type: ignore[misc]
    named = {c: i for i, c in enumerate(classes or ())}
    labels = [named.get(f.parent.name) for f in files]
    return images, None if None in labels else [x for x in labels if x is not None]


def split(
    images: Sequence[Image], labels: Sequence[int] | None, calibrate: int
) -> tuple[list[tuple[Image, int | None]], list[tuple[Image, int | None]]]:
    """Images that calibrate, spread evenly over all, and others that measure.

    Raises:
        ValueError: there are none left to measure with.
    """
    if calibrate < 1:
        raise ValueError(f"images={calibrate}: accepted are 1 and above")
    pairs: list[tuple[Image, int | None]] = list(zip(images, labels if labels is not None else [None] * len(images)))
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} image is too few: some calibrate, others measure")
    calibrate = min(calibrate, len(pairs) // 2)
    chosen = set(np.linspace(0, len(pairs) - 1, calibrate).round().astype(int).tolist())
    rest = [p for i, p in enumerate(pairs) if i not in chosen]
    keep = np.linspace(0, len(rest) - 1, min(_EVALUATED, len(rest))).round().astype(int)
    return [p for i, p in enumerate(pairs) if i in chosen], [rest[i] for i in keep]


def _measure(
    plain: Path, small: Path, data: Sequence[tuple[Image, int | None]], path: Path, calibrated: int
) -> QuantizationReport:
    from zoo.inference.load import load_predictor

    said = []
    for file in (plain, small):
        predictor = load_predictor(file)
        stream = predictor((image() for image, _ in data), stream=True, batch_size=16)
        said.append(np.array([r.label for r in stream]))
    truth = None if any(label is None for _, label in data) else np.array([label for _, label in data])

    def percent(hits: np.ndarray) -> float:
        return round(100 * float(hits.mean()), 4)

    return QuantizationReport(
        str(path),
        calibrated_on=calibrated,
        evaluated_on=len(data),
        float_accuracy=None if truth is None else percent(said[0] == truth),
        int8_accuracy=None if truth is None else percent(said[1] == truth),
        agreement=percent(said[0] == said[1]),
        float_bytes=plain.stat().st_size,
        int8_bytes=small.stat().st_size,
    )
