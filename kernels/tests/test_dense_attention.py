"""Dense attention: masks, blocks, every score against its equation, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo_kernels.dense_attention import SCORES, dense_attention, eager
from zoo_kernels.testing import assert_close, check_against_reference


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def backends(score: str) -> list[str]:
    return ["reference", "eager"] if score == "softmax" else ["reference", "eager", "triton"]


PAIRS = [(s, b) for s in SCORES for b in backends(s)]


@pytest.mark.parametrize("score", SCORES)
def test_reference_is_the_equation(score):
    q, k, v = (randn(2, 2, n, 5, seed=n).double() for n in (4, 6, 6))
    s = q @ k.transpose(-2, -1) * 5**-0.5
    weights = {
        "softmax": lambda: s.softmax(-1),
        "relu": lambda: s.relu(),
        "cog": lambda: s.sign() * s.abs().exp() / s.abs().exp().sum(-1, keepdim=True),
        "reversed": lambda: s.softmax(-2),
    }[score]()
    assert_close("output", dense_attention(q, k, v, score=score, backend="reference"), weights @ v)


@pytest.mark.parametrize("score, backend", PAIRS)
@pytest.mark.parametrize("boolean", [True, False])
def test_hidden_pairs_and_rows(score, backend, boolean, device):
    """Weights of hidden pairs are 0, as are those of queries and keys that see nothing; gradients stay finite."""
    seen = randn(1, 2, 9, 11) > -0.3
    seen[:, :, 3] = False
    seen[:, :, :, 4] = False
    bias = seen if boolean else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    where = device if backend == "triton" else "cpu"
    args = [randn(1, 2, n, 8, seed=n).to(where) for n in (9, 11, 11)]
    kwargs = {"score": score, "bias": bias.to(where)}
    check_against_reference(dense_attention, args, kwargs, backend=backend, dtype=torch.float32)
    out = dense_attention(*args, **kwargs, backend=backend)
    assert (out[:, :, 3] == 0).all()


@pytest.mark.parametrize("score", SCORES[1:])
@pytest.mark.parametrize("bias_shape", [None, (1, 3, 17, 23), (2, 1, 17, 23), (1, 1, 17, 23)])
def test_blocks_equal_the_whole(score, bias_shape, monkeypatch):
    monkeypatch.setattr(eager, "WHOLE_BYTES", 0)
    monkeypatch.setattr(eager, "BLOCK_BYTES", 1500)
    args = [randn(2, 3, n, 12, seed=n) for n in (17, 23, 23)]
    assert len(eager._blocks(args[0], args[1], score)) > 3
    kwargs = {"score": score, "bias": None if bias_shape is None else randn(*bias_shape)}
    for dtype in (torch.float32, torch.bfloat16):
        check_against_reference(dense_attention, args, kwargs, backend="eager", dtype=dtype)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from(SCORES), st.integers(1, 12), st.integers(2, 12), st.integers(1, 9), st.integers(1, 9), st.booleans()
)
def test_eager_equals_reference_everywhere(score, n, m, d, dv, bias):
    n = max(n, 2) if score == "reversed" else n
    args = [randn(2, 2, n, d, seed=1), randn(2, 2, m, d, seed=2), randn(2, 2, m, dv, seed=3)]
    kwargs = {"score": score, "bias": randn(1, 2, n, m) if bias else None}
    check_against_reference(dense_attention, args, kwargs, backend="eager", dtype=torch.float32)


@pytest.mark.parametrize("score, backend", PAIRS)
def test_huge_logits_stay_finite(score, backend, device):
    args = [
        (randn(1, 1, n, 8, seed=n) * s).to(device if backend == "triton" else "cpu")
        for n, s in ((5, 100), (7, 100), (7, 1))
    ]
    leaves = [a.requires_grad_(True) for a in args]
    out = dense_attention(*leaves, score=score, scale=1.0, backend=backend)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(a.grad).all() for a in leaves)
    want = dense_attention(*(a.detach().double().cpu() for a in args), score=score, scale=1.0, backend="reference")
    assert_close("output", out, want, torch.float32)


@pytest.mark.parametrize("score", SCORES)
def test_gradcheck_of_the_reference(score):
    args = [randn(1, 2, n, 3, seed=n + 1).double().requires_grad_(True) for n in (3, 4, 4)]
    bias = randn(1, 2, 3, 4).double().requires_grad_(True)

    def call(q, k, v, bias):
        return dense_attention(q, k, v, bias=bias, score=score, backend="reference")

    assert torch.autograd.gradcheck(call, (*args, bias))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": torch.zeros(2, 3, 4)}, r"q has 3 dimensions, shape \(2, 3, 4\): accepted is \[B, heads, N, d\]"),
        ({"k": torch.zeros(2, 3, 5, 9)}, r"k has shape \(2, 3, 5, 9\): accepted is \[2, 3, M, 8\]"),
        ({"v": torch.zeros(2, 3, 6, 8)}, r"v has shape \(2, 3, 6, 8\): accepted is \[2, 3, 5, dv\]"),
        ({"v": torch.zeros(2, 3, 5, 8).double()}, "v has dtype torch.float64: accepted is the dtype of q"),
        ({"q": torch.zeros(2, 3, 0, 8)}, "accepted is at least one query and key"),
        ({"bias": torch.zeros(3, 4, 4)}, r"bias has shape \(3, 4, 4\): accepted is what broadcasts to \(2, 3, 4, 5\)"),
        ({"bias": torch.zeros(4, 5).int()}, "bias has dtype torch.int32: accepted is bool or a floating dtype"),
        ({"score": "sigmoid"}, "score='sigmoid': accepted are 'softmax', 'relu', 'cog', 'reversed'"),
    ],
)
def test_errors_name_the_argument(change, message):
    call = {"q": torch.zeros(2, 3, 4, 8), "k": torch.zeros(2, 3, 5, 8), "v": torch.zeros(2, 3, 5, 8), **change}
    with pytest.raises(ValueError, match=message):
        dense_attention(**call)
