"""Linear attentions: the authors' recorded outputs, large values, long sequences, errors."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo_kernels import linear_attention as folder
from zoo_kernels.dispatch import BackendError, explain
from zoo_kernels.linear_attention import inline_attention, linear_attention, mala_attention, taylor_attention
from zoo_kernels.testing import assert_close, check_against_reference

FIXTURES = Path(os.environ.get("ZOO_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared/conformance"))
BACKENDS = ("reference", "eager", "triton")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(b: int, h: int, n: int, d: int, dv: int | None = None) -> tuple[torch.Tensor, ...]:
    return tuple(randn(b, h, n, size, seed=i) for i, size in enumerate((d, d, dv or d)))


def load(name: str) -> tuple[dict, dict, dict, dict]:
    """kwargs, state, inputs and outputs of a recorded case."""
    path = FIXTURES / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is absent: set ZOO_CONFORMANCE to the folder of the recorded outputs")
    from safetensors import safe_open

    parts: dict[str, dict] = {"state": {}, "input": {}, "output": {}}
    with safe_open(path, "pt") as f:
        kwargs = json.loads(f.metadata()["kwargs"])
        for key in f.keys():  # noqa: SIM118 (no mapping)
            kind, _, rest = key.partition("/")
            parts[kind][rest] = f.get_tensor(key)
    return kwargs, parts["state"], parts["input"], parts["output"]


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, C] -> [B, h, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["heads4", "key_wider", "single_head"])
def test_efficient_attention_recorded(name: str, backend: str, device: str) -> None:
    kwargs, state, inputs, outputs = load(f"efficient_attention/{name}")
    x, heads = inputs[""], kwargs["head_count"]
    q, k, v = (
        split_heads(F.conv2d(x, state[f"{p}.weight"], state[f"{p}.bias"]).flatten(2).transpose(1, 2), heads)
        for p in ("queries", "keys", "values")
    )
    if backend == "triton":
        q, k, v = q.to(device), k.to(device), v.to(device)
    out = join_heads(linear_attention(q, k, v, feature_map="softmax", backend=backend)).cpu()
    out = out.transpose(1, 2).unflatten(2, x.shape[2:])
    out = F.conv2d(out, state["reprojection.weight"], state["reprojection.bias"]) + x
    assert_close(name, out, outputs[""], torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["attention", "attention_exp", "attention_relu"])
def test_inline_attention_recorded(name: str, backend: str, device: str) -> None:
    kwargs, state, inputs, outputs = load(f"inline_attention/{name}")
    x, heads, (rows, columns) = inputs["x"], kwargs["num_heads"], kwargs["window_size"]
    maps = {"identity": lambda t: t, "relu": torch.relu, "exp": lambda t: torch.exp(0.2 * t)}
    feature = maps[kwargs.get("kernel_func") or "identity"]
    q, k, v = (split_heads(t, heads) for t in F.linear(x, state["qkv.weight"], state.get("qkv.bias")).chunk(3, -1))
    q, k = feature(q), feature(k)
    on = device if backend == "triton" else "cpu"
    out = join_heads(inline_attention(q.to(on), k.to(on), v.to(on), backend=backend)).cpu()
    # The authors' local residual: a depthwise 3x3 convolution whose weights come from the mean token.
    mean = x.mean(1).unsqueeze(-1)
    taps = F.gelu(F.conv1d(mean, state["residual.0.weight"], state["residual.0.bias"], groups=heads))
    taps = F.conv1d(taps, state["residual.2.weight"], state["residual.2.bias"], groups=heads)
    b, n, c = x.shape
    v_map = join_heads(v).transpose(1, 2).reshape(1, b * c, rows, columns)
    out = out + F.conv2d(v_map, taps.reshape(b * c, 1, 3, 3), padding=1, groups=b * c).view(b, c, n).transpose(1, 2)
    assert_close(name, F.linear(out, state["proj.weight"], state["proj.bias"]), outputs["out"], torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
def test_mala_recorded(backend: str, device: str) -> None:
    kwargs, state, inputs, outputs = load("mala/linear_attention")
    x, heads, dim = inputs["x"], kwargs["num_heads"], kwargs["dim"]
    qkvo = F.conv2d(x, state["qkvo.weight"], state["qkvo.bias"])
    q, k, v = (split_heads(t.flatten(2).transpose(1, 2), heads) for t in qkvo[:, : 3 * dim].chunk(3, 1))
    on = device if backend == "triton" else "cpu"
    tables = {name: inputs[name].to(on) for name in ("sin", "cos")}
    out = join_heads(mala_attention(q.to(on), k.to(on), v.to(on), **tables, backend=backend)).cpu()
    out = out.transpose(1, 2).unflatten(2, x.shape[2:])
    out = out + F.conv2d(qkvo[:, 2 * dim : 3 * dim], state["lepe.weight"], state["lepe.bias"], padding=2, groups=dim)
    out = F.conv2d(out * qkvo[:, 3 * dim :], state["proj.weight"], state["proj.bias"])
    assert_close("mala", out, outputs["out"], torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["direct", "linear"])
@pytest.mark.parametrize("name", ["op_attention", "op_attention_unnormalised"])
def test_taylorshift_recorded(name: str, form: str, backend: str, device: str) -> None:
    kwargs, state, inputs, outputs = load(f"taylorshift/{name}")
    x, heads, normalize = inputs[""], kwargs["num_heads"], kwargs.get("normalize_input", True)
    q, k, v = (split_heads(t, heads) for t in F.linear(x, state["qkv.weight"], state.get("qkv.bias")).chunk(3, -1))
    on = device if backend == "triton" else "cpu"
    out = taylor_attention(
        (q * kwargs["dim"] ** -0.5).to(on),
        k.to(on),
        v.to(on),
        temperature=state["temperature"].flatten().to(on) if normalize else None,
        coefficients=(kwargs.get("a", 0.5), kwargs.get("b", 1.0), kwargs.get("c", 1.0)),
        normalize_input=normalize,
        form=form,
        backend=backend,
    )
    out = F.linear(join_heads(out).cpu(), state["proj.weight"], state["proj.bias"])
    assert_close(form, out, outputs["direct" if form == "direct" else "efficient"], torch.float32)


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("feature_map", ["elu+1", "exp"])
def test_split_over_the_tokens(feature_map: str, device: str) -> None:
    """More tokens than one program takes: the parts of the state are joined, for exp relative to different maxima."""
    q, k, v = (t.to(device) for t in qkv(1, 1, 600, 8))
    k = k * torch.linspace(0.1, 3, 600, dtype=k.dtype, device=device)[:, None]
    check_against_reference(
        linear_attention, (q, k, v), {"feature_map": feature_map}, backend="triton", dtype=torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_by_head_without_autograd(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in qkv(2, 2, 520, 8, 5))
    wide = [t.double() for t in (q, k, v)]
    calls = [(linear_attention, {"feature_map": m, "causal": c}) for m in folder.FEATURE_MAPS for c in (False, True)]
    rates = torch.tensor([0.9, 0.99], dtype=dtype)
    calls.append((linear_attention, {"feature_map": "identity", "causal": True, "decay": rates}))
    angle = torch.arange(520 * 8).view(520, 8) // 2 * 0.01
    calls += [(inline_attention, {}), (mala_attention, {}), (mala_attention, {"sin": angle.sin(), "cos": angle.cos()})]
    for function, kwargs in calls:
        with torch.no_grad():
            got = function(q, k, v, **kwargs, backend="eager")
        assert got.dtype == dtype
        if "decay" in kwargs:
            kwargs = {**kwargs, "decay": rates.double()}
        assert_close(f"{function.__name__} {list(kwargs)}", got, function(*wide, **kwargs, backend="reference"))


@pytest.mark.parametrize("decay", [False, True])
def test_many_chunks(decay: bool) -> None:
    rates = torch.tensor([0.9, 0.995], dtype=torch.float64) if decay else None
    for n in (127, 128, 129, 400):
        kwargs = {"causal": True, "decay": rates}
        check_against_reference(linear_attention, qkv(1, 2, n, 8), kwargs, backend="eager", dtype=torch.float32)


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("decay,learned", [(None, False), (0.97, False), (0.97, True)])
def test_causal_on_triton_over_many_blocks(decay: float | None, learned: bool, device: str) -> None:
    """Several segments of several blocks; where decay has a gradient, segments of one block."""

    def call(q, k, v, rate=None, backend="auto"):
        if decay is not None and rate is None:
            rate = torch.tensor([decay, 1.0], dtype=q.dtype, device=q.device)
        return linear_attention(q, k, v, causal=True, decay=rate, backend=backend)

    args = [t.to(device) for t in qkv(1, 2, 290, 5, 7)]
    if learned:
        args.append(torch.tensor([decay, 0.999], dtype=torch.float64, device=device))
    check_against_reference(call, args, backend="triton", dtype=torch.float32)


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_causal_on_triton_with_large_values(dtype: torch.dtype, device: str) -> None:
    """Products of features beyond float16's range, divided by sums of them."""
    q, k, v = (t.to(device) for t in qkv(1, 2, 70, 8))
    kwargs = {"causal": True}
    check_against_reference(linear_attention, (q * 1e3, k * 1e3, v), kwargs, backend="triton", dtype=dtype, grads=False)


