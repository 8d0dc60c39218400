"""Models for other runtimes: ONNX, ``torch.export`` and AOTInductor files that are compared with PyTorch when written.

>>> from zoo.export import export_model
>>> report = export_model("davit_tiny", "davit_tiny.onnx", weights="davit_tiny.safetensors")
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["ExportError", "ExportReport", "export_model", "load_exported", "quantize"]

_HOMES = {
    "ExportError": "zoo.export.capture",
    "ExportReport": "zoo.export.model",
    "export_model": "zoo.export.model",
    "load_exported": "zoo.export.runtime",
    "quantize": "zoo.export.quantize",
}

if TYPE_CHECKING:
    from zoo.export.capture import ExportError
    from zoo.export.model import ExportReport, export_model
    from zoo.export.quantize import quantize
    from zoo.export.runtime import load_exported


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoo.export' has no attribute {name!r}")
