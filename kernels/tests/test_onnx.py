"""ONNX export of every operator's eager formulation, run by onnxruntime.

The first case of each public function is exported in the fast suite, the other cases in the slow one.
"""

import importlib

import onnxruntime
import pytest
import torch

from zoo_kernels import operators
from zoo_kernels.routed_attention import route_regions, routed_attention
from zoo_kernels.testing import Case, assert_close


def parameters() -> list:
    found = []
    for operator in operators():
        seen = set()
        for name, case in importlib.import_module(f"zoo_kernels.{operator}.cases").cases().items():
            marks = [pytest.mark.slow] if case.function in seen else []
            seen.add(case.function)
            found.append(pytest.param(case, id=f"{operator}-{name}", marks=marks))
    return found


class Call(torch.nn.Module):
    """A case's call; its tensors are the inputs."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        self.inputs = tuple(v for v in (*case.args, *case.kwargs.values()) if isinstance(v, torch.Tensor))

    def forward(self, *tensors: torch.Tensor) -> object:
        left = iter(tensors)
        args = [next(left) if isinstance(v, torch.Tensor) else v for v in self.case.args]
        kwargs = {k: next(left) if isinstance(v, torch.Tensor) else v for k, v in self.case.kwargs.items()}
        return self.case.function(*args, **kwargs)


def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], **options: object) -> onnxruntime.InferenceSession:
    """Export, run, and compare with PyTorch; only operators of the standard are in the graph."""
    program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False, **options)
    model = program.model_proto
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), threads, providers=["CPUExecutionProvider"])
    run(session, module, inputs)
    return session


def run(session: onnxruntime.InferenceSession, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    got = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)})
    want = module(*inputs)
    for g, w in zip(got, [want] if isinstance(want, torch.Tensor) else want, strict=True):
        assert_close("exported", torch.from_numpy(g), w)


@pytest.mark.parametrize("exported", parameters())
def test_exports_to_onnx(exported: Case) -> None:
    call = Call(exported)
    check(call, call.inputs)


class Routed(torch.nn.Module):
    """Routing by region means, and attention to the routed regions."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        indices, logits = route_regions(q.mean(2).flatten(2), k.mean(2).flatten(2), 2, scale=0.3)
        return routed_attention(q, k, v, indices, weights=logits.softmax(-1))


def test_routing_exports_to_onnx() -> None:
    """The choice of regions is part of the graph: other inputs are routed elsewhere."""
    generator = torch.Generator().manual_seed(0)
    first, second = (tuple(torch.randn(2, 4, 6, 2, 8, generator=generator) for _ in range(3)) for _ in range(2))
    module = Routed()
    run(check(module, first), module, second)