def test_causal_equals_its_prefixes() -> None:
    q, k, v = qkv(1, 2, 150, 8)
    for feature_map in ("elu+1", "relu", "exp", "softmax"):
        whole = linear_attention(q, k, v, feature_map=feature_map, causal=True)
        for n in (1, 77, 150):
            last = linear_attention(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], feature_map=feature_map)
            assert_close(f"{feature_map} {n}", whole[:, :, n - 1 : n], last)


@pytest.mark.parametrize("feature_map", ["exp", "softmax"])
def test_causal_exponentials_with_a_wide_range(feature_map: str) -> None:
    """Early keys e^-300 times smaller than late ones still decide the early outputs; then the other way round."""
    q, k, v = qkv(1, 1, 90, 4)
    kwargs = {"feature_map": feature_map, "causal": True}
    for step in (torch.linspace(-150, 150, 90, dtype=k.dtype), torch.linspace(50, -50, 90, dtype=k.dtype)):
        args = (q, k + step[:, None], v)
        check_against_reference(linear_attention, args, kwargs, backend="eager", dtype=torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("feature_map", ["elu+1", "relu", "exp", "softmax"])
def test_large_values(feature_map: str, dtype: torch.dtype, backend: str, device: str) -> None:
    q, k, v = qkv(1, 2, 40, 8)
    kwargs = {"feature_map": feature_map}
    args = [t.to(device if backend == "triton" else "cpu") for t in (q * 1e4, k * 1e4, v)]
    check_against_reference(linear_attention, args, kwargs, backend=backend, dtype=dtype, grads=False)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("form", ["direct", "linear"])
def test_taylor_large_values(form: str, backend: str, device: str) -> None:
    q, k, v = (t.to(device if backend == "triton" else "cpu") for t in qkv(1, 2, 40, 8))
    kwargs = {"form": form}
    check_against_reference(taylor_attention, (q * 1e4, k * 1e4, v), kwargs, backend=backend, dtype=torch.float32)


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("form", ["direct", "linear"])
@pytest.mark.parametrize("n,m", [(70, 300), (130, 20)])
def test_taylor_on_triton(n: int, m: int, form: str, device: str) -> None:
    """Unequal lengths, blocks of queries and keys, parts of the state (4 blocks of 64 each), lengths kept."""
    q, k, v = (randn(1, 2, *s, seed=i).to(device) for i, s in enumerate(((n, 5), (m, 5), (m, 3))))
    for extra in ({}, {"normalize_input": False, "temperature": torch.tensor([0.5, 2.0], device=device).double()}):
        kwargs = {"form": form, "coefficients": (0.6, 0.9, 1.1), **extra}
        check_against_reference(taylor_attention, (q, k, v), kwargs, backend="triton", dtype=torch.float32)


@pytest.mark.usefixtures("triton_works")
def test_taylor_on_triton_leaves_rows_of_zeros_as_they_are(device: str) -> None:
    q, k, v = (t.float().to(device) for t in qkv(1, 1, 20, 4))
    q[:, :, 3], k[:, :, 5] = 0, 0
    want = taylor_attention(q.double(), k.double(), v.double(), backend="reference")
    for form in ("direct", "linear"):
        assert_close(form, taylor_attention(q, k, v, form=form, backend="triton"), want, torch.float32)


@pytest.mark.usefixtures("triton_works")
def test_triton_says_what_it_cannot_do(device: str) -> None:
    wide = torch.zeros(1, 1, 4, 80, device=device)
    with pytest.raises(BackendError, match="head_dim 80 exceeds 64"):
        taylor_attention(wide, wide, wide, form="linear", backend="triton")
    for feature_map in ("exp", "softmax"):
        with pytest.raises(BackendError, match=f"causal with the map '{feature_map}'"):
            linear_attention(wide, wide, wide, feature_map=feature_map, causal=True, backend="triton")
    wide = torch.zeros(1, 1, 4, 160, device=device)
    for function in (linear_attention, inline_attention, mala_attention, taylor_attention):
        with pytest.raises(BackendError, match="head_dim 160 exceeds 128"):
            function(wide, wide, wide, backend="triton")
    q, k, v = (wide[..., :4] for _ in range(3))
    sin, cos = (torch.zeros(4, 4, device=device, requires_grad=True) for _ in range(2))
    with pytest.raises(BackendError, match="sine and cosine require gradients"):
        mala_attention(q, k, v, sin=sin, cos=cos, backend="triton")


def test_taylor_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo_kernels.linear_attention import eager

    monkeypatch.setattr(eager, "TAYLOR_CHUNK", 1)
    kwargs = {"form": "linear"}
    check_against_reference(taylor_attention, qkv(2, 2, 50, 6), kwargs, backend="eager", dtype=torch.float32)


def test_taylor_switches_where_the_linear_form_costs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(folder, "TAYLOR", lambda *a, **k: chosen.append(k["linear"]))
    for tokens in (21, 22):  # d^2 + d + 1 = 21
        taylor_attention(*qkv(1, 1, tokens, 4))
    assert chosen == [False, True]


def test_inline_weights_add_up_to_one() -> None:
    q, k, _ = qkv(2, 2, 30, 8)
    ones = torch.ones(2, 2, 30, 1, dtype=torch.float64)
    assert_close("sum of weights", inline_attention(q, k, ones), ones)


@pytest.mark.parametrize(
    "function,kwargs",
    [
        (linear_attention, {}),
        (linear_attention, {"feature_map": "exp", "causal": True}),
        (linear_attention, {"feature_map": "softmax"}),
        (linear_attention, {"feature_map": "softmax", "causal": True}),
        (inline_attention, {}),
        (mala_attention, {}),
        (taylor_attention, {}),
    ],
)
def test_gradcheck(function, kwargs: dict) -> None:
    args = [t.requires_grad_(True) for t in qkv(1, 2, 5, 4, 3)]
    for backend in ("reference", "eager"):
        assert torch.autograd.gradcheck(lambda *a, b=backend: function(*a, **kwargs, backend=b), args)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    d=st.integers(1, 9),
    dv=st.integers(1, 9),
    feature_map=st.sampled_from(folder.FEATURE_MAPS),
    causal=st.booleans(),
)
def test_any_shape(n: int, m: int, d: int, dv: int, feature_map: str, causal: bool) -> None:
    m = n if causal else m
    q, k, v = randn(1, 2, n, d), randn(1, 2, m, d, seed=1), randn(1, 2, m, dv, seed=2)
    if feature_map == "relu":
        k = k.abs()  # no row of weights all zero, where eps decides
        q = q.abs()
    kwargs = {"feature_map": feature_map, "causal": causal}
    want = linear_attention(q, k, v, **kwargs, backend="reference")
    assert_close("output", linear_attention(q, k, v, **kwargs, backend="eager"), want)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(n=st.integers(1, 80), m=st.integers(1, 80), d=st.integers(1, 20), feature_map=st.sampled_from(("elu+1", "exp")))
