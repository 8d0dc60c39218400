"""Neighborhood and halo attention: recorded outputs, dense masks, timm's module, limits, errors."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zoo_kernels.dispatch import BackendError, explain
from zoo_kernels.neighborhood_attention import eager, halo_attention, neighborhood_attention
from zoo_kernels.neighborhood_attention.tiles import make_plan
from zoo_kernels.testing import assert_close, check_against_reference

FIXTURES = Path(os.environ.get("ZOO_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared/conformance")) / "nat"
BACKENDS = ("reference", "eager", "triton")
RECORDED = (
    "op_gna2d_even_kernel_stride",
    "op_gna2d_stride2",
    "op_na1d_k3",
    "op_na1d_k3_d2_causal",
    "op_na1d_k5_d2",
    "op_na1d_k7_rpb",
    "op_na2d_k3",
    "op_na2d_k3_d2_rpb",
    "op_na2d_k5",
    "op_na2d_k5_d2_rpb",
    "op_na2d_k7_d2",
    "op_na2d_k7_rpb",
    "op_na2d_rect_mixed_causal",
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(*shape: int) -> tuple[torch.Tensor, ...]:
    return tuple(randn(*shape, seed=i) for i in range(3))


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str, backend: str, device: str) -> None:
    path = FIXTURES / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is absent: set ZOO_CONFORMANCE to the folder of the recorded outputs")
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        kwargs = json.loads(f.metadata()["kwargs"])
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (no mapping)
    inputs = {
        key[6:]: t.to(device if backend == "triton" else "cpu") for key, t in tensors.items() if key[:5] == "input"
    }
    out = neighborhood_attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        kernel_size=kwargs["kernel_size"],
        dilation=kwargs["dilation"],
        stride=kwargs["stride"],
        causal=kwargs["is_causal"],
        bias=inputs.get("rpb"),
        scale=kwargs["scale"],
        backend=backend,
    )
    assert_close(name, out.cpu(), tensors["output/out"], torch.float32)


def dense_mask(length: int, kernel: int, dilation: int) -> torch.Tensor:
    """[length, length], written from the description: the window is centred, and shifted by whole steps at a border."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for x in range(length):
        group = [y for y in range(length) if y % dilation == x % dilation]
        centre = group.index(x)
        best = min((sum(abs(i - centre) for i in range(s, s + kernel)), s) for s in range(len(group) - kernel + 1))
        mask[x, group[best[1] : best[1] + kernel]] = True
    return mask


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("kernel,dilation", [(3, 1), (5, 2), (13, 1), (7, 3)])
def test_equals_dense_attention_under_a_mask(kernel: int, dilation: int, backend: str) -> None:
    height, width = 23, 21
    q, k, v = qkv(1, height, width, 2, 4)
    rows, columns = dense_mask(height, kernel, dilation), dense_mask(width, kernel, dilation)
    mask = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(height * width, height * width)
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    want = F.scaled_dot_product_attention(*flat, attn_mask=mask).transpose(1, 2).reshape(q.shape)
    got = neighborhood_attention(q, k, v, kernel_size=kernel, dilation=dilation, backend=backend)
    assert_close("output", got, want)


