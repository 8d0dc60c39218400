"""Every fixture of a system that has an adapter passes, and the tool that says so can say otherwise."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("ZOO_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
ADAPTERS = ROOT / "tests" / "conformance" / "adapters"
SYSTEMS = sorted(p.stem for p in ADAPTERS.glob("*.py"))
CASES = [p for s in SYSTEMS for p in sorted((FIXTURES / s).glob("*.safetensors"))]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("zoo_tools_conformance", ROOT / "tools" / "conformance.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_matches_the_authors_implementation(tool, path, rounds_as_recorded):
    result = tool.run_case(path)
    if result.status == "fail" and not rounds_as_recorded(path.parent.name):
        pytest.xfail(result.line())
    assert result.status == "pass", result.line()


def test_fixtures_are_there(conformance_dir):
    assert CASES, f"no fixture in {conformance_dir} for {SYSTEMS}"


def copy_case(source: Path, target: Path, change=lambda tensors, meta: None) -> Path:
    with safe_open(source, "pt") as f:
        tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata())  # noqa: SIM118
    change(tensors, meta)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata=meta)
    return target


@pytest.fixture
def case(conformance_dir) -> Path:
    return conformance_dir / "davit" / "channel_block.safetensors"


def test_exit_status_json_and_lines(tool, case, tmp_path, capsys):
    good = tmp_path / "fixtures" / "davit"
    copy_case(case, good / "renamed.safetensors")
    copy_case(case, tmp_path / "fixtures" / "no_such_system" / "x.safetensors")
    report = tmp_path / "report" / "r.json"
    assert tool.main([str(tmp_path / "fixtures"), "--json", str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pass    davit/renamed")
    assert lines[1].startswith("missing no_such_system/x")
    assert "2 cases: 1 pass, 0 fail, 1 missing" in lines[2]
    rows = json.loads(report.read_text(encoding="utf-8"))
    assert [set(r) for r in rows] == [{"system", "case", "status", "output", "max_abs", "rel", "message"}] * 2
    assert [r["status"] for r in rows] == ["pass", "missing"]
    assert rows[0]["output"] in ("attn", "out")
    assert 0 <= rows[0]["rel"] <= 1e-5
    assert list(report.parent.iterdir()) == [report]

    def spoil(tensors, meta):
        tensors["output/out"] = tensors["output/out"] * (1 + 3e-5)

    copy_case(case, good / "spoiled.safetensors", spoil)
    assert tool.main([str(tmp_path / "fixtures"), "--system", "davit", "--json", str(report)]) == 1
    assert "fail    davit/spoiled  out: max abs" in capsys.readouterr().out
    assert [r["status"] for r in json.loads(report.read_text(encoding="utf-8"))] == ["pass", "fail"]
    assert tool.main([str(tmp_path / "fixtures"), "--system", "davitt"]) == 2
    assert "no system davitt" in capsys.readouterr().err
    assert tool.main([str(tmp_path / "nowhere")]) == 2


def rename_state(tensors, meta):
    tensors["state/attn.extra.weight"] = torch.zeros(1)


def drop_state(tensors, meta):
    del tensors["state/norm1.bias"]


def more_kwargs(tensors, meta):
    meta["kwargs"] = json.dumps({**json.loads(meta["kwargs"]), "mlp_ration": 4})


def more_outputs(tensors, meta):
    tensors["output/unknown"] = torch.zeros(1)


def other_shape(tensors, meta):
    tensors["output/out"] = tensors["output/out"][:1].clone()


@pytest.mark.parametrize(
    "change, message",
    [
        (rename_state, "unexpected key"),
        (drop_state, "norm1.bias"),
        (more_kwargs, "did you mean mlp_ratio"),
        (more_outputs, "no such output"),
        (other_shape, "expected (1, "),
    ],
)
def test_a_failure_says_why(tool, case, tmp_path, change, message):
    result = tool.run_case(copy_case(case, tmp_path / "davit" / "c.safetensors", change))
    assert result.status == "fail"
    assert message in result.message


def test_an_unknown_entry_is_missing_and_a_broken_file_fails(tool, case, tmp_path):
    def other_entry(tensors, meta):
        meta["entry"] = "timm.models.davit.SomethingElse"

    result = tool.run_case(copy_case(case, tmp_path / "davit" / "e.safetensors", other_entry))
    assert (result.status, "SomethingElse" in result.message) == ("missing", True)
    broken = tmp_path / "davit" / "broken.safetensors"
    broken.write_bytes(case.read_bytes()[:1000])
    assert tool.run_case(broken).status == "fail"


def test_an_error_inside_an_adapter_is_a_failure(tool, case, tmp_path):
    path = copy_case(case, tmp_path / "fixtures" / "sys1" / "c.safetensors")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "sys1.py").write_text("def run(entry, kwargs, state, inputs):\n    return {}['x']\n")
    result = tool.run_case(path, adapters)
    assert (result.status, result.message) == ("fail", "KeyError: 'x'")


def test_difference_is_exact_for_integers_and_strict_about_nan(tool):
    one = torch.tensor([1.0, 2.0])
    assert tool.difference(one, one.clone()) == (0.0, 0.0, "")
    assert tool.difference(torch.tensor([1, 2]), torch.tensor([1, 3]))[1] == float("inf")
    assert tool.difference(one, torch.tensor([1, 2]))[2].startswith("dtype")
    nan = torch.tensor([1.0, float("nan")])
    assert tool.difference(nan, nan)[1] == 0.0
    assert tool.difference(one, nan)[1] == float("inf")
    assert tool.difference(nan, one)[1] == float("inf")
    inf = torch.tensor([1.0, float("inf")])
    assert tool.difference(-inf, inf)[1] == float("inf")
    assert tool.difference(torch.full((2,), 0.5), torch.zeros(2))[1] > 0.5


def test_nested_names_become_dictionaries_and_lists(tool):
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    tree = tool.nest({"features/1": b, "features/0": a, "targets/0/boxes": c, "x": a})
    assert tree == {"features": [a, b], "targets": [{"boxes": c}], "x": a}
    assert dict(tool.flatten(tree)) == {"features/0": a, "features/1": b, "targets/0/boxes": c, "x": a}
