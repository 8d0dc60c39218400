"""Tables of launch configurations: look-up, errors, their effect on a launch, and the tool that writes them."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from zoo_kernels import operators, tuning
from zoo_kernels.dispatch import use_backend
from zoo_kernels.testing import assert_close, check_against_reference
from zoo_kernels.window_attention import window_attention

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
DEFAULT = {"BM": 64, "num_warps": 4, "num_stages": 2}


def entry(use: dict, *, dim: int = 32, windows: int = 64) -> dict:
    return {"exact": {"dim": dim}, "near": {"windows": windows}, "use": use}


def ask(*, dim: int = 32, windows: int = 64) -> dict[str, int]:
    return tuning.config("k", "sm_90", DEFAULT, exact={"dim": dim}, near={"windows": windows})


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    tuning.forget()
    yield tmp_path
    tuning.forget()


def write(tables: Path, content: object, name: str = "sm_90") -> None:
    (tables / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    tuning.forget()


def test_an_entry_replaces_what_it_names(tables: Path) -> None:
    write(tables, {"k": [entry({"num_warps": 8})]})
    assert ask() == {**DEFAULT, "num_warps": 8}


@pytest.mark.parametrize("windows, warps", [(1, 1), (60, 1), (1000, 2), (100_000, 2)])
def test_the_nearest_entry_serves(tables: Path, windows: int, warps: int) -> None:
    write(tables, {"k": [entry({"num_warps": 1}), entry({"num_warps": 2}, windows=4096)]})
    assert ask(windows=windows)["num_warps"] == warps


def test_without_an_entry_the_default_serves(tables: Path) -> None:
    assert ask() == DEFAULT  # no file
    write(tables, {})
    assert ask() == DEFAULT  # no kernel
    write(tables, {"k": [entry({"num_warps": 8}, dim=64)]})
    assert ask() == DEFAULT  # another width
    assert tuning.config("k", torch.device("cpu"), DEFAULT, exact={"dim": 64}, near={"windows": 64}) == DEFAULT


def test_what_is_returned_may_be_changed(tables: Path) -> None:
    write(tables, {"k": [entry({"num_warps": 8})]})
    ask().clear()
    assert ask() == {**DEFAULT, "num_warps": 8}


@pytest.mark.parametrize(
    "content, named",
    [
        ("{", r"sm_90\.json: not JSON"),
        ([], r"sm_90\.json: the table is list"),
        ({"k": {}}, r"sm_90\.json: k is dict"),
        ({"k": [{"use": {}}]}, r"sm_90\.json: k\[0\] = "),
        ({"k": [entry({}), entry({"num_warps": 3})]}, r"sm_90\.json: k\[1\]\.use\.num_warps = 3: accepted is a power"),
        ({"k": [entry({"num_stages": 0})]}, r"k\[0\]\.use\.num_stages = 0"),
        ({"k": [entry({"BM": "64"})]}, r"k\[0\]\.use\.BM = '64'"),
        ({"k": [entry({}, windows=0)]}, r"k\[0\]\.near\.windows = 0"),
        ({"k": [{**entry({}), "exact": []}]}, r"k\[0\]\.exact = \[\]"),
        ({"k": [{**entry({}), "near": {"tokens": 4}}]}, r"sm_90\.json: k\[0\]\.near has the keys \['tokens'\], .*win"),
        ({"k": [entry({"BLOCK": 64})]}, r"sm_90\.json: k\[0\]\.use\.BLOCK .* accepted are BM, num_stages, num_warps"),
    ],
)  # fmt: skip
def test_a_bad_entry_names_file_and_key(tables: Path, content: object, named: str) -> None:
    write(tables, content)
    with pytest.raises(tuning.TuningError, match=named):
        ask()


def test_architectures() -> None:
    assert tuning.architecture(torch.device("cpu")) is None
    if torch.cuda.is_available():
        assert tuning.architecture(torch.device("cuda", 0)) is not None


def window_case() -> tuple[torch.Tensor, dict]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 12, 14, 3 * 32, generator=generator)
    bias = torch.randn(2, 49, 49, generator=generator)
    return qkv, {"num_heads": 2, "window": 7, "shift": 3, "bias": bias}


@pytest.mark.usefixtures("triton_works")
def test_a_table_changes_the_launch_and_not_the_result(
    tables: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(tuning, "architecture", lambda device: "here")
    launched = []
    module = importlib.import_module("zoo_kernels.window_attention.triton")
    call = module._Call

    def spy(*args, **kwargs):
        made = call(*args, **kwargs)
        launched.append((made.bm, made.blocks, made.constants["num_warps"]))
        return made

    monkeypatch.setattr(module, "_Call", spy)
    qkv, kwargs = window_case()
    want = window_attention(qkv.double(), backend="reference", **{**kwargs, "bias": kwargs["bias"].double()})
    qkv, kwargs["bias"] = qkv.to(device), kwargs["bias"].to(device)
    with tuning.asked() as queries:
        assert_close("default", window_attention(qkv, backend="triton", **kwargs), want)
    (query,) = queries
    assert query.kernel == "window_forward"
    use = {"BM": 16, "num_warps": 2}
    write(
        tables,
        {"window_forward": [{"exact": dict(query.exact), "near": {"windows": 1000}, "use": use}]},
        "here",
    )
    assert_close("from the table", window_attention(qkv, backend="triton", **kwargs), want)
    assert launched == [(64, 1, 4), (16, 4, 2)]


@pytest.fixture(scope="module")
def tune() -> Iterator[ModuleType]:
    """The tool, loaded as it is run: from its own folder."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("tune")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in ("tune", "run", "report", "measure", "harness"):
            if name not in before:
                sys.modules.pop(name, None)


