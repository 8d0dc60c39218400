"""Export of a model: captured, written under a temporary name, compared with PyTorch, and only then given its name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.export import facts as file_facts
from zoo.export.capture import DYNAMIC, ExportError, capture, compiler, quiet, reason
from zoo.export.runtime import Exported, load_exported
from zoo.inference.pipeline import Predictor

FORMATS = ("onnx", "torch-export", "aoti")
_SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
#: Largest relative error against PyTorch in float32.
TOLERANCE = 1e-4
#: One protobuf message, which an ONNX file is, holds less than 2 GiB.
_ONNX_LIMIT = 2**31 - 2**20


@dataclass
class ExportReport:
    """What :func:`export_model` did.

    Attributes:
        path, format: of the file.
        dynamic: what is left open: "all" (batch and size), "batch" or "none"; may be less than was asked for.
        multiple: what height and width are multiples of where the size is open.
        checked: (shape, relative error against PyTorch) of each input that was compared.
        notes: what could not be had, and why.
        facts: what the file says about itself.
    """

    path: str
    format: str
    dynamic: str
    multiple: int
    checked: list[tuple[tuple[int, ...], float]]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def max_error(self) -> float:
        """The largest relative error against PyTorch."""
        return max(e for _, e in self.checked)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "max_error": self.max_error}

    def summary(self) -> str:
        """A few lines for people."""
        size = " x ".join(str(s) for s in self.facts["size"])
        left_open = {
            "all": f"any number of images of any size in multiples of {self.multiple}",
            "batch": f"any number of images of {size}",
            "none": f"{self.facts['batch']} image(s) of {size}",
        }[self.dynamic]
        lines = [f"{self.path}: {self.format}, for {left_open}"]
        lines.append(f"largest relative error against PyTorch on {len(self.checked)} inputs: {self.max_error:.1e}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def export_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] | None = None,
    dynamic: str = "batch",
    batch: int = 1,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Export a model to a file for another runtime.

    The file takes normalised images ``[B, 3, h, w]`` float32 ("images") and gives what the network gives (logits for a
    classifier); normalisation, size, classes and name are in its metadata. Before it gets its name its outputs are
    compared with PyTorch's on three inputs, of different sizes as far as sizes are open.

    Args:
        model: what :func:`zoo.inference.load.load_predictor` takes, or a predictor.
        path: ``.onnx`` or ``.pt2``.
        format: one of :data:`FORMATS`; by the ending of ``path`` by default (``.pt2``: "torch-export").
        weights: checkpoint file; for a name without it, the weights that the index knows.
        size: height and width in pixels; the model's own by default.
        dynamic: "all", "batch" or "none"; where the model and the format do not allow one, the next is taken, and the
            report says why.
        batch: number of images where it is fixed.
        tolerance: largest relative error against PyTorch.

    Raises:
        ExportError: it cannot be exported, or the file computes something else; nothing is left at ``path`` then.
        ValueError: a wrong argument.
    """
    path = Path(path)
    format = format or next((f for f in FORMATS if _SUFFIX[f] == path.suffix), None)
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: accepted are {', '.join(FORMATS)}")
    if path.suffix != _SUFFIX[format]:
        raise ValueError(f"{path}: a file of the format {format!r} has the ending {_SUFFIX[format]}")
    if dynamic not in DYNAMIC:
        raise ValueError(f"dynamic={dynamic!r}: accepted are {', '.join(DYNAMIC)}")
    if format == "aoti" and compiler() is None:
        raise ExportError("AOTInductor compiles C++, and there is no compiler here: install g++ or clang, or set CXX")
    predictor = _predictor(model, weights, size).for_export()
    network = predictor.export_network()
    if not isinstance(network, nn.Module):
        raise ValueError("the model is an exported file already; export from its weights")
    if format == "onnx" and sum(p.numel() * p.element_size() for p in network.state_dict().values()) > _ONNX_LIMIT:
        raise ExportError("the weights have more than 2 GiB, which one ONNX file cannot hold; use torch-export or aoti")
    notes: list[str] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = DYNAMIC[DYNAMIC.index(dynamic) :]
    for level in levels:
        try:
            return _write(predictor, network, path, format, level, batch, tolerance, notes)
        except ExportError as error:
            if level == levels[-1]:
                raise
            what = "size" if level == "all" else "number of images"
            notes.append(f"the {what} could not be left open: {error}")
    raise AssertionError("not reached")


