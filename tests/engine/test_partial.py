"""Parts that are not trained, and parts that a checkpoint does not fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.engine.partial import freeze, frozen_norms, load_except, matches
from zoo.weights.checkpoint import CheckpointError, read_checkpoint


@pytest.fixture
def backbone():
    from toy_engine_parts import ToyBackbone

    return lambda **k: ToyBackbone(**k)


def test_patterns() -> None:
    assert matches("a.b.weight", ["a.b"])
    assert matches("a.b.weight", ["*.weight"])
    assert matches("a", ["a"])
    assert not matches("a.bc.weight", ["a.b"])
    assert not matches("a.b", [])


def test_frozen_parts_stay(toy: Any, tmp_path: Path) -> None:
    start = toy({}, name="start").bare_model.state_dict()
    start = {k: v.clone() for k, v in start.items()}
    runner = toy({"freeze": ["backbone.stem", "backbone.bn"], "train_cfg.max_epochs": 1})
    assert len(runner.bare_model.backbone.stem.weight.shape) == 4
    end = runner.train().state_dict()
    same = {k for k in start if torch.equal(start[k], end[k])}
    assert same == {k for k in start if k.startswith(("backbone.stem", "backbone.bn"))}
    groups = runner.optim_wrapper.param_groups
    assert not {id(runner.bare_model.backbone.stem.weight)} & {id(p) for g in groups for p in g["params"]}


def test_a_norm_with_a_trained_part_is_trained(backbone: Any) -> None:
    model = backbone()
    freeze(model, "bn.weight")
    assert frozen_norms(model) == []
    assert freeze(model, ["bn"]) == ["bn.weight", "bn.bias"]
    assert frozen_norms(model) == [model.bn]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["stm"], "nothing in the model is named 'stm'; did you mean stem"),
        (["*"], "no parameter to train"),
        ([3], "accepted"),
    ],
)
def test_wrong_patterns(backbone: Any, patterns: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(backbone(), patterns)


def test_excepted_parts_begin_anew(backbone: Any) -> None:
    source = backbone(num_classes=4).state_dict()
    model = backbone()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = load_except(model, source, ["fc", "stem"])
    assert report.fits
    assert sorted(report.dropped) == ["fc.bias", "fc.weight", "stem.bias", "stem.weight"]
    after = model.state_dict()
    for key in after:
        expected = before if key.startswith(("fc", "stem")) else source
        assert torch.equal(after[key], expected[key]), key
    with pytest.raises(CheckpointError, match="fc.weight is"):
        load_except(backbone(), source, ["stem"])
    with pytest.raises(ValueError, match="load_except: nothing in the model is named 'fcc'; did you mean fc"):
        load_except(backbone(), source, ["fcc"])


def test_in_a_config(toy: Any, tmp_path: Path) -> None:
    toy({"train_cfg.max_epochs": 1}, name="first").train()
    file = tmp_path / "first" / "epoch_1.pth"
    runner = toy({"load_except": ["backbone.fc"]}, name="second", load_from=file)
    average = read_checkpoint(file)["ema_state_dict"]
    own = runner.bare_model.state_dict()
    assert torch.equal(own["backbone.stem.weight"], average["backbone.stem.weight"])
    assert not torch.equal(own["backbone.fc.weight"], average["backbone.fc.weight"])
    assert runner.load_report is not None
    assert "backbone.fc.weight" in runner.load_report.dropped
