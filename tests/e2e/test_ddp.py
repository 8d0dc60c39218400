"""Two processes on the CPU (gloo, torchrun) train like one process on the same global batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from zoo.engine.runner import STOP_CHECK
from zoo.weights.checkpoint import read_checkpoint

PARTS = Path(__file__).parents[1] / "engine" / "parts"
# No dropout, mixing or batch norm: those see their own process's half of the batch.
PLAIN = """
model.update(mixup=None)
model["backbone"].update(dropout=0.0, batch_norm=False)
model["data_preprocessor"] = dict(mean=None, std=None)
log_level = "INFO"
"""


def _config(tmp_path: Path, name: str, more: str) -> Path:
    file = tmp_path / f"{name}.py"
    file.write_text((PARTS / "toy_config.py").read_text(encoding="utf-8") + PLAIN + more)
    return file


def _run(config: Path, work_dir: Path, processes: int, *flags: str) -> str:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(PARTS / "run_toy.py"), str(config), str(work_dir), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Work directories of one process with batches of 4 and of two with batches of 2, and what the two printed."""
    root = tmp_path_factory.mktemp("ddp")
    one, two = root / "one", root / "two"
    _run(_config(root, "one_process", ""), one, 1)
    printed = _run(_config(root, "two_processes", "train_dataloader.update(batch_size=2)\n"), two, 2)
    return one, two, printed


def test_same_weights_and_metrics(runs: tuple[Path, Path, str]) -> None:
    """Equal up to the order of float additions."""
    one, two = (read_checkpoint(d / "epoch_3.pth") for d in runs[:2])
    assert len(two["ranks"]) == 2
    assert two["meta"]["iter"] == one["meta"]["iter"] == 15
    for part in ("state_dict", "ema_state_dict"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    start = runs[0].parent
    assert start.is_dir()
    scores = [c["message_hub"]["log_scalars"]["val/toy/accuracy"]["log_history"].tolist() for c in (one, two)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2  # the third validation comes after the last checkpoint
    losses = [c["message_hub"]["log_scalars"]["train/loss"]["log_history"] for c in (one, two)]
    assert losses[0].shape == losses[1].shape == (15,)


def test_only_rank_0_logs(runs: tuple[Path, Path, str]) -> None:
    _, two, printed = runs
    assert len(list(two.glob("*/*.log"))) == 1
    assert len(list(two.glob("*/vis_data/scalars.json"))) == 1
    assert printed.count("Epoch(val) [3]") == 1


def test_resumes_in_two_processes(runs: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Each process gets its own random numbers back: the result is that of an uninterrupted run."""
    _, two, _ = runs
    config = _config(tmp_path, "two_processes", "train_dataloader.update(batch_size=2)\n")
    work_dir = tmp_path / "again"
    work_dir.mkdir()
    (work_dir / "epoch_2.pth").write_bytes((two / "epoch_2.pth").read_bytes())
    printed = _run(config, work_dir, 2, "resume")
    assert "epoch 2, iteration 10" in printed
    expected, found = (read_checkpoint(d / "epoch_3.pth")["state_dict"] for d in (two, work_dir))
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.slow
def test_sigterm_stops_all_processes_with_a_checkpoint(tmp_path: Path) -> None:
    """The processes agree on the iteration at which they stop; rank 0 saves it."""
    config = _config(tmp_path, "endless", "train_cfg.update(max_epochs=100000)\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(PARTS / "run_toy.py"), str(config), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "run").glob("epoch_*.pth")) and time.monotonic() < deadline:
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    name = (tmp_path / "run" / "last_checkpoint").read_text(encoding="utf-8")
    assert name.startswith("iter_"), errors.decode()[-2000:]
    saved = read_checkpoint(tmp_path / "run" / name)
    assert saved["meta"]["iter"] % STOP_CHECK == 0
    assert len(saved["ranks"]) == 2