def test_whole_map_as_window_is_plain_attention() -> None:
    q, k, v = qkv(2, 7, 7, 2, 4)
    flat = [t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
    want = F.scaled_dot_product_attention(*flat).transpose(1, 2).reshape(q.shape)
    assert_close("output", neighborhood_attention(q, k, v, kernel_size=7), want)


@pytest.mark.usefixtures("triton_works")
def test_triton_sums_the_bias_gradient_over_the_batch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with one multiprocessor a program goes through several images, and a part has more than one."""
    from zoo_kernels.neighborhood_attention import triton as module

    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    q, k, v = (t.to(device) for t in qkv(3, 5, 11, 1, 4))
    kwargs = {"kernel_size": 3, "bias": randn(1, 5, 5).to(device)}
    check_against_reference(neighborhood_attention, (q, k, v), kwargs, backend="triton", dtype=torch.float32)


@pytest.mark.usefixtures("triton_works")
def test_triton_volume_of_many_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of several tiles and dilation groups of unequal length on every axis, the bias summed over two images."""
    from zoo_kernels.neighborhood_attention import triton as module

    monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    q, k, v = (t.to(device) for t in qkv(2, 5, 9, 19, 1, 4))
    kwargs = {"kernel_size": (2, 3, 5), "dilation": (2, 1, 2), "bias": randn(1, 3, 5, 9).to(device)}
    check_against_reference(neighborhood_attention, (q, k, v), kwargs, backend="triton", dtype=torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_large_logits(dtype: torch.dtype, backend: str, device: str) -> None:
    q, k, v = (t.to(device if backend == "triton" else "cpu") for t in qkv(1, 5, 6, 1, 4))
    # Powers of two, so that the products are exact and the largest logit of a row is the same in every dtype.
    q, k = torch.exp2(q.mul(2).round()) * 64, torch.exp2(k.mul(2).round()) * 64
    check_against_reference(
        neighborhood_attention, (q, k, v), {"kernel_size": 3, "scale": 1.0}, backend=backend, dtype=dtype, grads=False
    )


@pytest.mark.parametrize("name", ["chunks", "one-gather"])
def test_eager_without_and_with_autograd_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(2, 20, 17, 2, 4)
    want = neighborhood_attention(q, k, v, kernel_size=5, backend="reference")
    monkeypatch.setattr(eager, "CHUNK_BYTES", 1)
    with torch.set_grad_enabled(name == "one-gather"):
        assert_close(name, neighborhood_attention(q, k, v, kernel_size=5, backend="eager"), want)


def test_plans_have_few_masks_at_any_size() -> None:
    small = make_plan((56, 56), (7, 7), (1, 1), (1, 1), (False, False))
    large = make_plan((224, 224), (7, 7), (1, 1), (1, 1), (False, False))
    assert len(large.relative) <= 16
    assert large.T * large.S <= 2 * small.T * small.S
    assert large.key_index.size <= 1.1 * 16 * small.key_index.size


def test_tables_made_in_inference_mode_serve_training() -> None:
    eager._tables.clear()
    q, k, v = qkv(1, 9, 8, 1, 4)
    with torch.inference_mode():
        neighborhood_attention(q, k, v, kernel_size=3)
    q.requires_grad_(True)
    neighborhood_attention(q, k, v, kernel_size=3).sum().backward()
    assert bool(torch.isfinite(q.grad).all())


def test_table_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "CACHED", 2)
    eager._tables.clear()
    for width in (5, 6, 7, 8):
        neighborhood_attention(*qkv(1, 5, width, 1, 4), kernel_size=3)
    assert len(eager._tables) == 2


@pytest.mark.parametrize("kwargs", [{"kernel_size": 3}, {"kernel_size": (3, 2), "causal": (True, False)}])
def test_gradcheck(kwargs: dict) -> None:
    sides = kwargs["kernel_size"] if isinstance(kwargs["kernel_size"], tuple) else (3, 3)
    args = [t.requires_grad_(True) for t in (*qkv(1, 3, 4, 1, 2), randn(1, *(2 * s - 1 for s in sides)))]
    for backend in ("reference", "eager"):

        def call(q, k, v, bias, backend=backend):
            return neighborhood_attention(q, k, v, bias=bias, **kwargs, backend=backend)

        assert torch.autograd.gradcheck(call, args)


def axis(draw: st.DrawFn) -> tuple[int, int, int, int, bool]:
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    return (
        draw(st.integers(kernel * dilation, kernel * dilation + 7)),
        kernel,
        dilation,
        draw(st.integers(1, kernel)),
        draw(st.booleans()),
    )


@st.composite
def geometries(draw: st.DrawFn, most: int) -> list[tuple[int, int, int, int, bool]]:
    return [axis(draw) for _ in range(draw(st.integers(1, most)))]


def run(geometry: list[tuple[int, int, int, int, bool]], backend: str, dtype: torch.dtype) -> torch.Tensor:
    spatial, kernel, dilation, stride, causal = zip(*geometry)
    on = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    q, k, v = (t.to(on, dtype) for t in qkv(1, *spatial, 1, 3))
    bias = randn(1, *(2 * s - 1 for s in kernel)).to(on, dtype)
    return neighborhood_attention(
        q, k, v, kernel_size=kernel, dilation=dilation, stride=stride, causal=causal, bias=bias, backend=backend
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(geometry=geometries(3))
def test_any_geometry(geometry: list[tuple[int, int, int, int, bool]]) -> None:
    assume(torch.Size(side for side, *_ in geometry).numel() <= 1500)
    want = run(geometry, "reference", torch.float64)
    assert_close("with autograd", run(geometry, "eager", torch.float64), want)
    with torch.no_grad():
        assert_close("without", run(geometry, "eager", torch.float64), want)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(geometry=geometries(3))
@pytest.mark.usefixtures("triton_works")
def test_any_geometry_on_triton(geometry: list[tuple[int, int, int, int, bool]]) -> None:
    assume(torch.Size(side for side, *_ in geometry).numel() <= 600)
    want = run(geometry, "reference", torch.float64)
    assert_close("output", run(geometry, "triton", torch.float32), want, torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 4, "halo_size": 1},
        {"block_size": 4, "halo_size": 3, "scale_pos_embed": True},
        {"block_size": 4, "halo_size": 2, "stride": 2},
    ],
)
def test_halo_equals_timm(options: dict, backend: str, device: str) -> None:
    from timm.layers.halo_attn import HaloAttn

    torch.manual_seed(0)
    module = HaloAttn(16, num_heads=2, **options).double()
    for p in module.parameters():
        torch.nn.init.normal_(p)
    x = randn(2, 16, 12, 8)

    def heads(t: torch.Tensor) -> torch.Tensor:
        """[B, heads * d, H, W] -> [B, H, W, heads, d]."""
        return t.unflatten(1, (2, -1)).permute(0, 3, 4, 1, 2)

    # timm packs keys and values head by head.
    k, v = heads(module.kv(x)).split([module.dim_head_qk, module.dim_head_v], -1)
    tables = {"rel_height": module.pos_embed.height_rel, "rel_width": module.pos_embed.width_rel}
    q, dtype = heads(module.q(x)), torch.float64
    if backend == "triton":
        dtype = torch.float32
        q, k, v = (t.to(device, dtype) for t in (q, k, v))
        tables = {name: t.to(device, dtype) for name, t in tables.items()}
    out = halo_attention(
        q,
        k,
        v,
        block_size=options["block_size"],
        halo_size=options["halo_size"],
        **tables,
        scale_position=options.get("scale_pos_embed", False),
        backend=backend,
    )
    assert_close("halo", out.permute(0, 3, 4, 1, 2).flatten(1, 2).cpu(), module(x), dtype)


