"""The config in a checkpoint is read as data: what our runner writes comes back, and nothing else is run or built."""

import sys

import pytest
import torch

import zoo
from zoo.engine.config import config_text, list_configs, load_config
from zoo.engine.recorded import recorded_config
from zoo.weights.checkpoint import CheckpointError

NANO = "davit-nano_cls_12e_digits"


@pytest.mark.parametrize(
    "name", sorted(n for n in list_configs() if n.endswith(("_digits", "davit-tiny_cls_300e_in1k")))
)
def test_what_our_runner_writes_comes_back(name):
    config = load_config(name)
    found = recorded_config(config_text(config))
    assert config_text(found) == config_text(config)


def _nano() -> str:
    return config_text(load_config(NANO))


@pytest.mark.parametrize(
    "change",
    [
        lambda t, f: f"open({f!r}, 'w')\n{t}",
        lambda t, f: f"import os\n{t}",
        lambda t, f: f"{t}x = __import__('os').system('touch {f}')\n",
        lambda t, f: f"{t}work_dir = f'{{open({f!r}, \"w\")}}'\n",
        lambda t, f: f"{t}work_dir = [open({f!r}, 'w') for _ in '1']\n",
        lambda t, f: f"{t}work_dir = (lambda: open({f!r}, 'w'))()\n",
        lambda t, f: f"{t}work_dir = dict(**open({f!r}, 'w'))\n",
        lambda t, f: f"from zoo.api import *\n{t}",
        lambda t, f: f"def g(): open({f!r}, 'w')\ng()\n{t}",
        lambda t, f: t.replace("'zoo.backbones.davit.davit_nano', drop_path_rate=0.05", f"'os.mkdir', path={f!r}"),
        lambda t, f: t.replace("dict(type='zoo.backbones.davit.davit_nano', drop_path_rate=0.05)", "'os.getcwd'"),
        lambda t, f: t.replace("timm.loss.LabelSmoothingCrossEntropy", "subprocess.Popen"),
        lambda t, f: t.replace("torch.optim.AdamW", "antigravity.AdamW"),
        lambda t, f: t.replace("timm.loss.LabelSmoothingCrossEntropy", "torch.nn.modules.module.os.mkdir"),
        lambda t, f: t.replace("timm.loss.LabelSmoothingCrossEntropy", "zoo.backbones.davit.partial"),
        lambda t, f: t.replace("zoo.backbones.davit.davit_nano", "zoo.cli.main"),
        lambda t, f: t + "x = " + "(" * 300 + ")" * 300,
        lambda t, f: t + "x = " + "[" * 60 + "]" * 60,
        lambda t, f: t + "#" * (1 << 20),
        lambda t, f: t + "\0",
        lambda t, f: "model = dict(type='zoo.classification.model.ImageClassifier')",
    ],
)
def test_programs_and_other_names_are_refused(change, tmp_path):
    flag = tmp_path / "it_ran"
    text = change(_nano(), str(flag))
    assert text != _nano()
    with pytest.raises(CheckpointError, match="the config that the checkpoint records"):
        recorded_config(text)
    assert not flag.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("text", [None, "", 3, {}, "model = dict(type='mmcls.ImageClassifier')", "raise SystemExit"])
def test_configs_of_other_programs_are_left_alone(text):
    assert recorded_config(text) is None


def test_predicting_with_a_hostile_checkpoint_runs_nothing(tmp_path):
    flag, file = tmp_path / "it_ran", tmp_path / "c.pth"
    text = f"{_nano()}work_dir = open({str(flag)!r}, 'w')\n"
    state = zoo.create_model("davit_nano", num_classes=10).state_dict()
    torch.save({"state_dict": state, "meta": {"cfg": text}}, file)
    with pytest.raises(CheckpointError, match="is a program"):
        list(zoo.predict("davit_nano", torch.zeros(3, 32, 32), weights=file))
    assert not flag.exists()
