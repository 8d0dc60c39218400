"""torch.func.vmap over the eager formulation of every operator case, and per-sample gradients where they work."""

from collections.abc import Callable

import pytest
import torch
from torch.func import grad, vmap

from zoo_kernels.testing import Case, assert_close

#: Their backward on a CPU is written by hand, as an autograd function that torch.func cannot transform.
NO_SAMPLE_GRADIENTS = ("ms_deform_attention", "window_attention")


def split(case: Case) -> tuple[list[torch.Tensor], Callable[..., tuple[torch.Tensor, ...]]]:
    """The tensors of a case, and its call as a function of them that returns a tuple."""
    every = [*case.args, *case.kwargs.values()]

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = iter(tensors)
        values = [next(left) if isinstance(v, torch.Tensor) else v for v in every]
        count = len(case.args)
        out = case.function(*values[:count], **dict(zip(case.kwargs, values[count:])), backend="eager")
        return (out,) if isinstance(out, torch.Tensor) else out

    return [v for v in every if isinstance(v, torch.Tensor)], call


@pytest.mark.parametrize("mapped", ["all", "first"])
def test_vmap_equals_a_loop(case: Case, mapped: str) -> None:
    tensors, call = split(case)
    stacked = [torch.stack((t, t.roll(1, -1), t.flip(-1))) for t in tensors]
    if mapped == "first":
        stacked[1:] = tensors[1:]
    dims = tuple(0 if i == 0 or mapped == "all" else None for i in range(len(tensors)))
    got = vmap(call, in_dims=dims)(*stacked)
    for i in range(3):
        want = call(*(t if d is None else t[i] for t, d in zip(stacked, dims)))
        for g, w in zip(got, want, strict=True):
            assert_close(f"sample {i}", g[i], w)


def test_gradients_of_each_sample(case: Case) -> None:
    if not case.grads or case.function.__module__.split(".")[1] in NO_SAMPLE_GRADIENTS:
        pytest.skip("has no gradient that torch.func can transform")
    tensors, call = split(case)

    def loss(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return call(x, *rest)[0].square().sum()

    samples = torch.stack((tensors[0], tensors[0].flip(-1)))
    got = vmap(grad(loss), in_dims=(0, *(None for _ in tensors[1:])))(samples, *tensors[1:])
    for i, sample in enumerate(samples):
        leaf = sample.clone().requires_grad_()
        assert_close(f"gradient of sample {i}", got[i], torch.autograd.grad(loss(leaf, *tensors[1:]), leaf)[0])
