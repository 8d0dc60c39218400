"""The runner and its launching: settings, data loaders, loops, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.engine.config import ConfigError
from zoo.engine.dataloader import build_dataloader
from zoo.engine.launch import prepare, train
from zoo.engine.launch import test as evaluate
from zoo.engine.loops import batches
from zoo.engine.state import rng_state, seed_everything, undisturbed_rng
from zoo.engine.strategy import Strategy
from zoo.weights.checkpoint import CheckpointError


def _loader(**arguments: Any) -> Any:
    from toy_engine_parts import ToyData

    return build_dataloader({"dataset": {"type": ToyData}, "batch_size": 4, **arguments}, seed=5)


def _order(loader: Any, epoch: int, start: int = 0) -> list[tuple[int, list[int]]]:
    return [(n, [s.sample_idx for s in b["data_samples"]]) for n, b in batches(loader, epoch, start, 5)]


# -- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_starts_anywhere(workers: int) -> None:
    """Only the batches that are asked for are loaded, in the order of the whole pass."""
    loader = _loader(sampler={"type": "DefaultSampler", "shuffle": True}, num_workers=workers)
    whole = _order(loader, 2)
    assert [n for n, _ in whole] == [0, 1, 2, 3, 4]
    assert sorted(i for _, b in whole for i in b) == list(range(20))
    for start in range(6):
        assert _order(loader, 2, start) == whole[start:]
    assert _order(loader, 3) != whole


def test_ready_loader_is_used_by_skipping() -> None:
    from mmengine.dataset import pseudo_collate
    from torch.utils.data import DataLoader
    from toy_engine_parts import ToyData

    loader = DataLoader(ToyData(), batch_size=4, collate_fn=pseudo_collate)
    assert build_dataloader(loader) is loader
    assert _order(loader, 0, 3) == [(3, [12, 13, 14, 15]), (4, [16, 17, 18, 19])]


def test_persistent_workers_see_the_epoch() -> None:
    """The datasets of this project keep their epoch in shared memory."""
    from zoo.data.digits import Digits

    loader = build_dataloader(
        {
            "dataset": {"type": Digits, "size": 8, "transform": {"train": True, "size": 8, "recipe": "light"}},
            "batch_size": 8,
            "num_workers": 1,
            "persistent_workers": True,
            "num_batch_per_epoch": 1,
        },
        seed=5,
    )
    first, second, again = (next(batches(loader, e, 0, 5))[1]["inputs"][0] for e in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_seed_reaches_the_dataset_unless_it_has_its_own() -> None:
    from toy_engine_parts import ToyData

    assert _loader().dataset.seed == 5
    assert _loader(dataset={"type": ToyData, "seed": 9}).dataset.seed == 9
    assert len(_loader(num_batch_per_epoch=2)) == 2


def test_loader_without_a_batch_is_told(toy: Any) -> None:
    with pytest.raises(ValueError, match="no batch: 3 samples, batch_size=4"):
        toy({"train_dataloader.dataset.length": 3, "train_dataloader.drop_last": True}).train()
    with pytest.raises(ValueError, match="has no 'batch_size'"):
        build_dataloader({"dataset": []})


# -- random numbers -----------------------------------------------------------------------------------------------


def test_random_numbers_are_left_as_they_were() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    seed_everything(1)
    first = draw()
    seed_everything(1)
    with undisturbed_rng():
        assert draw() == first
    assert draw() == first
    assert draw() != first
    seed_everything(1, rank=1)
    assert draw() != first
    assert all(not callable(v) for v in rng_state().values())


# -- settings -----------------------------------------------------------------------------------------------------


def test_choices_of_a_command_line(toy_config: Path, tmp_path: Path) -> None:
    from zoo.engine.compat import AmpOptimWrapper

    config = prepare(toy_config, amp=True, compile={"mode": "default"}, seed=11, resume=True, load_from="x.pth")
    assert config.optim_wrapper.type is AmpOptimWrapper
    assert config.optim_wrapper.dtype == "bfloat16"
    assert config.compile == {"mode": "default"}
    assert config.randomness == {"seed": 11}
    assert (config.resume, config.load_from) == (True, "x.pth")
    assert Path(config.work_dir) == Path("work_dirs/toy_config")
    assert prepare(toy_config, work_dir=tmp_path).work_dir == str(tmp_path)
    with pytest.raises(ConfigError, match="amp='int8'"):
        prepare(toy_config, amp="int8")


def test_train_and_evaluate(toy_config: Path, tmp_path: Path) -> None:
    runner = train(toy_config, work_dir=tmp_path, options=["train_cfg.max_epochs=1"])
    assert runner.iter == 5
    metrics = evaluate(toy_config, tmp_path / "epoch_1.pth", work_dir=tmp_path / "test")
    assert 0 <= metrics["toy/accuracy"] <= 1
    with pytest.raises(FileNotFoundError, match=r"epoch_9\.pth"):
        evaluate(toy_config, tmp_path / "epoch_9.pth", work_dir=tmp_path / "test")
    with pytest.raises(CheckpointError, match=r"backbone\.fc"):
        evaluate(toy_config, tmp_path / "epoch_1.pth", work_dir=tmp_path, options=["model.num_classes=7"])


def test_gradient_checkpointing_trains_the_same(toy: Any) -> None:
    weights = []
    for enabled in (False, True):
        options = {"model.grad_checkpointing": enabled, "train_cfg.max_epochs": 1}
        runner = toy(options, name=f"checkpointing_{enabled}")
        assert runner.bare_model.backbone.grad_checkpointing is enabled
        runner.train()
        weights.append(runner.bare_model.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


@pytest.mark.parametrize("arguments", [{"name": "deepspeed"}, {"param_dtype": "int8"}])
def test_unknown_strategies_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="accepted are"):
        Strategy(**arguments)


def test_model_that_cannot_be_compiled_is_told(toy: Any) -> None:
    runner = toy({"compile": True})
    runner.model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="Linear has no compile_network"):
        runner._maybe_compile()


def test_curves_are_drawn_at_the_end(toy: Any, tmp_path: Path) -> None:
    backends = [{"type": "mmengine.visualization.LocalVisBackend"}]
    runner = toy(
        {
            "visualizer": {"type": "mmengine.visualization.Visualizer", "vis_backends": backends},
            "default_hooks.logger": {"type": "mmengine.hooks.LoggerHook", "interval": 1},
            "default_hooks.curves": {"type": "zoo.engine.hooks.CurveHook"},
        }
    )
    runner.train()
    pictures = list((tmp_path / "run").glob("*.png"))
    assert len(pictures) == 1
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


def test_hook_set_to_none_is_left_out(toy: Any) -> None:
    from zoo.engine.hooks import CheckpointHook, FiniteLossHook

    kinds = [type(h) for h in toy({"default_hooks.finite_loss": None}).hooks]
    assert FiniteLossHook not in kinds
    assert CheckpointHook in kinds
    assert FiniteLossHook in [type(h) for h in toy().hooks]