@pytest.mark.usefixtures("triton_works")
def test_any_shape_on_triton(n: int, m: int, d: int, feature_map: str) -> None:
    on = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (t.float().to(on) for t in (randn(1, 1, n, d), randn(1, 1, m, d, seed=1), randn(1, 1, m, 5, seed=2)))
    want = linear_attention(q.double(), k.double(), v.double(), feature_map=feature_map, backend="reference")
    got = linear_attention(q, k, v, feature_map=feature_map, backend="triton")
    assert_close("output", got, want, torch.float32)


def test_autocast_keeps_the_state_in_float32() -> None:
    q, k, v = (t.float() for t in qkv(1, 2, 300, 16))
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(q, k, v)
    assert out.dtype == torch.bfloat16
    low = [t.bfloat16().double() for t in (q, k, v)]
    assert_close("autocast", out, linear_attention(*low, backend="reference"))


def test_explain_names_the_reasons() -> None:
    q, k, v = (t.float() for t in qkv(1, 1, 4, 4))
    lines = {line.backend: line for line in explain("linear_attention", q, k, v, feature_map="exp", causal=True)}
    assert lines["eager"].chosen
    assert lines["triton"].reason


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"q": torch.zeros(1, 2, 3)}, ValueError, "q has 3 dimensions"),
        ({"k": torch.zeros(1, 3, 5, 4)}, ValueError, "k is .* heads"),
        ({"k": torch.zeros(1, 2, 5, 6)}, ValueError, "head_dim must be those of q"),
        ({"v": torch.zeros(1, 2, 6, 4)}, ValueError, "v is .* tokens"),
        ({"v": torch.zeros(1, 2, 5, 4, dtype=torch.float64)}, TypeError, "v is torch.float64"),
        ({"q": torch.zeros(1, 2, 5, 4, dtype=torch.int64)}, TypeError, "q is torch.int64"),
        ({"q": torch.zeros(1, 2, 0, 4)}, ValueError, "only the batch may be empty"),
        ({"feature_map": "elu"}, ValueError, "feature_map='elu': accepted are 'elu\\+1'"),
        ({"feature_map": "identity", "normalize": True}, ValueError, "normalize=True with feature_map='identity'"),
        ({"feature_map": "exp", "normalize": False}, ValueError, "always normalised"),
        ({"eps": -1.0}, ValueError, "eps=-1.0"),
        ({"decay": torch.ones(2)}, ValueError, "decay is given with causal=False"),
        ({"decay": torch.ones(3), "causal": True}, ValueError, "decay is \\(3,\\)"),
        ({"q": torch.zeros(1, 2, 4, 4), "causal": True}, ValueError, "q has 4 tokens and k 5"),
    ],
)
def test_errors(change: dict, error: type[Exception], words: str) -> None:
    call = {name: torch.zeros(1, 2, 5, 4) for name in "qkv"} | change
    with pytest.raises(error, match=words):
        linear_attention(call.pop("q"), call.pop("k"), call.pop("v"), **call)


def test_errors_of_the_other_forms() -> None:
    q, k, v = (torch.zeros(1, 2, 5, 4) for _ in range(3))
    with pytest.raises(ValueError, match="give both or neither"):
        mala_attention(q, k, v, sin=torch.zeros(5, 4))
    with pytest.raises(ValueError, match="sin is \\(4, 4\\)"):
        mala_attention(q, k, v, sin=torch.zeros(4, 4), cos=torch.zeros(5, 4))
    with pytest.raises(ValueError, match="pairs of channels"):
        mala_attention(*(t[..., :3] for t in (q, k, v)), sin=torch.zeros(5, 3), cos=torch.zeros(5, 3))
    with pytest.raises(ValueError, match="form='fast'"):
        taylor_attention(q, k, v, form="fast")
    with pytest.raises(ValueError, match="temperature is \\(1,\\)"):
        taylor_attention(q, k, v, temperature=torch.ones(1))
    with pytest.raises(ValueError, match="three numbers"):
        taylor_attention(q, k, v, coefficients=(1.0, 1.0))
