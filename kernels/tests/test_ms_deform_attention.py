"""Deformable attention against recorded results, grid_sample and the float64 reference, and its edges."""

from __future__ import annotations

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
from zoo_kernels.ms_deform_attention import cases, eager, ms_deform_attention, ms_deform_attention_fused
from zoo_kernels.testing import assert_close, check_against_reference, rel_error

FIXTURES = (
    Path(os.environ.get("ZOO_CONFORMANCE", Path(__file__).resolve().parents[3] / "shared" / "conformance"))
    / "msdeform_attn"
)
BACKENDS = ("reference", "eager", "triton")

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the conformance fixtures are absent")


def fixture(case: str) -> dict[str, Tensor]:
    with safe_open(FIXTURES / f"{case}.safetensors", "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118, a handle is no dict


def device_of(backend: str, device: str) -> str:
    return device if backend == "triton" else "cpu"


@needs_fixtures
@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recorded", ["op_three_levels", "op_edges", "op_float64"])
def test_recorded_operator(recorded: str, backend: str, device: str) -> None:
    """Outputs and all recorded gradients; op_edges has samples on borders, pixel centres and far outside."""
    t = fixture(recorded)
    if backend == "triton" and t["input/value"].dtype == torch.float64:
        with pytest.raises(BackendError, match="float64"):
            ms_deform_attention(*arguments(t), backend=backend)
        return
    where = device_of(backend, device)
    value, shapes, locations, weights = (a.to(where) for a in arguments(t))
    leaves = [a.requires_grad_() for a in (value, locations, weights)]
    out = ms_deform_attention(value, shapes, locations, weights, backend=backend)
    assert_close("output", out, t["output/output"])
    grads = torch.autograd.grad(out, leaves, t["input/grad_output"].to(where))
    for name, grad in zip(("value", "sampling_locations", "attention_weights"), grads):
        if f"output/grad_{name}" in t:
            assert_close(f"gradient of {name}", grad, t[f"output/grad_{name}"])


def arguments(t: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    names = ("value", "spatial_shapes", "sampling_locations", "attention_weights")
    return tuple(t[f"input/{n}"] for n in names)


@needs_fixtures
@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recorded", ["module_ref2_masked", "module_ref4_masked", "module_one_level"])
def test_recorded_module(recorded: str, backend: str, device: str) -> None:
    """The fused form between the module's linears gives the module's output and gradients."""
    t, where = fixture(recorded), device_of(backend, device)
    state = {k[6:]: v.to(where).requires_grad_() for k, v in t.items() if k.startswith("state/")}
    x = {k[6:]: v.to(where) for k, v in t.items() if k.startswith("input/")}
    leaves = {n: x[n].requires_grad_() for n in ("input_flatten", "query", "reference_points")}
    shapes = x["input_spatial_shapes"]

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    value = linear("value_proj", x["input_flatten"])
    if "input_padding_mask" in x:
        value = value.masked_fill(x["input_padding_mask"][..., None], 0.0)
    b, q, c = x["query"].shape
    levels = len(shapes)
    heads = {"module_ref2_masked": 4, "module_ref4_masked": 6, "module_one_level": 3}[recorded]
    points = state["attention_weights.bias"].numel() // heads // levels
    out = ms_deform_attention_fused(
        value.view(b, -1, heads, c // heads),
        tuple(map(tuple, shapes.tolist())),
        x["reference_points"],
        linear("sampling_offsets", x["query"]).view(b, q, heads, levels, points, 2),
        linear("attention_weights", x["query"]).view(b, q, heads, levels, points),
        backend=backend,
    )
    out = linear("output_proj", out)
    assert_close("output", out, t["output/output"])
    inputs = {**leaves, **{f"param/{k}": v for k, v in state.items()}}
    grads = torch.autograd.grad(out, list(inputs.values()), x["grad_output"])
    for name, grad in zip(inputs, grads):
        assert_close(f"gradient of {name}", grad, t[f"output/grad_{name}"], torch.float32)


def by_grid_sample(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """Level by level through torch's grid_sample, without any code of the operator."""
    b, q, h, _, p, _ = locations.shape
    d, out, start = value.shape[3], 0, 0
    for i, (height, width) in enumerate(shapes):
        level = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(b * h, d, height, width)
        grid = 2 * locations[:, :, :, i].transpose(1, 2).reshape(b * h, q, p, 2) - 1
        sampled = F.grid_sample(level, grid, padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[:, :, :, i].transpose(1, 2).reshape(b * h, 1, q, p)).sum(-1)
        start += height * width
    return out.view(b, h * d, q).transpose(1, 2)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_equals_grid_sample(backend: str) -> None:
    value, shapes, locations, weights = cases.classic(cases.LEVELS, 2, 6, 3, 5, 2)
    inputs = [t.double().requires_grad_() for t in (value, locations, weights)]
    want = by_grid_sample(inputs[0], shapes, inputs[1], inputs[2])
    got = ms_deform_attention(inputs[0], shapes, inputs[1], inputs[2], backend=backend)
    assert_close("output", got, want)
    seed = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, g, w in zip(
        ("value", "locations", "weights"), *(torch.autograd.grad(o, inputs, seed) for o in (got, want))
    ):
        assert_close(f"gradient of {name}", g, w)


@pytest.mark.parametrize("numbers", [0, 2, 4])
def test_reference_gradcheck(numbers: int) -> None:
    levels = ((4, 2), (2, 1))
    if numbers:
        value, _, *rest = cases.fused(levels, 1, 2, 2, 2, 2, numbers)
        function = ms_deform_attention_fused
    else:
        value, _, *rest = cases.classic(levels, 1, 2, 2, 2, 2)
        function = ms_deform_attention
    leaves = [t.double().requires_grad_() for t in (value, *rest)]
    assert torch.autograd.gradcheck(lambda v, *r: function(v, levels, *r, backend="reference"), leaves)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    levels=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    sizes=st.tuples(*(st.integers(1, 4) for _ in range(5))),
)
def test_any_shape(levels: list[tuple[int, int]], sizes: tuple[int, int, int, int, int]) -> None:
    batch, queries, heads, dim, points = sizes
    args = cases.classic(tuple(levels), batch, queries, heads, dim, points)
    check_against_reference(ms_deform_attention, args, backend="eager", dtype=torch.float32)


@pytest.mark.parametrize("queries", [3, 40])
def test_chunks_of_queries_change_nothing(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks that cross images, int64 indices, and both orders of the value gradient (few and many samples)."""
    monkeypatch.setattr(eager, "_CHUNK", 64)
    monkeypatch.setattr(eager, "_CHUNK_BACKWARD", 32)
    args = cases.classic(((3, 4), (1, 2)), 3, queries, 2, 4, 2)
    check_against_reference(ms_deform_attention, args, backend="eager", dtype=torch.float32)
    monkeypatch.setattr(eager, "_INT32_ROWS", 0)
    check_against_reference(ms_deform_attention, args, backend="eager", dtype=torch.float32)


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
def test_outside_counts_nothing(backend: str, device: str) -> None:
    """Samples a pixel or more outside, however far, give zero and get zero gradients."""
    where = device_of(backend, device)
    value, shapes, locations, weights = cases.classic(((4, 3), (1, 1)), 1, 6, 1, 4, 1)
    far = torch.tensor([-2.0, 3.0, -1e6, 1e6, -1e30, 1e30]).view(1, 6, 1, 1, 1, 1).expand_as(locations)
    leaves = [t.to(where).clone().requires_grad_() for t in (value, far, weights)]
    out = ms_deform_attention(leaves[0], shapes, leaves[1], leaves[2], backend=backend)
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    for t in (out, *grads):
        assert torch.equal(t, torch.zeros_like(t))


def test_not_a_number_stays_in_its_query() -> None:
    value, shapes, locations, weights = cases.classic(((4, 3),), 1, 5, 1, 4, 1)
    want = ms_deform_attention(value, shapes, locations, weights, backend="eager")
    locations[0, 2] = float("nan")
    got = ms_deform_attention(value, shapes, locations, weights, backend="eager")
    others = [0, 1, 3, 4]
    assert torch.equal(got[:, others], want[:, others])
    assert got[:, 2].isnan().all()


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("numbers", [0, 2])
def test_no_queries(backend: str, numbers: int, device: str) -> None:
    function = ms_deform_attention_fused if numbers else ms_deform_attention
    args = cases.fused(((4, 2),), 2, 0, 2, 4, 1, 2) if numbers else cases.classic(((4, 2),), 2, 0, 2, 4, 1)
    where = device_of(backend, device)
    leaves = [a.to(where).requires_grad_() if isinstance(a, Tensor) else a for a in args]
    out = function(*leaves, backend=backend)
    assert out.shape == (2, 0, 8)
    (grad,) = torch.autograd.grad(out, leaves[0], torch.zeros_like(out))
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_half_values_with_float_locations(backend: str, device: str) -> None:
    """The usual mix under autocast; inside an autocast block too, nothing but the values is in half precision."""
    where = device_of(backend, device)
    value, shapes, locations, weights = (
        t.to(where) if isinstance(t, Tensor) else t for t in cases.classic(((5, 6), (3, 2)), 1, 6, 2, 8, 2)
    )
    value = value.bfloat16()
    want = [t.double().requires_grad_() for t in (value, locations, weights)]
    got = [t.clone().requires_grad_() for t in (value, locations, weights)]
    expected = ms_deform_attention(want[0], shapes, want[1], want[2], backend="reference")
    with torch.autocast(torch.device(where).type, dtype=torch.bfloat16):
        out = ms_deform_attention(got[0], shapes, got[1], got[2], backend=backend)
        grads = torch.autograd.grad(out, got, torch.ones_like(out))
    assert out.dtype == torch.bfloat16
    assert_close("output", out, expected)
    for name, g, w in zip(
        ("value", "locations", "weights"), grads, torch.autograd.grad(expected, want, torch.ones_like(expected))
    ):
        # float32 in and out: the incoming gradient is exact, so only float32 arithmetic is allowed to show.
        assert_close(f"gradient of {name}", g, w)


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("numbers", [0, 2, 4])
def test_deterministic_backward_uses_no_atomics(numbers: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch's deterministic mode the value's gradient comes from the ordered sum, equal to the atomic one."""
    from zoo_kernels.ms_deform_attention import triton

    levels = ((4, 8), (2, 2))
    if numbers:
        function, args = ms_deform_attention_fused, cases.fused(levels, 1, 5, 2, 8, 2, numbers)
    else:
        function, args = ms_deform_attention, cases.classic(levels, 1, 5, 2, 8, 2)
    ordered = []
    monkeypatch.setattr(
        triton,
        "_ordered_value_gradient",
        lambda *a, f=triton._ordered_value_gradient: ordered.append(f(*a)) or ordered[-1],
    )

    def grads() -> tuple[Tensor, ...]:
        leaves = [a.to(device).requires_grad_() if isinstance(a, Tensor) else a for a in args]
        out = function(*leaves, backend="triton")
        return torch.autograd.grad(out, [a for a in leaves if isinstance(a, Tensor)], torch.ones_like(out))

    atomic = grads()
    assert ordered == []
    torch.use_deterministic_algorithms(True)
    try:
        first, second = grads(), grads()
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(ordered) == 2
    for a, b, c in zip(atomic, first, second):
        assert torch.equal(b, c)
        assert rel_error(b, a) < 1e-5


def test_only_wanted_gradients() -> None:
    """Each subset of inputs that need gradients gets the gradients of the full set."""
    value, shapes, locations, weights = cases.classic(((5, 3), (2, 2)), 1, 4, 2, 4, 2)
    tensors = {"value": value, "locations": locations, "weights": weights}

    def grads(names: tuple[str, ...]) -> dict[str, Tensor]:
        t = {n: v.clone().requires_grad_(n in names) for n, v in tensors.items()}
        out = ms_deform_attention(t["value"], shapes, t["locations"], t["weights"], backend="eager")
        return dict(zip(names, torch.autograd.grad(out.sum(), [t[n] for n in names])))

    every = grads(tuple(tensors))
    for names in (("value",), ("locations",), ("weights",), ("value", "weights")):
        for name, grad in grads(names).items():
            assert torch.equal(grad, every[name])


def test_integer_shapes_cost_no_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shapes as ints no tensor is read on the host, forward or backward; a tensor of shapes gives the same."""
    value, shapes, locations, weights = cases.classic(((5, 3), (2, 2)), 1, 4, 2, 4, 2)
    want = ms_deform_attention(value, torch.tensor(shapes), locations, weights)

    def refuse(*args: object) -> None:
        raise AssertionError("a tensor was read on the host")

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    out = ms_deform_attention(value.requires_grad_(), shapes, locations, weights)
    torch.autograd.grad(out, value, torch.ones_like(out))
    monkeypatch.undo()
    assert torch.equal(out, want)


@pytest.mark.parametrize("numbers", [0, 2, 4])
def test_compiled_training(numbers: int) -> None:
    """One graph, forward and backward, with the custom operator in it rather than its parts."""
    levels = ((4, 8), (2, 2))
    if numbers:
        function, args = ms_deform_attention_fused, cases.fused(levels, 1, 5, 2, 8, 2, numbers)
    else:
        function, args = ms_deform_attention, cases.classic(levels, 1, 5, 2, 8, 2)
    tensors = [a for a in args if isinstance(a, Tensor)]

    def run(*t: Tensor) -> Tensor:
        return function(t[0], levels, *t[1:])

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for f in (run, compiled):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = f(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*results):
        assert_close("compiled", got, want)


def test_export_holds_no_custom_operator() -> None:
    """What leaves PyTorch is made of operators that other runtimes know."""
    value, shapes, *rest = cases.fused(((4, 8), (2, 2)), 1, 5, 2, 8, 2, 4)

    class Module(torch.nn.Module):
        def forward(self, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return ms_deform_attention_fused(value, shapes, reference, offsets, logits)

    program = torch.export.export(Module(), (value, *rest), strict=False)
    assert "zoo_kernels" not in str(program.graph)
    assert "grid_sampler" in str(program.graph)
    assert_close("exported", program.module()(value, *rest), Module()(value, *rest))


@pytest.mark.usefixtures("triton_ready")
@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("shared", [False, True])
def test_vmap(shared: bool, backend: str, device: str) -> None:
    """Mapped over a further dimension of all inputs, or of the samples only; forward and gradients."""
    where = device_of(backend, device)
    value, shapes, *samples = cases.fused(((4, 2), (1, 1)), 6, 3, 1, 4, 2, 2)
    folded = [t.unflatten(0, (3, 2)).to(where) for t in (value, *samples)]
    dims = (None if shared else 0, 0, 0, 0)
    if shared:
        folded[0] = folded[0][1]

    def run(*t: Tensor) -> Tensor:
        return ms_deform_attention_fused(t[0], shapes, *t[1:], backend=backend)

    def slices(i: int) -> list[Tensor]:
        return [t if d is None else t[i] for t, d in zip(folded, dims)]

    results = []
    for mapped in (True, False):
        leaves = folded = [t.detach().requires_grad_() for t in folded]
        out = (
            torch.func.vmap(run, in_dims=dims)(*leaves) if mapped else torch.stack([run(*slices(i)) for i in range(3)])
        )
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*results):
        assert_close("mapped", got, want)


def test_auto_on_cpu_is_eager() -> None:
    value, shapes, locations, weights = cases.classic(((4, 3),), 1, 2, 1, 4, 1)
    verdicts = explain("ms_deform_attention", value, shapes, locations[:, :, :, 0], weights[:, :, :, 0], (1,))
    assert [v.backend for v in verdicts if v.chosen] == ["eager"]


def errors() -> dict[str, tuple[str, object]]:
    value, shapes, locations, weights = cases.classic(((4, 3), (2, 2)), 2, 5, 2, 4, 3)
    _, _, reference, offsets, logits = cases.fused(((4, 3), (2, 2)), 2, 5, 2, 4, 3, 2)

    def classic(**change: object) -> object:
        args = {"value": value, "spatial_shapes": shapes, "sampling_locations": locations, "attention_weights": weights}
        return lambda: ms_deform_attention(**{**args, **change})

    def fused(**change: object) -> object:
        args = {
            "value": value,
            "spatial_shapes": shapes,
            "reference_points": reference,
            "offsets": offsets,
            "logits": logits,
        }
        return lambda: ms_deform_attention_fused(**{**args, **change})

    return {
        "sum of H*W": (r"value has S=15 .* sum to 16", classic(value=value[:, :15])),
        "rank of value": (r"value has shape .* accepted is \[B, S, heads, head_dim\]", classic(value=value.flatten(2))),
        "integer value": (r"value has dtype torch.int64", classic(value=value.long())),
        "float shapes": (r"spatial_shapes is a torch.float32", classic(spatial_shapes=torch.ones(2, 2))),
        "triples": (r"spatial_shapes=.*\(H, W\) pairs", classic(spatial_shapes=((4, 3, 1), (2, 2, 1)))),
        "no level": (r"spatial_shapes=\(\)", classic(spatial_shapes=())),
        "empty level": (r"at least 1", classic(spatial_shapes=((16, 1), (0, 2)))),
        "levels": (
            r"sampling_locations has 1 levels, spatial_shapes has 2",
            classic(sampling_locations=locations[:, :, :, :1]),
        ),
        "coordinates": (r"sampling_locations has shape", classic(sampling_locations=locations.repeat(*[1] * 5, 2))),
        "heads": (r"1 heads, value has batch 2 and 2 heads", classic(sampling_locations=locations[:, :, :1])),
        "batch": (r"has batch 1 ", classic(sampling_locations=locations[:1])),
        "weights": (r"attention_weights has shape", classic(attention_weights=weights[:, :4])),
        "no points": (
            r"every level needs at least 1",
            classic(sampling_locations=locations[..., :0, :], attention_weights=weights[..., :0]),
        ),
        "points rank": (r"T, 2\] when points is given", classic(points=(3, 3))),
        "points sum": (
            r"6 samples a head, points=\(3, 2\) sum to 5",
            classic(sampling_locations=locations.flatten(3, 4), attention_weights=weights.flatten(3), points=(3, 2)),
        ),
        "points levels": (
            r"points=\(6,\) has 1 levels",
            classic(sampling_locations=locations.flatten(3, 4), attention_weights=weights.flatten(3), points=(6,)),
        ),
        "reference of 3": (
            r"reference_points has shape .*, 3\); accepted",
            fused(reference_points=torch.rand(2, 5, 2, 3)),
        ),
        "reference levels": (r"L=2 levels", fused(reference_points=torch.rand(2, 5, 3, 2))),
        "reference queries": (r"Q=5", fused(reference_points=torch.rand(2, 4, 2, 2))),
        "logits": (r"logits has shape", fused(logits=logits[..., :2])),
        "integer offsets": (r"offsets has dtype", fused(offsets=offsets.long())),
        "backend": (r"accepted are 'auto'", classic(backend="cuda")),
    }


@pytest.mark.parametrize("name", list(errors()))
def test_errors_name_the_argument(name: str) -> None:
    message, call = errors()[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("triton_works")
def test_triton_says_why_not(device: str) -> None:
    args = cases.classic(((2, 2),), 1, 1, 1, 257, 1)
    with pytest.raises(BackendError, match="head_dim 257 is larger than 256"):
        ms_deform_attention(*(a.to(device) if isinstance(a, Tensor) else a for a in args), backend="triton")


def test_one_reference_for_all_levels() -> None:
    value, shapes, reference, offsets, logits = cases.fused(((4, 8), (2, 2)), 1, 5, 2, 8, 2, 4)
    one = reference[:, :, :1]
    want = ms_deform_attention_fused(value, shapes, one.expand(-1, -1, 2, -1), offsets, logits)
    assert torch.equal(ms_deform_attention_fused(value, shapes, one, offsets, logits), want)
