"""Every operator case under torch.compile(fullgraph=True), torch.export, meta and fake tensors, and autocast."""

import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo_kernels.testing import Case


def close(got: object, want: object) -> None:
    got, want = ([t] if isinstance(t, torch.Tensor) else list(t) for t in (got, want))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


class Call(torch.nn.Module):
    """The tensors of a case are inputs, everything else is fixed."""

    def __init__(self, case: Case):
        super().__init__()
        self.function = case.function
        self.positional = [None if isinstance(a, torch.Tensor) else a for a in case.args]
        self.at = [i for i, a in enumerate(case.args) if isinstance(a, torch.Tensor)]
        self.fixed = {k: v for k, v in case.kwargs.items() if not isinstance(v, torch.Tensor)}
        self.names = [k for k, v in case.kwargs.items() if isinstance(v, torch.Tensor)]
        self.inputs = (*(case.args[i] for i in self.at), *(case.kwargs[k] for k in self.names))

    def forward(self, *tensors: torch.Tensor) -> object:
        args = list(self.positional)
        for i, t in zip(self.at, tensors):
            args[i] = t
        return self.function(*args, **self.fixed, **dict(zip(self.names, tensors[len(self.at) :])))


def test_compiles_into_one_graph(case: Case) -> None:
    call = Call(case)
    torch._dynamo.reset()
    close(torch.compile(call, fullgraph=True, backend="aot_eager")(*call.inputs), call(*call.inputs))


def test_exports(case: Case) -> None:
    call = Call(case)
    program = torch.export.export(call, call.inputs, strict=False)
    close(program.module()(*call.inputs), call(*call.inputs))


def test_runs_on_fake_and_meta_tensors(case: Case) -> None:
    call = Call(case)
    want = call(*call.inputs)
    shapes = [t.shape for t in ([want] if isinstance(want, torch.Tensor) else want)]
    with FakeTensorMode() as mode:
        fake = call(*(mode.from_tensor(t) for t in call.inputs))
    meta = call(*(t.to("meta") for t in call.inputs))
    for out in (fake, meta):
        assert [t.shape for t in ([out] if isinstance(out, torch.Tensor) else out)] == shapes


@pytest.mark.usefixtures("triton_works")
def test_kernels_compile_into_one_graph(built_operator: str, device: str) -> None:
    """The registered custom ops, forward and backward, on the first case that the kernels serve."""
    cases = importlib.import_module(f"zoo_kernels.{built_operator}.cases").cases().values()
    case = next(c for c in cases if c.grads and (c.backends is None or "triton" in c.backends))
    call = Call(Case(case.function, case.args, {**case.kwargs, "backend": "triton"}))
    leaves = [t.to(device).requires_grad_(t.is_floating_point()) for t in call.inputs]
    torch._dynamo.reset()
    found = []
    for run in (torch.compile(call, fullgraph=True, backend="aot_eager"), call):
        out = run(*leaves)
        out = out if isinstance(out, torch.Tensor) else out[0]
        floats = [t for t in leaves if t.requires_grad]
        grads = torch.autograd.grad(out.sum(), floats, allow_unused=True, materialize_grads=True)
        found.append([out.detach(), *grads])
    close(*found)
