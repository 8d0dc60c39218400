"""Every operator, case and backend against the float64 reference, and what every operator must withstand."""

import pytest
import torch

from zoo_kernels.testing import Case, check_against_reference


def moved(value: object, device: str) -> object:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def arguments(case: Case, device: str) -> tuple[list, dict]:
    return [moved(a, device) for a in case.args], {k: moved(v, device) for k, v in case.kwargs.items()}


def where(backend: str, device: str) -> str:
    return device if backend == "triton" else "cpu"


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equals_reference(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    if dtype not in case.dtypes:
        pytest.skip(f"{dtype} is not among the dtypes of this case")
    if backend == "reference" and dtype != torch.float32:
        pytest.skip("the reference is plain PyTorch: its half precision says nothing of ours")
    args, kwargs = arguments(case, where(backend, device))
    check_against_reference(case.function, args, kwargs, backend=backend, dtype=dtype, grads=case.grads)


def outputs(case: Case, backend: str, args: list, kwargs: dict) -> list[torch.Tensor]:
    out = case.function(*args, **kwargs, backend=backend)
    return [out] if isinstance(out, torch.Tensor) else list(out)


def with_grads(case: Case, backend: str, args: list, kwargs: dict) -> list[torch.Tensor]:
    """Outputs and the gradients of their sum by every floating input."""
    leaves: list[torch.Tensor] = []

    def leaf(value: object) -> object:
        if case.grads and isinstance(value, torch.Tensor) and value.is_floating_point():
            leaves.append(value.detach().requires_grad_(True))
            return leaves[-1]
        return value

    outs = outputs(case, backend, [leaf(a) for a in args], {k: leaf(v) for k, v in kwargs.items()})
    total = [o.float().sum() for o in outs if o.requires_grad]
    grads = torch.autograd.grad(sum(total), leaves, allow_unused=True) if total else ()
    return [*(o.detach() for o in outs), *(g for g in grads if g is not None)]


@pytest.mark.usefixtures("triton_ready")
def test_runs_twice_alike(case: Case, backend: str, device: str) -> None:
    args, kwargs = arguments(case, where(backend, device))
    first, second = (with_grads(case, backend, args, kwargs) for _ in range(2))
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.usefixtures("triton_ready")
def test_takes_strided_inputs(case: Case, backend: str, device: str) -> None:
    """Inputs of which every second element is used, in the last dimension and in the first."""

    def spread(value: object, dim: int) -> object:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        wide = value.repeat_interleave(2, dim)
        return wide[..., ::2] if dim == -1 else wide[::2]

    args, kwargs = arguments(case, where(backend, device))
    want = outputs(case, backend, args, kwargs)
    for dim in (-1, 0):
        got = outputs(case, backend, [spread(a, dim) for a in args], {k: spread(v, dim) for k, v in kwargs.items()})
        assert all(torch.allclose(g, w, rtol=1e-4, atol=1e-5) for g, w in zip(got, want, strict=True))


@pytest.mark.usefixtures("triton_ready")
def test_takes_an_empty_batch(case: Case, backend: str, device: str) -> None:
    args, kwargs = arguments(case, where(backend, device))
    whole = outputs(case, backend, args, kwargs)
    args = [a[:0] if i in case.batched else a for i, a in enumerate(args)]
    kwargs = {k: v[:0] if k in case.batched else v for k, v in kwargs.items()}
    for out, full in zip(with_grads(case, backend, args, kwargs), whole):
        assert out.shape == (0, *full.shape[1:])
        assert out.dtype == full.dtype
