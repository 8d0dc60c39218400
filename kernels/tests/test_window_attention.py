"""Window attention against Swin's formulation in timm, at odd geometries, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo_kernels.testing import assert_close, check_against_reference
from zoo_kernels.window_attention import window_attention, window_cross_attention


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["reference", "eager", "triton"])
@pytest.mark.parametrize("width, shift", [(10, 0), (14, 3)])
def test_equals_timm_swin(backend, width, shift, device):
    """timm pads with zeros before its projection, so a padded token's qkv is the bias; it rolls before it pads, and the
    authors after, so that the two are the same without a shift or without padding."""
    from timm.models.swin_transformer import SwinTransformerBlock

    torch.manual_seed(0)
    block = SwinTransformerBlock(24, (7, width), num_heads=3, window_size=7, shift_size=shift).eval()
    block.attn.relative_position_bias_table.data.normal_()
    x = randn(1, 7, width, 24)
    with torch.no_grad():
        want = block._attn(x)
        qkv = block.attn.qkv(x)
        out = window_attention(
            qkv.to(device if backend == "triton" else "cpu"),
            num_heads=3,
            window=block.window_size,
            shift=block.shift_size,
            bias=block.attn._get_rel_pos_bias()[0],
            pad_value=block.attn.qkv.bias,
            backend=backend,
        )
        assert_close("output", block.attn.proj(out.cpu()), want)


def test_equals_plain_attention_where_one_window_is_the_map():
    qkv = randn(2, 5, 6, 36)
    q, k, v = (t.reshape(2, 30, 3, 4).transpose(1, 2) for t in qkv.chunk(3, -1))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 6, 12)
    for backend in ("reference", "eager"):
        assert_close(backend, window_attention(qkv, num_heads=3, window=(5, 6), backend=backend), want)


def test_hidden_padding_does_not_count():
    """A map in a window that is larger equals plain attention on the map."""
    qkv = randn(1, 3, 5, 24)
    want = window_attention(qkv, num_heads=2, window=(3, 5), backend="reference")
    for backend in ("reference", "eager"):
        assert_close(backend, window_attention(qkv, num_heads=2, window=(8, 7), backend=backend), want)


geometry = st.tuples(st.integers(1, 11), st.integers(1, 11), st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(geometry, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.booleans(), st.booleans(), st.integers(1, 3))
def test_eager_equals_reference_everywhere(size, shift, pad, bias, heads):
    h, w, *window = size
    shift = tuple(min(s, n - 1) for s, n in zip(shift, window))
    c, n = 2 * heads, window[0] * window[1]
    kwargs = {
        "num_heads": heads,
        "window": tuple(window),
        "shift": shift,
        "bias": randn(heads, n, n, seed=1) if bias else None,
        "pad_value": randn(3 * c, seed=2) if pad else None,
    }
    check_against_reference(window_attention, [randn(2, h, w, 3 * c)], kwargs, backend="eager", dtype=torch.float32)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_cross_equals_reference_everywhere(h, w, window, kv_window):
    rows, cols = -(-h // window), -(-w // window)
    kv = randn(2, max(1, rows * kv_window - 1), cols * kv_window, 16, seed=1)
    if -(-kv.shape[1] // kv_window) != rows:
        return
    kwargs = {"num_heads": 2, "window": window, "kv_window": kv_window, "bias": randn(2, window**2, kv_window**2)}
    args = [randn(2, h, w, 8), kv]
    check_against_reference(window_cross_attention, args, kwargs, backend="eager", dtype=torch.float32)


@pytest.mark.parametrize("backend", ["reference", "eager", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_huge_logits_stay_finite(backend, dtype, device):
    qkv = randn(1, 4, 4, 24).to(dtype)
    qkv[..., :8] *= 100
    qkv[..., 8:16] *= 100
    qkv = qkv.to(device if backend == "triton" else "cpu").requires_grad_(True)
    out = window_attention(qkv, num_heads=1, window=4, shift=1, backend=backend, scale=1.0)
    out.float().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(qkv.grad).all()
    want = window_attention(qkv.detach().double().cpu(), num_heads=1, window=4, shift=1, scale=1.0, backend="reference")
    assert_close("output", out, want, dtype)


def test_gradcheck_of_the_reference():
    double = {"dtype": torch.float64, "requires_grad": True}
    qkv, bias, pad = (torch.randn(*s, **double) for s in ((1, 3, 4, 12), (2, 4, 4), (12,)))

    def call(qkv, bias, pad):
        return window_attention(qkv, num_heads=2, window=2, shift=1, bias=bias, pad_value=pad, backend="reference")

    assert torch.autograd.gradcheck(call, (qkv, bias, pad))


def test_wide_windows_in_triton(device):
    """More tokens than one block of queries: the blocks of a window share its keys."""
    kwargs = {"num_heads": 1, "window": (9, 8), "shift": (4, 0), "bias": randn(1, 72, 72)}
    check_against_reference(
        window_attention, [randn(1, 9, 8, 24).to(device)], kwargs, backend="triton", dtype=torch.float32
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"qkv": torch.zeros(4, 4, 24)},
            r"qkv has 3 dimensions, shape \(4, 4, 24\): accepted is \[B, H, W, channels\]",
        ),
        ({"qkv": torch.zeros(1, 4, 4, 24).long()}, "qkv has dtype torch.int64"),
        ({"num_heads": 5}, r"qkv has 24 channels: accepted is a multiple of 3 \* num_heads = 15"),
        ({"num_heads": 0}, "num_heads=0: accepted is an int >= 1"),
        ({"window": 0}, "window=0: accepted is an int or a pair of ints .* >= 1"),
        ({"window": (2, 2, 2)}, r"window=\(2, 2, 2\): accepted"),
        ({"shift": 2}, r"shift=\(2, 2\): accepted is less than window=\(2, 2\)"),
        ({"shift": -1}, "shift=-1: accepted"),
        ({"bias": torch.zeros(2, 4, 5)}, r"bias has shape \(2, 4, 5\): accepted is \(2, 4, 4\)"),
        ({"pad_value": torch.zeros(8)}, r"pad_value has shape \(8,\): accepted is \(24,\)"),
        ({"qkv": torch.zeros(1, 0, 4, 24)}, "map of 0 x 4: accepted is at least one token"),
    ],
)
def test_errors_name_the_argument(change, message):
    call = {"qkv": torch.zeros(1, 4, 4, 24), "num_heads": 2, "window": 2, **change}
    with pytest.raises(ValueError, match=message):
        window_attention(call.pop("qkv"), **call)


def test_cross_errors():
    q = torch.zeros(1, 8, 8, 16)
    with pytest.raises(ValueError, match="cuts the key map into 3 x 2 windows: accepted is as many as .* 2 x 2"):
        window_cross_attention(q, torch.zeros(1, 5, 4, 32), num_heads=2, window=4, kv_window=2)
    with pytest.raises(ValueError, match=r"kv has shape .*: accepted is \[1, Hk, Wk, 32\]"):
        window_cross_attention(q, torch.zeros(1, 4, 4, 16), num_heads=2, window=4, kv_window=2)
    with pytest.raises(TypeError, match="scale='x'"):
        window_attention(torch.zeros(1, 4, 4, 24), num_heads=2, window=2, scale="x")