#: Prints what each kernel asks for, forward and backward, on the build cases; nothing is launched.
QUESTIONS = """
import importlib, json, sys
from unittest import mock
import torch
from triton.runtime.jit import JITFunction
from zoo_kernels import dispatch, tuning

def leaf(value):
    return value.detach().requires_grad_() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

launch = mock.patch.object(JITFunction, "run", lambda *args, **kwargs: None)
can_run = mock.patch.object(dispatch, "triton_can_run", return_value=None)
for operator in sys.argv[1:]:
    for case in importlib.import_module(f"zoo_kernels.{operator}.triton").build_cases().values():
        with launch, can_run, tuning.asked() as queries:
            kwargs = {k: leaf(v) for k, v in case.kwargs.items()}
            out = case.function(*map(leaf, case.args), **kwargs, backend="triton")
            outs = [o for o in ((out,) if isinstance(out, torch.Tensor) else out) if o.requires_grad]
            torch.autograd.backward(outs, [torch.zeros_like(o) for o in outs])
        for q in queries:
            print(json.dumps([operator, q.kernel, q.default, q.exact, q.near]))
"""


@pytest.fixture(scope="module")
def questions() -> list[tuple[str, str, dict, dict, dict]]:
    """Recorded in a process without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", QUESTIONS, *operators()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_kernels_ask_with_one_set_of_keys(questions: list) -> None:
    keys: dict[str, tuple] = {}
    for _, kernel, default, exact, near in questions:
        own = (sorted(default), sorted(exact), sorted(near))
        assert keys.setdefault(kernel, own) == own
        for part, values in (("use", default), ("exact", exact), ("near", near)):
            assert {k: tuning._refusal(part, k, v) for k, v in values.items()} == dict.fromkeys(values)
    assert {operator for operator, *_ in questions} == set(operators())


def test_candidates_and_tables_fit_the_kernels(tune: ModuleType, questions: list) -> None:
    """A kernel that is not launched, or an argument that it has not, would never take effect."""
    arguments = {kernel: set(default) for _, kernel, default, _, _ in questions}
    assert set(tune.CANDIDATES) == set(arguments)
    for kernel, candidates in tune.CANDIDATES.items():
        for use in candidates:
            assert set(use) <= arguments[kernel], kernel
            assert {k: tuning._refusal("use", k, v) for k, v in use.items()} == dict.fromkeys(use)
    shipped = sorted(p.stem for p in tuning.TABLES.glob("*.json"))
    assert {"gfx942", "sm_80", "sm_90"} <= set(shipped)
    for name in shipped:
        assert set(tuning.load(name)) <= set(arguments), name
    for _, kernel, default, exact, near in questions:
        for name in shipped:
            assert set(tuning.config(kernel, name, default, exact=exact, near=near)) == set(default)


def window_benchmark(tune: ModuleType) -> object:
    from harness import Benchmark, Setup

    def make(device: torch.device, dtype: torch.dtype) -> object:
        qkv, kwargs = window_case()
        bias = kwargs.pop("bias")

        def call(backend: str):
            return lambda qkv, bias: window_attention(qkv, bias=bias, backend=backend, **kwargs)

        inputs = {"qkv": qkv.to(device, dtype), "bias": bias.to(device, dtype)}
        return Setup(inputs, call("auto"), {"reference": call("reference")}, grads=("qkv", "bias"))

    return Benchmark("window_attention", "small", make)


@pytest.mark.usefixtures("triton_works")
def test_tuning_takes_the_fastest_right_configuration(
    tune: ModuleType, tables: Path, monkeypatch: pytest.MonkeyPatch, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The times are given, all else is real: a candidate that fails and one that is slower are not taken."""
    gains = {"window_forward": {16: 1.2, 32: 1.1}, "window_backward": {16: 0.9, 32: 1.02}}
    monkeypatch.setattr(tune, "compare", lambda kernel, use, *rest: gains[kernel][use["BM"]])
    candidates = {
        "window_forward": [{"BM": 16}, {"BM": 32}, {"BM": 24}, {"BM": 64}],  # 64 is the default
        "window_backward": [{"BM": 16}, {"BM": 32}],
    }
    with use_backend("triton"):
        entries = tune.tune(window_benchmark(tune), torch.device(device), torch.float32, 3, candidates)
    assert "window_forward {'BM': 24}: " in capsys.readouterr().out  # arange takes powers of two
    (forward,), (backward,) = entries["window_forward"], entries["window_backward"]
    assert forward["use"] == {"BM": 16}
    assert backward["use"] == {}  # two percent are noise
    tune.merge(tables / "sm_90.json", entries)
    first = (tables / "sm_90.json").read_text(encoding="utf-8")
    tune.merge(tables / "sm_90.json", entries)
    assert (tables / "sm_90.json").read_text(encoding="utf-8") == first
    assert tuning.load("sm_90") == entries
    assert [p.name for p in tables.iterdir()] == ["sm_90.json"]
    own = tuning.config("window_forward", "sm_90", DEFAULT, exact=forward["exact"], near={"windows": 3})
    assert own == {**DEFAULT, "BM": 16}


