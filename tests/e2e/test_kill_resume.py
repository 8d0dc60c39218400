"""A training that is killed (SIGKILL) and restarted ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.engine.checkpoint import checkpoint_files, what_is_wrong
from zoo.weights.checkpoint import read_checkpoint

PARTS = Path(__file__).parents[1] / "engine" / "parts"
BY_ITERATION = 'default_hooks["checkpoint"].update(by_epoch=False, interval=2)\n'
ITERATIONS = 15


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The toy training with a checkpoint every second iteration, and a hook that kills when told to."""
    source = (
        (PARTS / "toy_config.py")
        .read_text(encoding="utf-8")
        .replace("import ToyAccuracy", "import KillHook, ToyAccuracy")
    )
    file = tmp_path / "toy_kill.py"
    file.write_text(source + BY_ITERATION + "custom_hooks.append(dict(type=KillHook))\n")
    return file


def _train(config: Path, work_dir: Path, *flags: str, kill: str = "never") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PARTS / "run_toy.py"), str(config), str(work_dir), *flags]
    environment = {**os.environ, "KILL_AT": kill, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def _end(work_dir: Path) -> dict[str, object]:
    return read_checkpoint(work_dir / f"iter_{ITERATIONS}.pth")


def _check_kills(config: Path, tmp_path: Path, kills: list[str]) -> None:
    whole = _train(config, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    work_dir = tmp_path / "killed"
    for i, kill in enumerate(kills):
        run = _train(config, work_dir, *(["resume"] if i else []), kill=kill)
        assert run.returncode == -signal.SIGKILL, f"{kill}: {run.returncode} {run.stderr}"
        if kill.startswith("write"):
            assert list(work_dir.glob(".*.tmp")), "the kill did not come while a checkpoint was written"
        for file in checkpoint_files(work_dir):
            assert what_is_wrong(file) is None, "a checkpoint was left half-written"
    last = _train(config, work_dir, "resume")
    assert last.returncode == 0, last.stderr
    assert not list(work_dir.glob(".*.tmp"))
    expected, found = _end(tmp_path / "whole"), _end(work_dir)
    for part in ("state_dict", "ema_state_dict"):
        assert expected[part].keys() == found[part].keys()
        for key, value in expected[part].items():
            assert torch.equal(value, found[part][key]), f"{part} {key} differs"


def test_two_kills(config: Path, tmp_path: Path) -> None:
    """One at an iteration, one in the middle of writing a checkpoint."""
    step = random.randrange(3, 8)
    _check_kills(config, tmp_path, [f"step:{step}", f"write:2:{random.randrange(1, 15000)}"])


@pytest.mark.slow
def test_many_kills(config: Path, tmp_path: Path) -> None:
    """Twelve in one training, at random places; each run gets a little further or nowhere."""
    kills = ["step:1", "write:1:5000"]
    for step in range(2, 12, 2):
        kills += [f"step:{step + random.randrange(2)}", f"write:1:{random.randrange(1, 15000)}"]
    assert len(kills) == 12
    _check_kills(config, tmp_path, kills)
