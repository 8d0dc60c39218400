"""Agent attention: what the generic operator tests do not reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from zoo_kernels.agent_attention import agent_attention, attention_matrices, eager
from zoo_kernels.dispatch import BackendError
from zoo_kernels.testing import TOLERANCE, assert_close, check_against_reference, rel_error

BACKENDS = ("reference", "eager", "triton")


def inputs(b=2, h=2, n=7, m=5, agents=3, d=8, dv=8, *, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    tensors = [randn(b, h, n, d), randn(b, h, m, d), randn(b, h, m, dv), randn(b, h, agents, d)]
    return tensors, {"agent_bias": randn(1, h, agents, m), "query_bias": randn(1, h, n, agents)}


@pytest.fixture
def few_multiprocessors(monkeypatch):
    """A card so small that programs of the Triton kernels walk over several tiles or samples."""
    from zoo_kernels.agent_attention import triton as backend

    monkeypatch.setattr(backend, "multiprocessors", lambda device: 1)


def test_reference_is_two_attentions():
    (q, k, v, agent), bias = inputs(dv=6)
    agent_v = F.scaled_dot_product_attention(agent, k, v, attn_mask=bias["agent_bias"], scale=0.3)
    want = F.scaled_dot_product_attention(q, agent, agent_v, attn_mask=bias["query_bias"], scale=0.3)
    assert rel_error(agent_attention(q, k, v, agent, **bias, scale=0.3, backend="reference"), want) < 1e-12


def test_reference_gradcheck():
    tensors, bias = inputs(b=1, n=3, m=4, agents=2, d=3, dv=2)
    leaves = [t.requires_grad_() for t in (*tensors, *bias.values())]

    def call(q, k, v, agent, agent_bias, query_bias):
        return agent_attention(q, k, v, agent, agent_bias=agent_bias, query_bias=query_bias, backend="reference")

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_one_agent_averages_the_values():
    (q, k, v, agent), _ = inputs(agents=1)
    attention = (agent @ k.transpose(2, 3) * 8**-0.5).softmax(-1)  # [B, h, 1, M]
    want = (attention @ v).expand(-1, -1, 7, -1)
    for backend in ("reference", "eager"):
        assert rel_error(agent_attention(q, k, v, agent, backend=backend), want) < 1e-12


def test_attention_matrices_give_the_output():
    (q, k, v, agent), bias = inputs()
    from_keys, from_agents = attention_matrices(q, k, agent, **bias)
    assert from_keys.shape == (2, 2, 3, 5)
    assert from_agents.shape == (2, 2, 7, 3)
    for attention in (from_keys, from_agents):
        assert torch.allclose(attention.sum(-1), torch.ones((), dtype=q.dtype))
    assert rel_error(agent_attention(q, k, v, agent, **bias), from_agents @ from_keys @ v) < 1e-12


@pytest.mark.parametrize(
    "agents,dtype,learned,fused",
    [
        (9, torch.float32, False, False),
        (49, torch.float32, False, True),
        (49, torch.float32, True, False),
        (9, torch.bfloat16, False, True),
        (9, torch.bfloat16, True, True),
    ],
)
def test_eager_form(monkeypatch, agents, dtype, learned, fused):
    """Few agents, and biases with a gradient, take batched products; half precision always the fused call."""
    tensors, bias = inputs(n=40, m=40, agents=agents, dtype=dtype)
    for b in bias.values():
        b.requires_grad_(learned)
    calls = []
    inner = F.scaled_dot_product_attention
    monkeypatch.setattr(eager.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or inner(*a, **k))
    got = agent_attention(*tensors, **bias)
    assert len(calls) == (2 if fused else 0)
    want = agent_attention(*(t.double() for t in tensors), **{n: b.double() for n, b in bias.items()})
    assert_close("output", got, want, dtype)


@pytest.mark.parametrize("agents", [3, 45])
@pytest.mark.parametrize("kind", ["transposed", "row", "none"])
def test_eager_in_chunks_of_queries(monkeypatch, agents, kind):
    tensors, bias = inputs(n=300, m=20, agents=agents, dtype=torch.float32)
    query_bias = {
        "transposed": bias["query_bias"].transpose(2, 3).contiguous().transpose(2, 3),
        "row": bias["query_bias"][0, 0, 0],
        "none": None,
    }[kind]
    monkeypatch.setattr(eager, "LONG", 300)
    monkeypatch.setattr(eager, "CHUNK_ELEMENTS", 1)  # the least: 128 queries a piece
    pieces = []
    inner = eager._transposed
    monkeypatch.setattr(eager, "_transposed", lambda q, *a: pieces.append(q.shape[2]) or inner(q, *a))
    got = agent_attention(*tensors, query_bias=query_bias)
    assert pieces == ([128, 128, 44] if agents == 3 or kind == "transposed" else [])
    double = None if query_bias is None else query_bias.double()
    want = agent_attention(*(t.double() for t in tensors), query_bias=double, backend="reference")
    assert_close("output", got, want)


# --- all backends ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_logits(backend, device):
    where = device if backend == "triton" else "cpu"
    (q, k, v, agent), bias = inputs(b=1, h=1, dtype=torch.float32)
    tensors = [t.to(where) for t in (q * 100, k * 100, v, agent * 100)]
    leaf = tensors[0].requires_grad_()
    out = agent_attention(*tensors, **{n: b.to(where) for n, b in bias.items()}, scale=1.0, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.isfinite(grad).all()
    want = agent_attention(*(t.detach().cpu().double() for t in tensors), **bias, scale=1.0, backend="reference")
    assert rel_error(out, want) < 1e-4


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
def test_bias_of_minus_infinity_masks(backend, device):
    """Also where all keys of a first tile are masked."""
    where = device if backend == "triton" else "cpu"
    tensors, bias = inputs(b=1, h=1, m=70, dtype=torch.float32)
    bias["agent_bias"][..., :66] = float("-inf")
    bias["query_bias"][..., 1] = float("-inf")
    q, k, v, agent = tensors
    want = agent_attention(
        q, k[:, :, 66:], v[:, :, 66:], agent[:, :, ::2],
        agent_bias=bias["agent_bias"][:, :, ::2, 66:], query_bias=bias["query_bias"][..., ::2], backend="reference",
    )  # fmt: skip
    got = agent_attention(*(t.to(where) for t in tensors), **{n: b.to(where) for n, b in bias.items()}, backend=backend)
    assert_close("output", got, want)


@pytest.mark.usefixtures("triton_works", "few_multiprocessors")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_triton_programs_that_walk(dtype, learned, device):
    """Five samples walked over by two programs, or several tiles by one; a last step with nothing to do."""
    tensors, bias = inputs(b=5, h=1, n=130, m=70, agents=3, dtype=torch.float32)
    tensors = [t.to(device) for t in tensors]
    kwargs = {n: b.to(device) for n, b in bias.items()} if learned else {}
    check_against_reference(agent_attention, tensors, kwargs, backend="triton", dtype=dtype)


@pytest.mark.usefixtures("triton_works")
def test_triton_shares_out_work():
    from zoo_kernels.agent_attention.triton import _walk

    shared, own = torch.empty(1, 2, 3, 4), torch.empty(8, 2, 3, 4)
    assert _walk(200, 64, 8, 2, 16, None) == (1, 8, 1, 4)  # all 4 tiles of a sample and head
    assert _walk(200, 64, 8, 2, 1000, None) == (4, 8, 4, 1)
    assert _walk(200, 64, 8, 2, 16, shared) == (4, 2, 4, 4)  # 4 samples of a tile
    assert _walk(200, 64, 8, 2, 16, own) == (4, 8, 4, 1)


@pytest.mark.usefixtures("triton_works")
def test_triton_takes_packed_views_and_permuted_bias(device):
    """q, k, v as views of one projection, a bias made in the transposed layout; gradients reach all of them."""
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 3, 2, 8, generator=g).to(device)
    bias = torch.randn(1, 2, 4, 9, generator=g).to(device)
    found = []
    for backend in ("reference", "triton"):
        leaves = [qkv.clone().requires_grad_(), bias.clone().requires_grad_()]
        q, k, v = leaves[0].permute(2, 0, 3, 1, 4)
        out = agent_attention(q, k, v, q[:, :, :4], query_bias=leaves[1].transpose(2, 3), backend=backend)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, want in zip(found[1], found[0]):
        assert rel_error(got, want) < TOLERANCE[torch.float32]


@pytest.mark.usefixtures("triton_works")
def test_triton_operators_are_registered(device):
    from zoo_kernels.agent_attention import triton as backend

    tensors, bias = inputs(b=1, h=1, dtype=torch.float32)
    args = [t.to(device).requires_grad_() for t in (*tensors, *bias.values())]
    torch.library.opcheck(backend._forward, (*args, 0.5))
    call = torch.compile(agent_attention, fullgraph=True, backend="aot_eager")
    kwargs = dict(zip(bias, args[4:]))
    got = call(*args[:4], **kwargs, backend="triton")
    assert rel_error(got, agent_attention(*args[:4], **kwargs)) < 1e-5


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 2), h=st.integers(1, 3), n=st.integers(1, 50), m=st.integers(1, 50), agents=st.integers(1, 40),
    d=st.integers(1, 9), dv=st.integers(1, 9), broadcast=st.tuples(*[st.booleans()] * 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_eager_at_any_shape(b, h, n, m, agents, d, dv, broadcast, seed):
    tensors, bias = inputs(b, h, n, m, agents, d, dv, seed=seed)
    if broadcast[0]:
        bias["agent_bias"] = bias["agent_bias"][0, 0]
    if broadcast[1]:
        bias["agent_bias"] = bias["agent_bias"][..., :1, :]
    if broadcast[2]:
        bias["query_bias"] = bias["query_bias"][0, :, :1]
    kwargs = bias if broadcast[3] else {}
    check_against_reference(agent_attention, tensors, kwargs, backend="eager", dtype=torch.float64)
    with torch.no_grad():
        got = agent_attention(*tensors, **kwargs)
    assert rel_error(got, agent_attention(*tensors, **kwargs, backend="reference")) < 1e-10


@pytest.mark.usefixtures("triton_works")
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 70), m=st.integers(1, 70), agents=st.integers(1, 20), d=st.integers(1, 20), seed=st.integers(0, 9)
)
def test_triton_at_any_shape(n, m, agents, d, seed):
    tensors, bias = inputs(1, 1, n, m, agents, d, d, dtype=torch.float32, seed=seed)
    if torch.cuda.is_available():
        tensors, bias = [t.cuda() for t in tensors], {k: v.cuda() for k, v in bias.items()}
    check_against_reference(agent_attention, tensors, bias, backend="triton", dtype=torch.float32)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,error,text",
    [
        ({"q": lambda t: t[0]}, ValueError, "q has shape .* four dimensions"),
        ({"k": lambda t: t[:1]}, ValueError, "k has batch 1 but q has 2"),
        ({"agent": lambda t: t[:, :1]}, ValueError, "agent has 1 heads but q has 2"),
        ({"agent": lambda t: t[..., :4]}, ValueError, "agent has head_dim 4 but q has 8"),
        ({"v": lambda t: t[:, :, :3]}, ValueError, "v has 3 tokens but k has 5"),
        ({"agent": lambda t: t[:, :, :0]}, ValueError, "agent has 0 tokens"),
        ({"k": lambda t: t[:, :, :0], "v": lambda t: t[:, :, :0]}, ValueError, "k has 0 tokens"),
        ({"v": lambda t: t.half()}, TypeError, "v has dtype torch.float16 but q has torch.float32"),
        ({"q": lambda t: t.long()}, TypeError, "q has dtype torch.int64"),
        ({"agent_bias": lambda t: t[..., :2]}, ValueError, "agent_bias has shape .* broadcast to"),
        ({"query_bias": lambda t: t[None]}, ValueError, "query_bias has shape .* broadcast to"),
        ({"query_bias": lambda t: t > 0}, TypeError, "query_bias has dtype torch.bool"),
    ],
)
def test_refuses(change, error, text):
    tensors, bias = inputs(dtype=torch.float32)
    made = {**dict(zip(("q", "k", "v", "agent"), tensors)), **bias}
    made.update({name: edit(made[name]) for name, edit in change.items()})
    with pytest.raises(error, match=text):
        agent_attention(**made)


@pytest.mark.usefixtures("triton_works")
def test_triton_says_why_not(device):
    with pytest.raises(BackendError, match="head_dim is 130, the kernels take at most 128"):
        agent_attention(*(t.to(device) for t in inputs(d=130, dtype=torch.float32)[0]), backend="triton")
    tensors = [t.to(device) for t in inputs(agents=129, d=64, dtype=torch.float32)[0]]
    with pytest.raises(BackendError, match="129 agents of head_dim 64 pad to 256 x 64 .* at most 8192"):
        agent_attention(*tensors, backend="triton")


def test_autocast_takes_mixed_types():
    (q, k, v, agent), bias = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = agent_attention(q, k.bfloat16(), v.bfloat16(), agent, **bias)
    assert out.dtype == torch.bfloat16
    want = agent_attention(*(t.double() for t in (q, k, v, agent)), **bias, backend="reference")
    assert rel_error(out, want) < 3e-2  # the inputs are rounded too
