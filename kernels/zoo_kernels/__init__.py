"""Shared attention operators: one pure function a folder, on CPU and GPU, needing torch only.

Each operator has a ``reference`` (the equation), an ``eager`` (fast PyTorch) and, where one exists, a ``triton``
backend. :func:`zoo_kernels.dispatch.explain` says which of them would run, and why not the others.
"""

import importlib
import pkgutil

__all__ = ["explain", "operators"]


def operators() -> list[str]:
    """Names of the operators, in alphabetical order; each is importable as ``zoo_kernels.<name>.<name>``."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)


def __getattr__(name: str):
    # ``zoo_kernels.window_attention`` is the package; the function of the same name lives inside it.
    if name == "explain":
        from zoo_kernels.dispatch import explain

        return explain
    if not name.startswith("_") and name in operators():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the operators are {', '.join(operators())}")
