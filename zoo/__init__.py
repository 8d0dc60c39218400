"""attnzoo: backbones, mixers and heads of computer vision, assembled by name or from config files.

>>> import zoo
>>> model = zoo.create_model("davit_tiny", num_classes=10)
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["create_model", "list_mixers", "list_models", "load_weights", "predict"]

if TYPE_CHECKING:
    from zoo.api import create_model, list_mixers, list_models, load_weights, predict


def __getattr__(name: str):
    # Importing zoo is free: torch and timm load with the first call.
    if name in __all__:
        return getattr(import_module("zoo.api"), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
