"""Mixed precision and compilation in whole trainings, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook

from zoo.engine.compat import AmpOptimWrapper
from zoo.engine.launch import prepare
from zoo.weights.checkpoint import read_checkpoint

PARTS = Path(__file__).parents[1] / "engine" / "parts"
LEARNABLE = {"model.mixup": None, "train_cfg.max_epochs": 6, "param_scheduler.warmup_iters": 0}


class _Watch(Hook):
    """The dtype of the logits and the losses of a training."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        self.losses: list[float] = []

    def before_train(self, runner: Any) -> None:
        fc = runner.bare_model.backbone.fc
        fc.register_forward_hook(lambda m, i, out: self.dtypes.add(out.dtype) if m.training else None)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs["loss"].detach()))


def _train(tmp_path: Path, options: dict[str, Any], name: str = "run", **choices: Any) -> tuple[Any, _Watch]:
    if str(PARTS) not in sys.path:
        sys.path.insert(0, str(PARTS))
    from zoo.engine.runner import Runner

    config = prepare(PARTS / "toy_config.py", work_dir=tmp_path / name, options={**LEARNABLE, **options}, **choices)
    runner, watch = Runner.from_cfg(config), _Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


def _check_learned(runner: Any, watch: _Watch) -> None:
    assert watch.dtypes == {torch.bfloat16}
    assert sum(watch.losses[-5:]) < 0.7 * sum(watch.losses[:5])
    assert all(p.dtype == torch.float32 for p in runner.bare_model.parameters())


def test_bfloat16_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runner, watch = _train(tmp_path, {}, amp=True)
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
    _check_learned(runner, watch)
    _, full = _train(tmp_path, {}, "full")
    assert full.dtypes == {torch.float32}
    assert watch.losses[0] == pytest.approx(full.losses[0], rel=0.02)


def test_bfloat16_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _train(tmp_path, {}, "whole", amp=True)
    _train(tmp_path, {"train_cfg.max_epochs": 3, "param_scheduler.total_iters": 30}, amp=True)
    _train(tmp_path, {}, amp=True, resume=True)
    expected, found = (read_checkpoint(tmp_path / d / "epoch_6.pth")["state_dict"] for d in ("whole", "run"))
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_the_gpu(tmp_path: Path, dtype: str) -> None:
    runner, watch = _train(tmp_path, {}, amp=dtype)
    assert next(runner.bare_model.parameters()).is_cuda
    assert watch.dtypes == {getattr(torch, dtype)}
    assert sum(watch.losses[-5:]) < 0.7 * sum(watch.losses[:5])
    saved = read_checkpoint(tmp_path / "run" / "epoch_6.pth")
    assert all(v.device.type == "cpu" for v in saved["state_dict"].values())
    assert bool(saved["optimizer"]["loss_scaler"]) == (dtype == "float16")
    again, _ = _train(tmp_path, {"train_cfg.max_epochs": 7}, amp=dtype, resume=True)
    assert again.iter == 35


def test_float16_on_the_cpu_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="float16.*needs a GPU"):
        AmpOptimWrapper(optimizer=optimizer, dtype="float16")


@pytest.mark.parametrize("arguments", [{"dtype": "int8"}, {"loss_scale": "static"}, {"loss_scale": -1.0}])
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="accepted are"):
        AmpOptimWrapper(optimizer=optimizer, **arguments)


def test_compiled_training_is_the_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    few = {"train_cfg.max_epochs": 1, "model.backbone.dropout": 0.0}
    _, eager = _train(tmp_path, few, "eager")
    runner, compiled = _train(tmp_path, few, "compiled", compile={"backend": "aot_eager"})
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    keys = read_checkpoint(tmp_path / "compiled" / "epoch_1.pth")["state_dict"].keys()
    assert keys == read_checkpoint(tmp_path / "eager" / "epoch_1.pth")["state_dict"].keys()


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    few = {"train_cfg.max_epochs": 1, "model.backbone.dropout": 0.0}
    _, eager = _train(tmp_path, few, "eager")
    _, compiled = _train(tmp_path, few, "compiled", compile=True)
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-3)