def _predictor(model: Any, weights: Any, size: Any) -> Any:
    from zoo.inference.load import load_predictor

    if isinstance(model, Predictor):
        if weights is not None or size is not None:
            raise ValueError("a ready predictor has its weights and size")
        return model
    options = {} if size is None else {"size": size}
    return load_predictor(model, weights, device="cpu", **options)


def _write(
    predictor: Any,
    network: nn.Module,
    path: Path,
    format: str,
    dynamic: str,
    batch: int,
    tolerance: float,
    notes: list[str],
) -> ExportReport:
    size = file_facts.image_size(predictor)
    network = network.cpu().eval()
    program, multiple = capture(network, size, dynamic, batch)
    facts = file_facts.facts_of(predictor, format, dynamic, multiple, batch)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        file = Path(folder) / path.name
        try:
            with quiet():
                _WRITERS[format](program, file, facts)
        except ExportError:
            raise
        except Exception as error:  # each of the three exporters has its own kinds of errors
            raise ExportError(f"{format} with dynamic={dynamic!r}: {reason(error)}") from error
        exported = load_exported(file, device="cpu")
        checked = compare(exported, network, check_shapes(facts), tolerance, predictor.difference)
        os.replace(file, path)
    return ExportReport(str(path), format, dynamic, multiple, checked, notes, facts)


def _write_onnx(program: torch.export.ExportedProgram, file: Path, facts: dict[str, Any]) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError("ONNX needs onnx and onnxscript: pip install 'attnzoo[export]'") from error
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # On its way to ONNX attention becomes plain products, whose output has another memory layout than PyTorch's CPU
    # kernel. So it must be plain from the first step on, and views of it must be reshapes, which fit any layout.
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    program.graph_module.recompile()
    with sdpa_kernel(SDPBackend.MATH):
        onnx_program = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=["images"], external_data=False
        )
    assert onnx_program is not None
    onnx_program.model.metadata_props[file_facts.KEY] = file_facts.dump(facts)
    onnx_program.save(str(file))


def _write_program(program: torch.export.ExportedProgram, file: Path, facts: dict[str, Any]) -> None:
    torch.export.save(program, str(file))
    file_facts.add_to_archive(file, facts)


def _write_aoti(program: torch.export.ExportedProgram, file: Path, facts: dict[str, Any]) -> None:
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        aoti_compile_and_package(program, package_path=str(file))
    file_facts.add_to_archive(file, facts)


_WRITERS = {"onnx": _write_onnx, "torch-export": _write_program, "aoti": _write_aoti}


def check_shapes(facts: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of three inputs to compare with, different where the file leaves something open."""
    height, width = facts["size"]
    if facts["dynamic"] == "none":
        return [(facts["batch"], 3, height, width)] * 3
    if facts["dynamic"] == "batch":
        return [(n, 3, height, width) for n in (1, 2, 3)]
    unit = facts["multiple"]
    height, width = (max(1, round(s / unit)) * unit for s in (height, width))
    return [(1, 3, height, width), (2, 3, height + unit, width), (1, 3, height, width + 2 * unit)]


@torch.no_grad()
def compare(
    exported: Exported,
    network: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    tolerance: float,
    difference: Callable[[Sequence[Tensor], Sequence[Tensor]], float] = Predictor.difference,
) -> list[tuple[tuple[int, ...], float]]:
    """Relative errors of an exported file against a network, an input a shape.

    Raises:
        ExportError: one is above ``tolerance`` or not finite, or the shapes of the outputs differ.
    """
    generator = torch.Generator().manual_seed(0)
    checked: list[tuple[tuple[int, ...], float]] = []
    for shape in shapes:
        images = torch.randn(shape, generator=generator)
        expected = _tensors(network(images))
        try:
            found = _tensors(exported(images))
        except Exception as failure:  # onnxruntime's, torch's
            raise ExportError(f"the exported file fails on images {shape}: {reason(failure)}") from failure
        if [f.shape for f in found] != [e.shape for e in expected]:
            raise ExportError(f"the exported file gives other shapes than PyTorch on images {shape}")
        error = difference([f.cpu() for f in found], expected)
        if not error <= tolerance:
            raise ExportError(
                f"the exported file differs from PyTorch on images {shape}: relative error {error:.1e}, accepted is "
                f"{tolerance:.0e}"
            )
        checked.append((tuple(shape), error))
    return checked


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