@pytest.mark.usefixtures("triton_works")
def test_a_candidate_is_timed_against_the_default(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The clock counts a window's blocks of queries instead of seconds: four blocks are four times slower than one."""
    setup = window_benchmark(tune).make(torch.device(device), torch.float32)
    module = importlib.import_module("zoo_kernels.window_attention.triton")
    blocks = []
    call = module._Call

    def spy(*args, **kwargs):
        made = call(*args, **kwargs)
        blocks.append(made.blocks)
        return made

    def prepare(self, call, inputs, *, training=False):
        def seconds() -> float:
            call(inputs)
            return float(blocks[-1])

        return seconds

    monkeypatch.setattr(module, "_Call", spy)
    monkeypatch.setattr(tune.measure.Clock, "prepare", prepare)
    with use_backend("triton"):
        timed = tune.timed_call(setup.ours, (), "forward")
        gain = tune.compare("window_forward", {"BM": 16}, timed, setup.inputs, "forward", 3)
    assert gain == 0.25
    assert blocks == [1, 4, 4, 1, 1, 4]


def test_tuning_refuses_wrong_results(tune: ModuleType) -> None:
    setup = window_benchmark(tune).make(torch.device("cpu"), torch.float32)
    expected = tune.results(setup.ours, setup.inputs, (), "forward")
    assert tune.refusal(setup.ours, setup, "forward", expected, torch.float32) is None
    twice = [2 * t for t in expected]
    assert tune.refusal(setup.ours, setup, "forward", twice, torch.float32) == "differs by 5.0e-01"


def test_tuning_needs_a_gpu(tune: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--operator", "window_attention", "--device", "cpu"]) == 2
    assert "CUDA" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert tune.main(["--operator", "window_attention"]) == 2
        assert "torch finds none" in capsys.readouterr().err


#: By operator a case, and for each kernel it launches tiles that are not the default ones.
OTHER_TILES = [
    ("window_attention", "swin-shift-pad", {"window_forward": {"BM": 16}, "window_backward": {"BM": 32}}),
    ("channel_attention", "gram", {"channel_gram": {"BLOCK_N": 16, "BLOCK_C": 32}}),
    (
        "dense_attention",
        "reversed-bias",
        {
            "dense_key_stats": {"BM": 16, "BN": 16},
            "dense_forward": {"BM": 64, "BN": 16},
            "dense_backward_keys": {"BM": 16, "BN": 64},
            "dense_backward_queries": {"BM": 32, "BN": 16},
            "dense_backward_bias": {"BM": 16, "BN": 64},
        },
    ),
    (
        "routed_attention",
        "soft",
        {
            "routed_forward": {"BLOCK_M": 32, "BLOCK_N": 16},
            "routed_grad_q": {"BLOCK_M": 16, "BLOCK_N": 64},
            "routed_grad_kv": {"BLOCK_M": 16, "BLOCK_N": 32},
        },
    ),
    (
        "agent_attention",
        "shared-bias",
        {
            "agent_collect": {"BLOCK_N": 16},
            "agent_spread": {"BLOCK_N": 32},
            "agent_grad_spread": {"BLOCK_N": 16},
            "agent_grad_collect": {"BLOCK_N": 32},
        },
    ),
    ("ms_deform_attention", "boxes", {"ms_deform_forward": {"BLOCK": 8}, "ms_deform_backward": {"BLOCK": 64}}),
    ("super_token", "cut-cells", {name: {"BP": 32} for name in ("super_token_cell", "super_token_mean")}),
    ("linear_attention", "mala-rotated", {"linear_forward": {"BN": 16}, "linear_backward": {"BN": 32}}),
    ("linear_attention", "causal-decay", {"linear_causal_forward": {"BN": 16}, "linear_causal_backward": {"BN": 64}}),
    ("linear_attention", "taylor-linear", {"linear_taylor_forward": {"BN": 16}, "linear_taylor_backward": {"BN": 32}}),
    (
        "neighborhood_attention",
        "nat",
        {
            "neighborhood_forward": {"BK": 16},
            "neighborhood_grad_q": {"BK": 128},
            "neighborhood_grad_kv": {"BK": 16},
        },
    ),
    (
        "neighborhood_attention",
        "halo",
        {"halo_forward": {"TQ": 32}, "halo_grad_q": {"TQ": 32}, "halo_grad_kv": {"TQ": 64, "TK": 32}},
    ),
    ("super_token", "back", {"super_token_spread": {"BP": 64}, "super_token_cell": {"BP": 32}}),
]


@pytest.mark.usefixtures("triton_works")
@pytest.mark.parametrize("operator, name, tiles", OTHER_TILES, ids=[f"{o}-{n}" for o, n, _ in OTHER_TILES])
def test_results_do_not_depend_on_tiles(operator: str, name: str, tiles: dict, device: str) -> None:
    case = importlib.import_module(f"zoo_kernels.{operator}.cases").cases()[name]
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in case.args]
    kwargs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.kwargs.items()}
    with contextlib.ExitStack() as stack:
        for kernel, use in tiles.items():
            stack.enter_context(tuning.trial(kernel, use))
        queries = stack.enter_context(tuning.asked())
        check_against_reference(case.function, args, kwargs, backend="triton", dtype=torch.float32)
    for kernel, use in tiles.items():
        defaults = [query.default for query in queries if query.kernel == kernel]
        assert defaults, f"{kernel} was not launched"
        assert any(default[key] != size for default in defaults for key, size in use.items()), kernel
