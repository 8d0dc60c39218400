"""Linear layers through convolution: the numbers and gradients of nn.Linear, whatever the number of tokens."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.layers import token_linear as module
from zoo.layers.token_linear import Pointwise, TokenLinear, token_linear


@pytest.fixture
def always(monkeypatch):
    """The convolution however small the product."""
    monkeypatch.setattr(module, "_TOKENS", 16)
    monkeypatch.setattr(module, "_WORK", 1)


@pytest.mark.parametrize("shape", [(2, 64, 24), (1, 333, 24), (3, 5, 11, 24), (16, 24), (0, 24), (131, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_linear(shape, bias, always):
    torch.manual_seed(0)
    x = torch.randn(*shape).requires_grad_()
    layer = TokenLinear(24, 40, bias=bias)
    ours, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-5)
    leaves = (x, *layer.parameters())
    g = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(ours, leaves, g), torch.autograd.grad(expected, leaves, g)):
        assert torch.allclose(a, b, atol=1e-4)


def test_the_convolution_is_taken_where_it_pays(monkeypatch):
    calls = []
    conv2d = F.conv2d
    monkeypatch.setattr(module.F, "conv2d", lambda *a: calls.append(a[0].shape) or conv2d(*a))
    w = torch.randn(200, 100)
    token_linear(torch.randn(303, 100), w)
    assert [tuple(s) for s in calls] == [(16, 100, 18, 1)]
    token_linear(torch.randn(299, 100), w)  # little to do
    token_linear(torch.randn(63, 1000), torch.randn(100, 1000))  # few tokens
    token_linear(torch.randn(303, 100, dtype=torch.float64), w.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert token_linear(torch.randn(303, 100), w).dtype == torch.bfloat16
    assert len(calls) == 1


def test_a_slice_of_a_larger_tensor(always):
    x = torch.randn(4, 100, 48)[:, :, ::2]
    w, b = torch.randn(8, 24), torch.randn(8)
    assert torch.allclose(token_linear(x, w, b), F.linear(x, w, b), atol=1e-5)


def test_pointwise_is_a_convolution(always):
    torch.manual_seed(0)
    layer = Pointwise(24, 8)
    plain = nn.Conv2d(24, 8, 1)
    plain.load_state_dict(layer.state_dict())
    for size in ((1, 24, 3, 3), (2, 24, 13, 17)):
        x = torch.randn(*size)
        assert torch.allclose(layer(x), plain(x), atol=1e-5)


def test_compiles_whole_and_exports(always):
    layer = TokenLinear(24, 8)
    x = torch.randn(2, 100, 24)
    whole = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.allclose(whole(x), layer(x), atol=1e-5)
    tokens = torch.export.Dim("tokens", min=2, max=4000)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({1: tokens},)).module()
    longer = torch.randn(2, 700, 24)
    assert torch.allclose(exported(longer), layer(longer), atol=1e-5)