@pytest.mark.usefixtures("triton_works")
def test_halo_on_triton_over_many_tiles(device: str) -> None:
    """A block of more queries and keys than a tile, and a halo that reaches two blocks far; one table only."""
    for size, halo, side in ((9, 1, 18), (2, 3, 6)):
        q, k, v = (t.to(device) for t in qkv(1, side, side, 1, 4))
        kwargs = {"block_size": size, "halo_size": halo, "rel_width": randn(2 * (size + 2 * halo) - 1, 4).to(device)}
        check_against_reference(halo_attention, (q, k, v), kwargs, backend="triton", dtype=torch.float32)


def test_halo_gradcheck() -> None:
    args = [t.requires_grad_(True) for t in (*qkv(1, 4, 2, 1, 2), randn(7, 2), randn(7, 2, seed=1))]
    for backend in ("reference", "eager"):

        def call(q, k, v, rh, rw, backend=backend):
            return halo_attention(q, k, v, block_size=2, halo_size=1, rel_height=rh, rel_width=rw, backend=backend)

        assert torch.autograd.gradcheck(call, args)


def test_explain_names_the_reasons() -> None:
    q, k, v = (t.float() for t in qkv(1, 3, 3, 1, 160))
    lines = {line.backend: line for line in explain("neighborhood_attention", q, k, v, kernel_size=3)}
    assert lines["eager"].chosen
    assert lines["triton"].reason


