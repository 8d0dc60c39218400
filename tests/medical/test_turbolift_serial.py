"""Turbolift's serial training: organ after organ; a run killed in its second stage ends as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.engine.config import load_config
from zoo.engine.launch import train
from zoo.weights.checkpoint import read_checkpoint

CONFIG = "turbolift-nano_seg_serial_phantom"
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from mmengine.hooks import Hook
from zoo.engine.runner import Runner
from zoo.engine.launch import train

class Kill(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if "spleen" in runner.work_dir and runner.iter == 1:
            os.kill(os.getpid(), signal.SIGKILL)

register = Runner.register_default_hooks
def with_kill(self, hooks=None):
    register(self, hooks)
    self.register_hook(Kill(), priority="LOWEST")

Runner.register_default_hooks = with_kill
train(sys.argv[1], work_dir=sys.argv[2], options=sys.argv[3:])
"""


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    from zoo.data.phantom_dataset import cached_phantom

    return cached_phantom(5, (32, 32, 16), folder=tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def options(phantom: Path) -> dict:
    """Two tiny stages with a checkpoint every iteration."""
    given: dict = {
        "train_cfg.val_interval": 9,
        "train_cfg.max_epochs": 1,
        "val_cfg": None, "val_dataloader": None, "val_evaluator": None,
        "test_cfg": None, "test_dataloader": None, "test_evaluator": None,
        "train_dataloader.batch_size": 2,
        "train_dataloader.dataset.source": str(phantom),
        "train_dataloader.dataset.samples_per_volume": 1,
        "train_dataloader.dataset.workers": 1,
        "default_hooks.checkpoint.by_epoch": False,
        "default_hooks.checkpoint.save_best": None,
        "model.network.widths": (4, 8, 8, 8, 8),
        "visualizer": None,
        "log_level": "WARNING",
        "stages": [
            dict(name="liver", train_dataloader=dict(dataset=dict(organs=["liver"]))),
            dict(
                name="spleen",
                train_dataloader=dict(dataset=dict(organs=["spleen", "kidney"])),
                model=dict(num_classes=3),
            ),
        ],
    }  # fmt: skip
    return given


def test_the_recipe_is_serial() -> None:
    from zoo.engine.staged import stages_of

    found = stages_of(load_config(CONFIG))
    assert [s.name for s in found] == ["liver", "spleen", "kidney", "gallbladder"]
    for stage in found:
        for loader in ("train", "val", "test"):
            assert stage.config[f"{loader}_dataloader"].dataset.organs == [stage.name]
    assert found[-1].start_from == "best"


def test_killed_in_the_second_stage(options: dict, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(CONFIG, work_dir=tmp_path / "whole", options=options)
        script = tmp_path / "killed.py"
        script.write_text(KILLED)
        command = [
            sys.executable,
            str(script),
            CONFIG,
            str(tmp_path / "killed"),
            *(f"{k}={v}" for k, v in options.items()),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == -signal.SIGKILL, run.stderr
        state = json.loads((tmp_path / "killed" / "stages.json").read_text(encoding="utf-8"))["stages"]
        assert [(s["name"], s["weights"]) for s in state] == [("liver", "iter_2.pth"), ("spleen", None)]
        runner = train(CONFIG, work_dir=tmp_path / "killed", options=options, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert runner._resumed_file is not None
    assert Path(runner.work_dir).name == "2_spleen"
    for stage in ("1_liver", "2_spleen"):
        expected, found = (read_checkpoint(tmp_path / d / stage / "iter_2.pth") for d in ("whole", "killed"))
        for part in ("state_dict", "ema_state_dict"):
            assert expected[part].keys() == found[part].keys()
            assert [k for k, v in expected[part].items() if not torch.equal(v, found[part][k])] == [], stage
    assert list(found["meta"]["dataset_meta"]["classes"]) == ["background", "spleen", "kidney"]
    assert next(v for k, v in found["state_dict"].items() if k.endswith("heads.0.weight")).shape[0] == 3


def test_a_task_has_its_organs_alone(phantom: Path) -> None:
    from zoo.data.volume_dataset import VolumeDataset
    from zoo.data.volume_task import VolumeTask

    whole = VolumeDataset(phantom, split="val", workers=1)
    task = VolumeTask(["kidney", "liver"], phantom, split="val", workers=1)
    assert task.classes == ("background", "kidney", "liver")
    assert task.label_ids == (0, 3, 1)
    a, b = (d[0]["data_samples"].gt_label.numpy() for d in (whole, task))
    assert np.array_equal(b == 1, a == 3)
    assert np.array_equal(b == 2, a == 1)
    assert (a == 2).any()


@pytest.mark.parametrize(
    ("organs", "message"),
    [(["livr"], "'livr' is no class of .*did you mean liver"), ([], "one or more"), (["liver", "liver"], "each once")],
)
def test_wrong_organs_are_named(phantom: Path, organs: list, message: str) -> None:
    from zoo.data.volume_task import VolumeTask

    with pytest.raises(ValueError, match=message):
        VolumeTask(organs, phantom)
