"""What today's torch needs of mmengine: each entry of zoo.engine.compat is needed, and does what it says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from zoo.engine.compat import ddp_arguments, init_process_group, local_device

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_engine_does_not_import_transformers() -> None:
    """But leaves it importable."""
    code = """
import sys
import zoo.engine.runner, zoo.engine.launch
assert "mmengine" in sys.modules
assert "transformers" not in sys.modules, "imported"
try:
    import transformers
except ModuleNotFoundError as error:
    assert "is not a package" not in str(error) and "halted" not in str(error), error
else:
    assert transformers.__version__
print("well")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "well", run.stderr


def test_process_group_needs_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in TORCHRUN:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="needs torchrun, but LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        init_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_mmengines_own_launcher_still_needs_a_gpu() -> None:
    """When this fails, mmengine has learnt it, and ours can go."""
    code = "from mmengine.dist import init_dist; init_dist('pytorch', backend='gloo')"
    environment = {**os.environ, **dict(zip(TORCHRUN, ("0", "0", "1", "127.0.0.1", "29512")))}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert "set_device" in run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_mmengines_own_mixed_precision_still_refuses_the_cpu() -> None:
    """When this fails, mmengine has learnt it, and ours can go."""
    from mmengine.optim import AmpOptimWrapper

    with pytest.raises(AssertionError, match="only available training on gpu"):
        AmpOptimWrapper(optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == torch.device("cpu")
    assert ddp_arguments(torch.device("cpu")) == {}
    assert ddp_arguments(torch.device("cuda", 1)) == {"device_ids": [1]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device() == torch.device("cuda", 3)