@pytest.mark.usefixtures("triton_works")
def test_triton_says_what_it_cannot_do(device: str) -> None:
    q = torch.zeros(1, 2, 2, 1, 4, device=device)
    with pytest.raises(BackendError, match="the window of 66 positions exceeds 64"):
        halo_attention(q, q, q, block_size=2, halo_size=32, backend="triton")
    with pytest.raises(BackendError, match="head_dim 160 exceeds 128"):
        neighborhood_attention(*(torch.zeros(1, 3, 3, 1, 160, device=device),) * 3, kernel_size=3, backend="triton")


MAP = (1, 6, 7, 2, 4)


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"q": torch.zeros(6, 7, 4)}, ValueError, "q has 3 dimensions"),
        (
            {"k": torch.zeros(1, 6, 7, 3, 4), "v": torch.zeros(1, 6, 7, 3, 4)},
            ValueError,
            "k is .* heads must be the same",
        ),
        ({"k": torch.zeros(1, 6, 7, 2, 5), "v": torch.zeros(1, 6, 7, 2, 5)}, ValueError, "k is .* head_dim"),
        ({"v": torch.zeros(1, 6, 8, 2, 4)}, ValueError, "v is .* all but the last size"),
        ({"v": torch.zeros(MAP, dtype=torch.float64)}, TypeError, "v is torch.float64"),
        ({"q": torch.zeros(MAP, dtype=torch.int32)}, TypeError, "q is torch.int32"),
        ({"kernel_size": 7}, ValueError, "kernel_size=7 \\* dilation=1 = 7 exceeds the map's 6 positions on axis 0"),
        ({"dilation": (1, 3)}, ValueError, "kernel_size=3 \\* dilation=3 = 9 exceeds the map's 7 positions on axis 1"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size=\\(3, 3, 3\\): accepted is .* 2 of them"),
        ({"kernel_size": 0}, ValueError, "kernel_size=0"),
        ({"dilation": 0}, ValueError, "dilation=0"),
        ({"stride": 4}, ValueError, "stride=\\(4, 4\\): on axis 0 it exceeds kernel_size=3"),
        ({"causal": (True,)}, ValueError, "causal=\\(True,\\)"),
        ({"bias": torch.zeros(2, 3, 3)}, ValueError, "bias is \\(2, 3, 3\\).*\\(2, 5, 5\\)"),
        ({"bias": torch.zeros(2, 5, 5, dtype=torch.float64)}, TypeError, "bias is torch.float64"),
    ],
)
def test_errors(change: dict, error: type[Exception], words: str) -> None:
    call = {"kernel_size": 3} | {name: torch.zeros(MAP) for name in "qkv"} | change
    with pytest.raises(error, match=words):
        neighborhood_attention(call.pop("q"), call.pop("k"), call.pop("v"), **call)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"q": torch.zeros(1, 6, 4)}, "q has 3 dimensions"),
        ({"block_size": 4}, "k's map 6x6 is no multiple of block_size=4"),
        ({"halo_size": -1}, "halo_size=-1"),
        ({"q": torch.zeros(1, 4, 4, 2, 4)}, "q's map 4x4 must be k's map 6x6 divided by a whole number"),
        ({"q": torch.zeros(1, 3, 3, 2, 4)}, "divides block_size=3"),
        ({"rel_height": torch.zeros(4, 4)}, "rel_height is \\(4, 4\\)"),
        ({"k": torch.zeros(1, 6, 6, 3, 4), "v": torch.zeros(1, 6, 6, 3, 4)}, "k is .* heads"),
    ],
)
def test_halo_errors(change: dict, words: str) -> None:
    call = {"block_size": 3, "halo_size": 1} | {name: torch.zeros(1, 6, 6, 2, 4) for name in "qkv"} | change
    with pytest.raises(ValueError, match=words):
        halo_attention(call.pop("q"), call.pop("k"), call.pop("v"), **call)


def test_autocast_takes_a_float32_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 6, 7, 2, 8, generator=generator).bfloat16() for _ in range(3))
    bias = torch.randn(2, 5, 5, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = neighborhood_attention(q, k, v, kernel_size=3, bias=bias)
    expected = neighborhood_attention(q.float(), k.float(), v.float(), kernel_size=3, bias=bias)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 0.02 * expected.norm()
    with pytest.raises(TypeError, match="bias"):
        neighborhood_attention(q, k, v, kernel_size=3, bias=bias)
