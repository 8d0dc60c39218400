"""Routed attention: what the generic operator tests do not reach."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from zoo_kernels.dispatch import BackendError
from zoo_kernels.routed_attention import attention_matrix, check_indices, eager, route_regions, routed_attention
from zoo_kernels.testing import TOLERANCE, assert_close, check_against_reference, rel_error

BACKENDS = ("reference", "eager", "triton")


def inputs(b=1, r=3, s=3, nq=4, nk=4, h=2, dk=8, dv=8, topk=2, *, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for shape in ((b, r, nq, h, dk), (b, s, nk, h, dk), (b, s, nk, h, dv))
    )
    indices = torch.rand(b, r, s, generator=g).topk(topk, -1).indices
    weights = torch.rand(b, r, topk, generator=g, dtype=torch.float64).to(dtype) + 0.1
    return q, k, v, indices, weights


def region_by_region(q, k, v, indices, weights=None, scale=None):
    """Independent of the reference: a loop over samples and regions."""
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for b, r in itertools.product(range(q.shape[0]), range(q.shape[1])):
        keys, values = [], []
        for t, source in enumerate(indices[b, r].tolist()):
            w = 1 if weights is None else weights[b, r, t]
            keys.append(k[b, source] * w)
            values.append(v[b, source] * w)
        parts = [x.transpose(0, 1) for x in (q[b, r], torch.cat(keys), torch.cat(values))]  # [h, tokens, d]
        out[b, r] = F.scaled_dot_product_attention(*parts, scale=scale).transpose(0, 1)
    return out


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [{}, {"b": 2, "r": 4, "s": 5, "nq": 7, "nk": 2, "dv": 12, "topk": 3}])
def test_reference_is_a_loop_over_regions(shape, soft):
    q, k, v, indices, weights = inputs(**shape)
    weights = weights if soft else None
    want = region_by_region(q, k, v, indices, weights, scale=0.3)
    got = routed_attention(q, k, v, indices, weights=weights, scale=0.3, backend="reference")
    assert rel_error(got, want) < 1e-12


def test_all_regions_is_ordinary_attention():
    q, k, v, _, _ = inputs(b=2, r=4, s=4, nq=5, nk=5, topk=4)
    indices = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(8)])
    q_, k_, v_ = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(q_, k_, v_).transpose(1, 2).reshape(q.shape)
    for backend in ("reference", "eager"):
        assert rel_error(routed_attention(q, k, v, indices.view(2, 4, 4), backend=backend), want) < 1e-12


def test_reference_gradcheck():
    q, k, v, indices, weights = (t.requires_grad_() if t.is_floating_point() else t for t in inputs(nq=2, nk=2, dk=3))
    assert torch.autograd.gradcheck(
        lambda q, k, v, w: routed_attention(q, k, v, indices, weights=w, backend="reference"), (q, k, v, weights)
    )


def test_attention_matrix_gives_the_output():
    q, k, v, indices, _ = inputs(b=2, nk=3)
    attention = attention_matrix(q, k, indices)  # [B*R, h, Nq, topk*Nk]
    assert attention.shape == (6, 2, 4, 6)
    assert torch.allclose(attention.sum(-1), torch.ones((), dtype=q.dtype))
    gathered = torch.stack([v[b][indices[b]] for b in range(2)]).flatten(2, 3)  # [B, R, topk*Nk, h, dv]
    out = torch.einsum("brhqk,brkhd->brqhd", attention.unflatten(0, (2, 3)), gathered)
    assert rel_error(routed_attention(q, k, v, indices), out) < 1e-12


# --- the eager forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("nq", [3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_without_gradient(monkeypatch, nq, soft, dtype):
    q, k, v, indices, weights = inputs(b=2, r=9, s=9, nq=nq, nk=6, topk=2, dtype=dtype)
    weights = weights if soft else None
    pieces = []
    for name in ("_rows", "_products"):
        inner = getattr(eager, name)
        monkeypatch.setattr(eager, name, lambda *a, inner=inner: pieces.append(a[0].shape[0]) or inner(*a))
    monkeypatch.setattr(eager, "CHUNK_BYTES", 5 * 2 * (k[:1, 0].numel() + v[:1, 0].numel()) * q.element_size())
    with torch.no_grad():
        got = routed_attention(q, k, v, indices, weights=weights, backend="eager")
    heads = 2 if nq == 3 and dtype == torch.float32 else 1
    assert pieces == [5 * heads] * 3 + [3 * heads]  # 18 query regions, 5 a piece
    double = None if weights is None else weights.double()
    want = routed_attention(q.double(), k.double(), v.double(), indices, weights=double, backend="reference")
    assert_close("output", got, want, dtype)


@pytest.mark.parametrize("grad", [False, True])
def test_dense_form(monkeypatch, grad):
    """Few tokens a region and many regions routed; a region named twice still counts twice."""
    q, k, v, indices, _ = inputs(b=2, r=5, s=5, nq=2, nk=2, topk=4, dtype=torch.float32)
    indices[:, 1, :3] = 3
    monkeypatch.setattr(eager, "_rows", None)
    monkeypatch.setattr(eager, "_chunks", None)
    if grad:
        check_against_reference(routed_attention, (q, k, v, indices), backend="eager", dtype=torch.float32)
    else:
        got = routed_attention(q, k, v, indices, backend="eager")
        assert_close("output", got, region_by_region(q.double(), k.double(), v.double(), indices))


def test_dense_form_is_bounded():
    q = torch.empty(1, 4096, 1, 1, 1)
    assert not eager._dense_is_cheaper(q, q, 4096, training=True)
    q = torch.empty(1, 49, 4, 1, 1)
    assert eager._dense_is_cheaper(q, q, 16, training=True)
    assert not eager._dense_is_cheaper(q, q, 16, training=False)


# --- all backends ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft", [False, True])
def test_huge_logits(backend, soft, device):
    q, k, v, indices, weights = (
        t.to(device if backend == "triton" else "cpu") for t in inputs(r=2, nq=3, nk=3, h=1, dtype=torch.float32)
    )
    q, k = q * 100, k * 100
    q.requires_grad_()
    out = routed_attention(q, k, v, indices, weights=weights if soft else None, scale=1.0, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert torch.isfinite(out).all()
    assert torch.isfinite(grad).all()
    assert rel_error(out, region_by_region(*(t.detach().cpu().double() if t.is_floating_point() else t.cpu()
                     for t in (q, k, v, indices)), weights.cpu().double() if soft else None, 1.0)) < 1e-4  # fmt: skip


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("nq,nk", [(70, 5), (5, 70)])
def test_triton_with_several_tiles(nq, nk, dtype, device):
    """More queries and more keys than one tile, unequal popularity of the key regions, one of them unused."""
    q, k, v, _, weights = inputs(r=2, s=3, nq=nq, nk=nk, h=1, dk=20, dv=12, dtype=torch.float32)
    indices = torch.tensor([[[2, 0], [2, 2]]])
    args = tuple(t.to(device) for t in (q, k, v, indices))
    check_against_reference(routed_attention, args, {"weights": weights.to(device)}, backend="triton", dtype=dtype)


@pytest.mark.usefixtures("triton_works")
def test_triton_takes_packed_views(device):
    """q, k, v as views of one projection, as the mixers have them; the gradient reaches the packed tensor."""
    qkv = torch.randn(2, 2, 6, 3, 2, 8, generator=torch.Generator().manual_seed(0)).to(device)
    indices = torch.tensor([[[1], [0]], [[1], [1]]]).to(device)
    grads = []
    for backend in ("reference", "triton"):
        leaf = qkv.clone().requires_grad_()
        out = routed_attention(*leaf.unbind(3), indices, backend=backend)
        grads.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    assert rel_error(grads[1], grads[0]) < TOLERANCE[torch.float32]


@pytest.mark.usefixtures("triton_works")
def test_triton_operators_are_registered(device):
    from zoo_kernels.routed_attention import triton as backend

    q, k, v, indices, weights = (t.to(device) for t in inputs(r=2, s=2, nq=2, nk=2, h=1, topk=1, dtype=torch.float32))
    args = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), indices, weights.requires_grad_(), 0.5)
    torch.library.opcheck(backend._forward, args)
    call = torch.compile(routed_attention, fullgraph=True, backend="aot_eager")
    got = call(q, k, v, indices, weights=weights, backend="triton")
    assert rel_error(got, routed_attention(q, k, v, indices, weights=weights)) < 1e-5


@pytest.mark.usefixtures("triton_works")
def test_inverse_lists():
    from zoo_kernels.routed_attention.triton import inverse_lists

    indices = torch.tensor([[[0, 2], [2, 1]], [[2, 2], [0, 2]]])
    order, first = inverse_lists(indices, 3)
    lists = [order[a:b].tolist() for a, b in itertools.pairwise(first.tolist())]
    assert lists == [[0], [3], [1, 2], [6], [], [4, 5, 7]]
    assert order.dtype == first.dtype == torch.int32


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 2), r=st.integers(1, 5), s=st.integers(1, 5), nq=st.integers(1, 18), nk=st.integers(1, 6),
    h=st.integers(1, 3), dk=st.integers(1, 9), dv=st.integers(1, 9), share=st.floats(0, 1), soft=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_eager_at_any_shape(b, r, s, nq, nk, h, dk, dv, share, soft, seed):
    topk = 1 + round(share * (s - 1))
    q, k, v, indices, weights = inputs(b, r, s, nq, nk, h, dk, dv, topk, seed=seed)
    kwargs = {"weights": weights} if soft else {}
    check_against_reference(routed_attention, (q, k, v, indices), kwargs, backend="eager", dtype=torch.float64)
    with torch.no_grad():
        got = routed_attention(q, k, v, indices, **kwargs)
    assert rel_error(got, region_by_region(q, k, v, indices, kwargs.get("weights"))) < 1e-10


@pytest.mark.usefixtures("triton_works")
@settings(max_examples=4, deadline=None, derandomize=True)
@given(nq=st.integers(1, 9), nk=st.integers(1, 9), d=st.integers(1, 20), topk=st.integers(1, 2), seed=st.integers(0, 9))
def test_triton_at_any_shape(nq, nk, d, topk, seed):
    q, k, v, indices, weights = inputs(1, 2, 2, nq, nk, 1, d, d, topk, dtype=torch.float32, seed=seed)
    if torch.cuda.is_available():
        q, k, v, indices, weights = (t.cuda() for t in (q, k, v, indices, weights))
    check_against_reference(
        routed_attention, (q, k, v, indices), {"weights": weights}, backend="triton", dtype=torch.float32
    )


# --- routing and errors ----------------------------------------------------------------------------------------------


def test_route_regions():
    q = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    k = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 3.0]]], requires_grad=True)
    indices, logits = route_regions(q, k, 2, scale=0.5)
    assert indices.tolist() == [[[0, 1], [2, 1]]]
    assert logits.tolist() == [[[0.5, 0.0], [3.0, 1.0]]]
    assert indices.dtype == torch.int64
    logits.sum().backward()
    assert k.grad.tolist() == [[[0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]]


@pytest.mark.parametrize("topk", [0, 4])
def test_route_regions_refuses_topk(topk):
    with pytest.raises(ValueError, match=f"topk={topk}.*1 .. 3"):
        route_regions(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4), topk, scale=1.0)


@pytest.mark.parametrize("shapes", [((2, 4), (1, 2, 4)), ((1, 2, 4), (2, 2, 4)), ((1, 2, 4), (1, 2, 5))])
def test_route_regions_refuses_shapes(shapes):
    with pytest.raises(ValueError, match="q_region"):
        route_regions(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 1, scale=1.0)


@pytest.mark.parametrize(
    "change,error,text",
    [
        ({"q": lambda t: t[0]}, ValueError, "q has shape .* five dimensions"),
        ({"k": lambda t: t.repeat(2, 1, 1, 1, 1)}, ValueError, "batch"),
        ({"v": lambda t: t[:, :, :3]}, ValueError, "tokens of k and v"),
        ({"k": lambda t: t[:, :, :, :1], "v": lambda t: t[:, :, :, :1]}, ValueError, "heads .* q has 2, k has 1"),
        ({"k": lambda t: t[..., :4]}, ValueError, "head_dim .* of q is 8 and of k 4"),
        ({"k": lambda t: t.half()}, TypeError, "k has dtype torch.float16 but q has torch.float32"),
        ({"q": lambda t: t.long()}, TypeError, "q has dtype torch.int64"),
        ({"indices": lambda t: t.float()}, TypeError, "indices has dtype"),
        ({"indices": lambda t: t[:, :2]}, ValueError, r"indices has shape .*\[1, 3, topk\]"),
        ({"indices": lambda t: t.repeat(1, 1, 2)}, ValueError, "topk=4: .*3"),
        ({"indices": lambda t: t[..., :0]}, ValueError, "topk=0"),
        ({"weights": lambda t: t[..., :1]}, ValueError, "weights has shape"),
        ({"k": lambda t: t[:, :, :0], "v": lambda t: t[:, :, :0]}, ValueError, "0 tokens"),
    ],
)
def test_refuses(change, error, text):
    made = dict(zip(("q", "k", "v", "indices", "weights"), inputs(dtype=torch.float32)))
    made.update({name: edit(made[name]) for name, edit in change.items()})
    with pytest.raises(error, match=text):
        routed_attention(**made)


def test_index_out_of_range_is_found_by_the_reference():
    q, k, v, indices, _ = inputs()
    indices[0, 0, 0] = 3
    with pytest.raises(IndexError, match=r"accepted are 0 \.\. 2"):
        routed_attention(q, k, v, indices, backend="reference")
    with pytest.raises(IndexError, match=r"accepted are 0 \.\. 2"):
        check_indices(indices, 3)


@pytest.mark.usefixtures("triton_works")
def test_triton_says_why_not(device):
    q, k, v, indices, _ = (t.to(device) for t in inputs(dk=130, dv=4, dtype=torch.float32))
    with pytest.raises(BackendError, match="head_dim of k is 130, the kernels take at most 128"):
        routed_attention(q, k, v, indices, backend="triton")
    with pytest.raises(BackendError, match="float64"):
        routed_attention(q.double(), k.double(), v.double(), indices, backend="triton")


def test_autocast_takes_mixed_types():
    q, k, v, indices, weights = inputs(nq=20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = routed_attention(q, k.bfloat16(), v.bfloat16(), indices, weights=weights)
    assert out.dtype == torch.bfloat16
    want = routed_attention(q.double(), k.double(), v.double(), indices, weights=weights.double())
    assert rel_error(out, want) < 2e-2  # the inputs are rounded too
