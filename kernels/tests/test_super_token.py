"""Super tokens against recorded results, the float64 reference and the formulation with unfold, and their edges."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from zoo_kernels.dispatch import BackendError, explain
from zoo_kernels.super_token import back_project, eager, super_token
from zoo_kernels.testing import assert_close, check_against_reference

FIXTURES = (
    Path(os.environ.get("ZOO_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance")) / "stvit"
)
BACKENDS = ("reference", "eager", "triton")

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the conformance fixtures are absent")


def device_of(backend: str, device: str) -> str:
    return device if backend == "triton" else "cpu"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refine(tokens: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    """What the recorded module does between association and back-projection; tokens [B, hh, ww, C]."""
    b, hh, ww, c = tokens.shape
    if "stoken_refine.qkv.weight" in state:  # attention; the channels of qkv are head by head
        qkv = F.linear(tokens, state["stoken_refine.qkv.weight"][..., 0, 0], state.get("stoken_refine.qkv.bias"))
        q, k, v = qkv.view(b, hh * ww, heads, 3, c // heads).permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, hh, ww, c)
        return F.linear(mixed, state["stoken_refine.proj.weight"][..., 0, 0], state["stoken_refine.proj.bias"])
    if "stoken_refine.0.weight" in state:  # convolutions
        t = tokens.permute(0, 3, 1, 2)
        for i, extra in enumerate(({}, {"padding": 2, "groups": c}, {})):
            t = F.conv2d(t, state[f"stoken_refine.{i}.weight"], state[f"stoken_refine.{i}.bias"], **extra)
        return t.permute(0, 2, 3, 1)
    return tokens


@needs_fixtures
@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "recorded",
    ["stoken_attention", "stoken_attention_conv_refine", "stoken_attention_no_refine", "stoken_attention_pad"],
)
def test_recorded_module(recorded: str, backend: str, device: str) -> None:
    where = device_of(backend, device)
    with safe_open(FIXTURES / f"{recorded}.safetensors", "pt") as f:
        t = {k: f.get_tensor(k).to(where) for k in f.keys()}  # noqa: SIM118, a handle is no dict
        kwargs = json.loads(f.metadata()["kwargs"])
    state = {k[6:]: v for k, v in t.items() if k.startswith("state/")}
    x = t["input/x"].permute(0, 2, 3, 1)
    cell = tuple(kwargs["stoken_size"])
    tokens, affinity = super_token(x, cell=cell, iterations=kwargs["n_iter"], backend=backend)
    tokens = refine(tokens, state, kwargs["num_heads"])
    y = back_project(tokens, affinity, cell=cell, size=x.shape[1:3], backend=backend)
    assert_close("out", y.permute(0, 3, 1, 2), t["output/out"])


def by_unfold(x: Tensor, cell: tuple[int, int], iterations: int) -> Tensor:
    """The paper's formulation with F.unfold and F.fold on whole cells, affinities constant: [B,H,W,C] -> [B,H,W,C]."""
    b, h, w, c = x.shape
    hh, ww = h // cell[0], w // cell[1]
    pixels = x.view(b, hh, cell[0], ww, cell[1], c).permute(0, 1, 3, 2, 4, 5).reshape(b, hh * ww, -1, c)
    tokens = pixels.mean(2).transpose(1, 2).reshape(b, c, hh, ww)

    def near(t: Tensor) -> Tensor:
        return F.unfold(t, 3, padding=1).view(b, c, 9, hh * ww).permute(0, 3, 2, 1)  # [B, cells, 9, C]

    def fold(t: Tensor) -> Tensor:  # [B, cells, 9, n] -> [B, n, hh, ww]
        return F.fold(t.permute(0, 3, 2, 1).reshape(b, -1, hh * ww), (hh, ww), 3, padding=1)

    for _ in range(iterations):
        with torch.no_grad():
            affinity = (pixels @ near(tokens).transpose(2, 3) * c**-0.5).softmax(-1)  # [B, cells, P, 9]
            total = fold(affinity.sum(2)[..., None])
        tokens = fold(affinity.transpose(2, 3) @ pixels) / (total + 1e-12)
    y = affinity @ near(tokens)
    return y.view(b, hh, ww, *cell, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iterations", [1, 2])
def test_equals_unfold_with_constant_affinities(iterations: int, backend: str, device: str) -> None:
    """Output and gradient by the authors' rule, that affinities are not differentiated."""
    x, cell = normal(2, 6, 6, 5), (3, 2)
    want_x = x.double().requires_grad_()
    want = by_unfold(want_x, cell, iterations)
    got_x = x.to(device_of(backend, device)).requires_grad_()
    tokens, affinity = super_token(got_x, cell=cell, iterations=iterations, backend=backend)
    assert tokens.requires_grad
    assert not affinity.requires_grad
    got = back_project(tokens, affinity, cell=cell, size=(6, 6), backend=backend)
    seed = normal(*want.shape, seed=1)
    assert_close("output", got, want)
    (grad,) = torch.autograd.grad(got, got_x, seed.to(got.device))
    assert_close("gradient", grad, torch.autograd.grad(want, want_x, seed.double())[0])


@pytest.mark.parametrize("iterations", [1, 2])
def test_reference_gradcheck(iterations: int) -> None:
    x = normal(1, 3, 4, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: super_token(t, cell=2, iterations=iterations, affinity_grad=True, backend="reference"), x
    )
    tokens, affinity = normal(1, 2, 2, 3, seed=1), normal(1, 2, 2, 9, 4, seed=2)
    assert torch.autograd.gradcheck(
        lambda s, a: back_project(s, a, cell=2, size=(3, 4), backend="reference"),
        (tokens.double().requires_grad_(), affinity.double().requires_grad_()),
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    size=st.tuples(*(st.integers(1, 9) for _ in range(2))),
    cell=st.tuples(*(st.integers(1, 5) for _ in range(2))),
    channels=st.integers(1, 6),
    iterations=st.integers(1, 3),
    affinity_grad=st.booleans(),
)
def test_any_shape(
    size: tuple[int, int], cell: tuple[int, int], channels: int, iterations: int, affinity_grad: bool
) -> None:
    kwargs = {"cell": cell, "iterations": iterations, "affinity_grad": affinity_grad}
    check_against_reference(super_token, (normal(2, *size, channels),), kwargs, backend="eager", dtype=torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
def test_meaning(backend: str, device: str) -> None:
    """Affinities of a pixel sum to one; identical pixels give tokens like them inside, and come back as they were."""
    where = device_of(backend, device)
    x = normal(1, 1, 1, 4).expand(1, 10, 10, 4).to(where)
    tokens, affinity = super_token(x, cell=2, backend=backend)
    torch.testing.assert_close(affinity.sum(3), torch.ones(1, 5, 5, 4, device=where))
    torch.testing.assert_close(tokens, x[:, :5, :5])
    y = back_project(tokens, affinity, cell=2, size=(10, 10), backend=backend)
    torch.testing.assert_close(y[:, 2:-2, 2:-2], x[:, 2:-2, 2:-2])


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
def test_cell_larger_than_the_map(backend: str, device: str) -> None:
    """Padding counts in the mean and in the sums, as in a map that has those zeros."""
    where = device_of(backend, device)
    x = normal(1, 3, 2, 4).to(where)
    tokens, affinity = super_token(x, cell=(4, 5), backend=backend)
    padded, padded_affinity = super_token(F.pad(x, (0, 0, 0, 3, 0, 1)), cell=(4, 5), backend=backend)
    assert tokens.shape == (1, 1, 1, 4)
    torch.testing.assert_close(tokens, padded)
    torch.testing.assert_close(affinity, padded_affinity)
    assert back_project(tokens, affinity, cell=(4, 5), size=(3, 2), backend=backend).shape == (1, 3, 2, 4)


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("affinity_grad", [False, True])
def test_pixels_in_steps(affinity_grad: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton kernels where a cell has more pixels than a step, and not a multiple of it."""
    from zoo_kernels.super_token import triton

    monkeypatch.setattr(triton, "_tile", lambda *call: {"CP": 16, "BP": 16, "num_warps": 4})
    kwargs = {"cell": (5, 7), "affinity_grad": affinity_grad}
    check_against_reference(
        super_token, (normal(1, 6, 7, 5).to(device),), kwargs, backend="triton", dtype=torch.float32
    )
    tokens, affinity = normal(1, 2, 1, 6, seed=1).to(device), normal(1, 2, 1, 9, 35, seed=2).to(device)
    check_against_reference(
        back_project, (tokens, affinity), {"cell": (5, 7), "size": (6, 7)}, backend="triton", dtype=torch.float32
    )


def test_rows_in_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients a large map goes back a few rows of cells at a time."""
    tokens, affinity = normal(2, 5, 3, 6), normal(2, 5, 3, 9, 4, seed=1)
    want = back_project(tokens, affinity, cell=2, size=(9, 6), backend="reference")
    monkeypatch.setattr(eager, "_STEP", 150)
    with torch.no_grad():
        assert len(eager._steps(10, 72)) == 5
        got = back_project(tokens, affinity, cell=2, size=(9, 6), backend="eager")
        x = normal(2, 10, 6, 6, seed=2)
        assert len(eager._steps(10, 72)) > 1
        pairs = zip(*(super_token(x, cell=2, iterations=2, backend=b) for b in ("eager", "reference")))
        for value, expected in pairs:
            assert_close("tokens and affinity", value, expected)
    assert_close("output", got, want)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_huge_features(backend: str) -> None:
    """Logits of +-1e4 and more: the softmax saturates and nothing overflows."""
    x = 1e3 * normal(1, 4, 4, 4)
    tokens, affinity = super_token(x, cell=2, iterations=2, backend=backend)
    assert torch.isfinite(tokens).all()
    torch.testing.assert_close(affinity.sum(3), torch.ones(1, 2, 2, 4))


@pytest.mark.parametrize("affinity_grad", [False, True])
def test_compiled_training(affinity_grad: bool) -> None:
    def run(x: Tensor) -> Tensor:
        tokens, affinity = super_token(x, cell=3, iterations=2, affinity_grad=affinity_grad)
        return back_project(tokens * 2, affinity, cell=3, size=(7, 5))

    torch._dynamo.reset()
    results = []
    for f in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        x = normal(2, 7, 5, 6).requires_grad_()
        out = f(x)
        results.append((out, torch.autograd.grad(out.square().sum(), x)[0]))
    for got, want in zip(*results):
        assert_close("compiled", got, want)


def test_autocast_gives_half_precision() -> None:
    x = normal(1, 6, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, affinity = super_token(x, cell=3)
        y = back_project(tokens, affinity, cell=3, size=(6, 6))
    assert tokens.dtype == affinity.dtype == y.dtype == torch.bfloat16
    want, want_affinity = super_token(x.bfloat16().double(), cell=3, backend="reference")
    assert_close("tokens", tokens, want)
    assert_close("output", y, back_project(want, want_affinity, cell=3, size=(6, 6), backend="reference"))


def test_auto_on_cpu_is_eager() -> None:
    verdicts = explain("super_token", normal(1, 4, 4, 4), (2, 2), 1, 0.5, 1e-12, False)
    assert [v.backend for v in verdicts if v.chosen] == ["eager"]


@pytest.mark.usefixtures("triton_works")
def test_triton_says_why_not(device: str) -> None:
    with pytest.raises(BackendError, match="513 channels are more than 512"):
        super_token(torch.zeros(1, 1, 1, 513, device=device), cell=1, backend="triton")
    with pytest.raises(BackendError, match="513 channels are more than 512"):
        back_project(
            torch.zeros(1, 1, 1, 513, device=device),
            torch.zeros(1, 1, 1, 9, 1, device=device),
            cell=1,
            size=(1, 1),
            backend="triton",
        )


X, TOKENS, AFFINITY = torch.zeros(1, 4, 6, 5), torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 3, 9, 4)


@pytest.mark.parametrize(
    "message, call",
    [
        (r"x is torch.float32 of shape \(4, 6, 5\)", lambda: super_token(X[0], cell=2)),
        (r"x is torch.int64", lambda: super_token(X.long(), cell=2)),
        (r"H, W and C must be at least 1", lambda: super_token(X[:, :0], cell=2)),
        (r"cell=\(0, 2\)", lambda: super_token(X, cell=(0, 2))),
        (r"iterations=0", lambda: super_token(X, cell=2, iterations=0)),
        (r"eps=-1", lambda: super_token(X, cell=2, eps=-1)),
        (
            r"tokens is torch.float32 of shape \(2, 3, 5\)",
            lambda: back_project(TOKENS[0], AFFINITY, cell=2, size=(4, 6)),
        ),
        (r"accepted is a floating \(1, 2, 3, 9, 9\)", lambda: back_project(TOKENS, AFFINITY, cell=3, size=(4, 6))),
        (r"affinity is torch.int64", lambda: back_project(TOKENS, AFFINITY.long(), cell=2, size=(4, 6))),
        (r"size=\(5, 6\) makes 3 x 3 cells", lambda: back_project(TOKENS, AFFINITY, cell=2, size=(5, 6))),
        (r"affinity is on meta", lambda: back_project(TOKENS, AFFINITY.to("meta"), cell=2, size=(4, 6))),
        (r"accepted are 'auto'", lambda: super_token(X, cell=2, backend="cuda")),
    ],
)
def test_errors_name_the_argument(message: str, call: object) -> None:
    with pytest.raises(ValueError, match=message):
        call()
