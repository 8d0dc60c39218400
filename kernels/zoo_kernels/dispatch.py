"""Which backend of an operator runs, and why not the others.

An operator is a folder with one module a backend. A backend module defines ``forward(*args, **kwargs)`` with the
operator's own signature (less ``backend``) and may define ``can_run(*args, **kwargs) -> str | None``: ``None`` if it
can serve the call, otherwise one sentence with the reason. The rule is the same for every operator:

* ``backend="auto"``: triton if the first tensor is on a CUDA device, the triton backend can run and no graph is being
  exported; otherwise eager.
* ``backend="<name>"``: that backend; if it cannot run, :class:`BackendError` with its reason.

No environment variable changes this. Tests may use :func:`use_backend`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

BACKENDS = ("reference", "eager", "triton")

_forced: str | None = None


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """One line of :func:`explain`: a backend, whether it is the one that runs, and the reason if it cannot run."""

    backend: str
    chosen: bool
    reason: str | None

    def __str__(self) -> str:
        state = "runs" if self.chosen else ("could run" if self.reason is None else f"cannot run: {self.reason}")
        return f"{self.backend}: {state}"


def constant_result(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function whose result torch.compile takes for a constant of the graph.

    What torch.compiler.assume_constant_result does; that one imports the compiler, which takes a second.
    """
    fn._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return fn


@constant_result
def _missing() -> str | None:
    return triton_missing()


class _Modules:
    """The backend modules of a folder that are loaded, as attributes."""


_LOADED: dict[str, _Modules] = {}


@constant_result
def _load(operator: str, backend: str) -> bool:
    # The compiler runs this while it traces, and then finds the attribute.
    if not hasattr(_LOADED[operator], backend):
        setattr(_LOADED[operator], backend, importlib.import_module(f"zoo_kernels.{operator}.{backend}"))
    return True


@lru_cache(maxsize=1)
def triton_missing() -> str | None:
    """Why Triton kernels cannot be used here, or None. Probes for the package and a driver without importing triton."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "torch finds no GPU driver"
    return None


def interpreting() -> bool:
    """Whether Triton's own interpreter is on (``TRITON_INTERPRET=1``), in which its kernels run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def exporting() -> bool:
    """Whether a graph is being made that leaves PyTorch (torch.export, ONNX), where a custom operator is unknown."""
    if hasattr(torch.compiler, "is_exporting"):  # since torch 2.7; before, only export without dynamo can be told
        is_exporting = torch.compiler.is_exporting()
    else:
        is_exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return is_exporting or torch.jit.is_tracing()


def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a CUDA device; 132 (H100, H200) for another, where kernels are only built."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def tensors(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of a call, in order."""
    return [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]


def _first_tensor(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The first tensor among the arguments of a call, or None (written for torch 2.6's compiler, too)."""
    for a in (*args, *kwargs.values()):
        if isinstance(a, torch.Tensor):
            return a
    return None


def triton_can_run(*args: Any, **kwargs: Any) -> str | None:
    """The part of ``can_run`` that all triton backends share: package, driver, device, dtype."""
    reason = _missing()
    if reason is not None:
        return reason
    for t in tensors(*args, **kwargs):
        if not t.is_cuda and not interpreting():
            return f"a tensor is on {t.device.type}, the kernels need CUDA"
        if t.is_floating_point() and t.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"dtype {t.dtype} is not float32, float16 or bfloat16"
    return None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


class Operator:
    """An operator's backends and the choice between them.

    Args:
        name: the operator's folder under ``zoo_kernels``.
        backends: those that the folder has.
        function: the function of each backend module that serves the call. A folder with several public functions
            has one Operator for each; ``<function>_can_run`` then stands where ``can_run`` does for ``forward``.
        autocast: under ``torch.autocast`` cast all float32 tensors of a call to the autocast dtype and run the backend
            outside autocast, so that what a backend keeps in float32 stays so. Without it autocast acts on the
            PyTorch calls of the backend.
    """

    def __init__(
        self,
        name: str,
        backends: tuple[str, ...] = ("reference", "eager"),
        function: str = "forward",
        *,
        autocast: bool = False,
    ):
        for b in backends:
            if b not in BACKENDS:
                raise ValueError(f"backends={backends!r} of operator {name}: {b!r} is not one of {BACKENDS}")
        self.name = name
        self.backends = backends
        self.function = function
        self.autocast = autocast
        self._loaded = _LOADED.setdefault(name, _Modules())
        # torch.compile cannot trace an import: the light backend is there before a first call that is compiled.
        if "eager" in backends and f"zoo_kernels.{name}" in sys.modules:
            self.load("eager")

    def load(self, backend: str) -> ModuleType:
        """Import a backend's module (triton only now, when it is used)."""
        _load(self.name, backend)
        return getattr(self._loaded, backend)

    def why_not(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        """The reason why ``backend`` cannot serve this call, or None if it can."""
        if backend not in self.backends:
            return f"operator {self.name} has no {backend} backend; it has {', '.join(self.backends)}"
        if backend == "triton":
            reason = triton_can_run(*args, **kwargs)
            if reason is not None:
                return reason
        name = "can_run" if self.function == "forward" else f"{self.function}_can_run"
        can_run: Callable[..., str | None] | None = getattr(self.load(backend), name, None)
        return None if can_run is None else can_run(*args, **kwargs)

    def choose(self, backend: str, *args: Any, **kwargs: Any) -> str:
        """The name of the backend that serves this call.

        Raises:
            ValueError: unknown name.
            BackendError: a backend asked for by name cannot run; the message has its reason.
        """
        if backend == "auto" and _forced is not None:
            backend = _forced
        if backend == "auto":
            first = _first_tensor(*args, **kwargs)
            if first is None or not first.is_cuda or exporting():
                return "eager"
            if self.why_not("triton", *args, **kwargs) is None:
                return "triton"
            return "eager"
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: accepted are 'auto', {', '.join(map(repr, BACKENDS))}")
        reason = self.why_not(backend, *args, **kwargs)
        if reason is not None:
            raise BackendError(f"{self.name}: backend {backend!r} cannot run: {reason}")
        return backend

    def autocasts(self, tensor: torch.Tensor) -> bool:
        """Whether a call on ``tensor`` made now has its float32 arguments cast."""
        return self.autocast and tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)

    def __call__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        first = _first_tensor(*args, **kwargs)
        if first is not None and self.autocasts(first):
            device = first.device.type
            dtype = torch.get_autocast_dtype(device)
            args = tuple(_cast(a, dtype) for a in args)
            kwargs = {name: _cast(a, dtype) for name, a in kwargs.items()}
            with torch.autocast(device, enabled=False):
                return self._run(backend, *args, **kwargs)
        return self._run(backend, *args, **kwargs)

    def _run(self, backend: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.load(self.choose(backend, *args, **kwargs)), self.function)(*args, **kwargs)

    def explain(self, *args: Any, **kwargs: Any) -> list[Verdict]:
        """For each backend: whether it runs this call, and if not, why."""
        chosen = self.choose("auto", *args, **kwargs)
        return [Verdict(b, b == chosen, self.why_not(b, *args, **kwargs)) for b in BACKENDS]


def explain(operator: str, *args: Any, **kwargs: Any) -> list[Verdict]:
    """Which backend of ``operator`` would serve a call with these arguments, and why not each other one."""
    return importlib.import_module(f"zoo_kernels.{operator}").OPERATOR.explain(*args, **kwargs)


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """For tests: within the block, ``backend="auto"`` means ``backend`` in every operator."""
    global _forced
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: accepted are {', '.join(map(repr, BACKENDS))}")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before
