"""Channel attention against timm's module, both forms against each other, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo_kernels.channel_attention import channel_attention, eager
from zoo_kernels.testing import assert_close, check_against_reference, rel_error


def inputs(b: int, n: int, c: int, *, bias: bool = True, offset: float = 0.0) -> list[torch.Tensor | None]:
    g = torch.Generator().manual_seed(n * c)
    x = torch.randn(b, n, c, generator=g) + offset
    qkv, proj = (torch.randn(m * c, c, generator=g) * c**-0.5 for m in (3, 1))
    qkv_bias, proj_bias = (torch.randn(m * c, generator=g) for m in (3, 1))
    return [x, qkv, qkv_bias if bias else None, proj, proj_bias if bias else None]


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("n", [50, 9])
def test_equals_timm(backend, n):
    from timm.models.davit import ChannelAttention

    torch.manual_seed(0)
    module = ChannelAttention(24, 3, qkv_bias=True)
    x = torch.randn(2, n, 24)
    weights = (module.qkv.weight, module.qkv.bias, module.proj.weight, module.proj.bias)
    assert_close("output", channel_attention(x, *weights, num_heads=3, backend=backend), module(x))


def test_the_cheaper_form_is_chosen():
    assert eager.gram_pays(3136, 96)
    assert eager.gram_pays(784, 192)
    assert not eager.gram_pays(196, 384)
    assert not eager.gram_pays(49, 768)


def test_a_common_offset_keeps_its_digits():
    """The Gram matrix is centred: an offset of all channels costs no more than in the ordinary form."""
    args = inputs(1, 400, 48, offset=3.0)
    want = channel_attention(
        *(None if a is None else a.double() for a in args), num_heads=2, scale=0.002, backend="reference"
    )
    found = {f.__name__: rel_error(f(*args, 2, 0.002), want) for f in (eager.gram, eager.ordinary)}
    assert found["gram"] <= 1e-5
    assert found["gram"] <= 3 * found["ordinary"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_eager_equals_reference_everywhere(n, heads, d, bias):
    args = inputs(2, n, heads * d, bias=bias)
    kwargs = {"num_heads": heads, "scale": 0.1 / n}
    # With one channel a group the softmax is constant: the gradients of q, k and v's weights are exact zeros.
    check_against_reference(channel_attention, args, kwargs, backend="eager", dtype=torch.float32, grads=d > 1)


@pytest.mark.parametrize("backend", ["reference", "eager", "triton"])
def test_huge_logits_stay_finite(backend, device):
    args = [None if a is None else a.to(device if backend == "triton" else "cpu") for a in inputs(1, 64, 24)]
    args[1] = args[1] * 100
    args[0].requires_grad_(True)
    out = channel_attention(*args, num_heads=2, backend=backend)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(args[0].grad).all()


def test_gradcheck_of_the_reference():
    args = [a.double().requires_grad_(True) for a in inputs(1, 5, 4)]
    assert torch.autograd.gradcheck(lambda *a: channel_attention(*a, num_heads=2, backend="reference"), args)


@pytest.mark.parametrize(
    "at, value, message",
    [
        (0, torch.zeros(4, 24), r"x has 2 dimensions, shape \(4, 24\): accepted is \[B, N, C\]"),
        (0, torch.zeros(1, 0, 24), "accepted is at least one token"),
        (0, torch.zeros(1, 4, 24).long(), "x has dtype torch.int64"),
        (1, torch.zeros(24, 24), r"qkv_weight has shape \(24, 24\): accepted is \(72, 24\)"),
        (3, None, r"proj_weight has shape None: accepted is \(24, 24\)"),
        (4, torch.zeros(25), r"proj_bias has shape \(25,\): accepted is \(24,\)"),
        (1, torch.zeros(72, 24).double(), "qkv_weight has dtype torch.float64: accepted is the dtype of x"),
    ],
)
def test_errors_name_the_argument(at, value, message):
    args = inputs(1, 4, 24)
    args[at] = value
    with pytest.raises(ValueError, match=message):
        channel_attention(*args, num_heads=2)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="num_heads=5: accepted is an int >= 1 that divides the 24 channels"):
        channel_attention(*inputs(1, 4, 24), num_heads=5)
