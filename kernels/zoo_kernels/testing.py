"""How operator results are compared: one tolerance table, one error measure, NaN-poisoned outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch

#: Largest relative error ||a-b||/||b|| against the float64 reference. No test widens it.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


def rel_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; NaN anywhere gives inf; both empty or zero give 0."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    a, b = actual.detach().double().cpu(), expected.detach().double().cpu()
    if not bool(torch.isfinite(a).all()):
        return float("inf")
    diff, norm = float((a - b).norm()), float(b.norm())
    return diff / norm if norm > 0 else diff


def assert_close(name: str, actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Assert that ``actual`` is within the tolerance of ``dtype`` (its own by default) of ``expected``."""
    tol = TOLERANCE[dtype or actual.dtype]
    error = rel_error(actual, expected)
    assert error <= tol, f"{name}: relative error {error:.3e} > {tol:.0e} ({actual.dtype}, {tuple(actual.shape)})"


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """Within the block ``torch.empty`` and ``torch.empty_like`` return NaN, so that unwritten output is seen."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(t: torch.Tensor) -> torch.Tensor:
        return t.fill_(float("nan")) if t.is_floating_point() else t

    with (
        mock.patch.object(torch, "empty", lambda *a, **k: fill(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: fill(empty_like(*a, **k))),
    ):
        yield


def outputs_and_grads(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], dtype: torch.dtype, seed: int = 0
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Run ``fn`` with its floating tensors cast to ``dtype``; return outputs and the gradient of every float input.

    The gradient is that of a fixed random projection of the outputs, the same for every dtype.
    """

    def prepare(v: Any) -> Any:
        if isinstance(v, torch.Tensor) and v.is_floating_point():
            return v.detach().to(dtype).requires_grad_(True)
        return v

    a, k = [prepare(v) for v in args], {n: prepare(v) for n, v in kwargs.items()}
    out = fn(*a, **k)
    outs = [out] if isinstance(out, torch.Tensor) else [o for o in out if isinstance(o, torch.Tensor)]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for o in outs:
        if o.requires_grad:
            weight = torch.randn(o.shape, generator=generator, dtype=torch.float64)
            total = total + (o.double().cpu() * weight).sum()
    leaves = {**{str(i): v for i, v in enumerate(a)}, **k}
    leaves = {n: v for n, v in leaves.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    zeros = {n: torch.zeros_like(v) for n, v in leaves.items()}
    return outs, {n: (zeros[n] if g is None else g) for n, g in zip(leaves, grads)}


def check_against_reference(
    operator: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any] | None = None,
    *,
    backend: str,
    dtype: torch.dtype,
    grads: bool = True,
) -> None:
    """Assert that ``backend`` in ``dtype`` equals the float64 reference: every output and every gradient.

    Both sides start from the inputs rounded to ``dtype``, so that only the computation is compared.
    """
    kwargs = dict(kwargs or {})

    def rounded(v: Any) -> Any:
        return v.detach().to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v

    args, kwargs = [rounded(v) for v in args], {n: rounded(v) for n, v in kwargs.items()}
    want, want_g = outputs_and_grads(
        lambda *a, **k: operator(*a, backend="reference", **k), args, kwargs, torch.float64
    )
    with poisoned_empty():
        got, got_g = outputs_and_grads(partial(operator, backend=backend), args, kwargs, dtype)
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want)):
        assert_close(f"output {i}", g, w, dtype)
    if grads:
        assert got_g.keys() == want_g.keys()
        for name in want_g:
            assert_close(f"gradient of {name}", got_g[name], want_g[name], dtype)


@dataclass(frozen=True)
class Case:
    """A small call of an operator's public function that the tests of all operators run.

    A folder's ``cases.py`` has ``cases() -> dict[str, Case]``. Each case is compared with the float64 reference (output
    and every gradient) on every backend and dtype, run twice, on an empty batch, on non-contiguous inputs, compiled
    with ``fullgraph=True`` and exported. Inputs are float32 and below about 10 000 elements, drawn from a fixed seed.

    Attributes:
        function: the public function; takes ``backend=``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        batched: the tensors whose dimension 0 is the batch, by position or name; the empty-batch test cuts them to 0.
        dtypes: those compared; a case whose equation half precision cannot follow to the tolerance says so here.
        grads: False where the function has no gradient (routing indices).
        backends: those that serve this call, where not all of the operator's do.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    batched: tuple[int | str, ...] = (0,)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    grads: bool = True
    backends: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BuildCase:
    """A call, of the size the kernels are made for, whose Triton launches the build guard records and compiles.

    A folder's ``triton.py`` has ``build_cases() -> dict[str, BuildCase]``. The guard calls ``function`` with
    ``backend="triton"`` on CPU tensors, forward and backward, with every kernel launch replaced by a record of its
    arguments (:mod:`zoo_kernels.build`); so code around the launches must not depend on what a kernel computes, and
    must work without a GPU (the number of multiprocessors comes from :func:`zoo_kernels.dispatch.multiprocessors`).
    Each recorded launch is compiled for sm_80, sm_90 and gfx942, and its sm_90 machine code is checked: no register
    spills; tensor-core instructions and 16-byte global loads, except in the kernels named here.

    Attributes:
        function: the public function.
        args: positional arguments, in the dtype to build for (bfloat16 as a rule).
        kwargs: keyword arguments.
        backward: whether to record the backward too.
        no_tensor_cores: names of kernels that do no matrix product.
        narrow_loads: names of kernels whose main path has no 16-byte loads, by nature.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    backward: bool = True
    no_tensor_cores: tuple[str, ...] = ()
    narrow_loads: tuple[str, ...] = ()
