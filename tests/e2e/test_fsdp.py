"""Sharded training (torch's FSDP) in two processes on the CPU, and its checkpoint in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.engine.strategy import sharding_works
from zoo.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(
    not sharding_works(torch.device("cpu")), reason=f"torch {torch.__version__} shards on GPUs only"
)

PARTS = Path(__file__).parents[1] / "engine" / "parts"
SHARDED = """
model.update(mixup=None)
model["backbone"].update(dropout=0.0, batch_norm=False)
train_cfg.update(max_epochs=2)
strategy = dict(name="fsdp")
"""


def _run(config: Path, work_dir: Path, processes: int, *flags: str) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(PARTS / "run_toy.py"), str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*command, str(work_dir), *flags], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


def _config(tmp_path: Path, name: str, more: str) -> Path:
    file = tmp_path / f"{name}.py"
    file.write_text((PARTS / "toy_config.py").read_text(encoding="utf-8") + SHARDED + more)
    return file


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a sharded training in two processes."""
    root = tmp_path_factory.mktemp("fsdp")
    _run(_config(root, "sharded", "train_dataloader.update(batch_size=2)\n"), root / "two", 2)
    return root / "two"


def test_trains_like_one_process(sharded: Path, tmp_path: Path) -> None:
    """The weights are those of an unsharded training on the same global batch, up to the order of additions."""
    _run(_config(tmp_path, "one", ""), tmp_path / "one", 1)
    two, one = (read_checkpoint(d / "epoch_2.pth") for d in (sharded, tmp_path / "one"))
    assert len(two["ranks"]) == 2
    for part in ("state_dict", "ema_state_dict"):
        assert two[part].keys() == one[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=1e-4, atol=1e-5)


def test_checkpoint_loads_in_one_process(sharded: Path) -> None:
    """Its file holds whole tensors under the ordinary names."""
    sys.path.insert(0, str(PARTS))
    from toy_engine_parts import ToyBackbone

    from zoo.classification.model import ImageClassifier
    from zoo.weights.load import load_weights

    model = ImageClassifier(ToyBackbone(batch_norm=False), num_classes=3).eval()
    before = model(torch.ones(1, 3, 8, 8))
    report = load_weights(model, sharded / "epoch_2.pth")
    assert report.exact
    assert not torch.equal(model(torch.ones(1, 3, 8, 8)), before)


def test_resumes_sharded_and_in_one_process(sharded: Path, tmp_path: Path) -> None:
    """The optimizer's state is whole too: the third epoch is the same sharded and not."""
    ends = []
    for processes, batch in ((2, 2), (1, 4)):
        work_dir = tmp_path / str(processes)
        work_dir.mkdir()
        (work_dir / "epoch_2.pth").write_bytes((sharded / "epoch_2.pth").read_bytes())
        more = f"train_dataloader.update(batch_size={batch})\ntrain_cfg.update(max_epochs=3)\n"
        _run(_config(tmp_path, f"on_{processes}", more), work_dir, processes, "resume")
        ends.append(read_checkpoint(work_dir / "epoch_3.pth")["state_dict"])
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-4, atol=1e-5)
