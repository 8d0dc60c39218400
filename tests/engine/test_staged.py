"""Serial training: every stage from the one before, and resumed exactly, within and between stages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.engine.config import ConfigError, load_config
from zoo.engine.launch import prepare, train
from zoo.engine.launch import test as evaluate
from zoo.engine.staged import STATE, StagedTraining, config_of_stage, stages_of
from zoo.weights.checkpoint import CheckpointError, read_checkpoint

PARTS = Path(__file__).parent / "parts"
STAGES = """
stages = [
    dict(name="colours", train_cfg=dict(max_epochs=2)),
    dict(
        name="shades",
        model=dict(num_classes=5),
        train_dataloader=dict(dataset=dict(seed=9)),
        optim_wrapper=dict(optimizer=dict(lr=0.005)),
        freeze=["backbone.stem", "backbone.bn"],
    ),
]
"""
LAST = {"1_colours": "epoch_2.pth", "2_shades": "epoch_3.pth"}


@pytest.fixture
def make_config(tmp_path: Path, toy_config: Path):
    """``make_config(stages, more)``: the toy training's config with stages."""

    def make(stages: str = STAGES, more: str = "") -> Path:
        source = toy_config.read_text(encoding="utf-8").replace("import ToyAccuracy", "import KillHook, ToyAccuracy")
        file = tmp_path / "toy_staged.py"
        file.write_text(f"{source}{stages}\n{more}\n")
        return file

    return make


def weights(file: Path, part: str = "state_dict") -> dict[str, torch.Tensor]:
    return read_checkpoint(file)[part]


def assert_equal_ends(a: Path, b: Path) -> None:
    for folder, name in LAST.items():
        for part in ("state_dict", "ema_state_dict"):
            first, second = weights(a / folder / name, part), weights(b / folder / name, part)
            assert first.keys() == second.keys()
            assert [k for k in first if not torch.equal(first[k], second[k])] == [], folder


# -- what a stage is ----------------------------------------------------------------------------------------------


def test_stages_are_changes_to_the_config(make_config) -> None:
    config = load_config(make_config())
    first, second = stages_of(config)
    assert (first.folder, second.folder) == ("1_colours", "2_shades")
    assert first.config.train_cfg == {"by_epoch": True, "max_epochs": 2}
    assert second.config.train_cfg == {"by_epoch": True, "max_epochs": 3}
    assert second.config.model.num_classes == 5
    assert second.config.model.backbone == first.config.model.backbone
    assert second.config.optim_wrapper.optimizer.lr == 0.005
    assert second.config.optim_wrapper.optimizer.weight_decay == 0.05
    assert "stages" not in second.config
    assert config_of_stage(config, "somewhere/1_colours/epoch_2.pth").train_cfg.max_epochs == 2
    assert config_of_stage(config, "somewhere/x.pth").train_cfg.max_epochs == 3


def test_another_type_replaces_and_so_does_delete(make_config) -> None:
    stages = """
from torch.optim import SGD
from zoo.engine.optim import ParamGroups
stages = [
    dict(name="a", optim_wrapper=dict(optimizer=dict(type=SGD, lr=1.0))),
    dict(name="b", optim_wrapper=dict(clip_grad=dict(_delete_=True, max_norm=2.0, norm_type=1))),
]
"""
    first, second = (s.config for s in stages_of(load_config(make_config(stages))))
    assert first.optim_wrapper.optimizer == {"type": "torch.optim.SGD", "lr": 1.0}
    assert first.optim_wrapper.clip_grad == {"max_norm": 1.0}
    assert second.optim_wrapper.clip_grad == {"max_norm": 2.0, "norm_type": 1}
    assert second.optim_wrapper.optimizer.lr == 0.01


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("stages = []", r"stages=\[\]: accepted is a list"),
        ("stages = dict(name='a')", "accepted is a list"),
        ("stages = [dict(train_cfg=dict(max_epochs=1))]", "stage 1 has no name"),
        ("stages = [dict(name='a/b')]", "name='a/b' is no folder's name"),
        ("stages = [dict(name='a'), dict(name='A')]", "stage 2: name='A' is that of an earlier stage"),
        (
            "stages = [dict(name='a', train_confg=1)]",
            r"stage 1 \('a'\): unknown key 'train_confg'; did you mean train_cfg",
        ),
        ("stages = [dict(name='a', work_dir='x')]", "'work_dir' is not a stage's to say"),
        ("stages = [dict(name='a', start_from='first')]", "start_from='first': accepted are 'last', 'best'"),
        ("stages = [dict(name='a'), dict(name='b', train_cfg=dict(max_epoch=1))]", r"in stage 2 \('b'\): .*max_epoch"),
        ("stages = [dict(name='a', model=dict(num_class=1))]", r"in stage 1 \('a'\): .*did you mean num_classes"),
    ],
)
def test_wrong_stages_are_refused(make_config, stages: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(make_config(stages))


def test_options_reach_into_stages(make_config, tmp_path: Path) -> None:
    cfg = prepare(make_config(), work_dir=tmp_path / "w", options=["stages.1.train_cfg.max_epochs=7"])
    assert stages_of(cfg)[1].config.train_cfg.max_epochs == 7


# -- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums come out the same here and in the processes that are killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _one_thread) -> Path:
    """The work directory of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("staged")
    source = (
        (PARTS / "toy_config.py")
        .read_text(encoding="utf-8")
        .replace("import ToyAccuracy", "import KillHook, ToyAccuracy")
    )
    (folder / "toy_staged.py").write_text(f"{source}{STAGES}")
    train(folder / "toy_staged.py", work_dir=folder / "run")
    return folder / "run"


def start(config: Path, work_dir: Path, *flags: str, kill: str = "never") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PARTS / "run_toy.py"), str(config), str(work_dir), *flags]
    environment = {**os.environ, "KILL_AT": kill, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_stage_starts_from_the_one_before(whole: Path, make_config, tmp_path: Path) -> None:
    state = json.loads((whole / STATE).read_text(encoding="utf-8"))["stages"]
    assert [(s["name"], s["weights"]) for s in state] == [("colours", "epoch_2.pth"), ("shades", "epoch_3.pth")]
    assert 0 <= state[1]["metrics"]["toy/accuracy"] <= 1
    before, after = weights(whole / "1_colours/epoch_2.pth", "ema_state_dict"), weights(whole / "2_shades/epoch_3.pth")
    frozen = [k for k in after if k.startswith(("backbone.stem", "backbone.bn"))]
    assert {"backbone.stem.weight", "backbone.bn.weight", "backbone.bn.running_mean"} <= {*frozen}
    for key in set(frozen) & set(before):
        assert torch.equal(before[key], after[key]), key  # begun from the average, and not trained
    statistics = weights(whole / "1_colours/epoch_2.pth")
    assert torch.equal(statistics["backbone.bn.running_mean"], after["backbone.bn.running_mean"])
    assert after["backbone.fc.weight"].shape[0] == 5
    moved = after["backbone.blocks.0.conv.weight"] - before["backbone.blocks.0.conv.weight"]
    assert 0 < moved.abs().max() < 0.2  # trained further, and not begun anew


def test_metrics_of_a_checkpoint_are_those_of_its_stage(whole: Path, make_config) -> None:
    for folder, name in LAST.items():
        metrics = evaluate(make_config(), whole / folder / name, work_dir=whole / "test")
        assert 0 <= metrics["toy/accuracy"] <= 1


def test_killed_in_the_second_stage_and_resumed(make_config, tmp_path: Path, whole: Path) -> None:
    """SIGKILL of a process of its own, whose checkpoints are every second iteration."""
    often = 'default_hooks["checkpoint"].update(by_epoch=False, interval=2)\ncustom_hooks.append(dict(type=KillHook))\n'
    file, work_dir = make_config(more=often), tmp_path / "killed"
    run = start(file, work_dir, kill="step:11")  # the first stage has 10 iterations, the second 15
    assert run.returncode == -signal.SIGKILL, run.stderr
    state = json.loads((work_dir / STATE).read_text(encoding="utf-8"))["stages"]
    assert [s["weights"] for s in state] == ["iter_10.pth", None]
    assert (work_dir / "2_shades" / "last_checkpoint").read_text(encoding="utf-8") == "iter_10.pth"
    run = start(file, work_dir, "resume")
    assert run.returncode == 0, run.stderr
    for folder, name, own in (("1_colours", "epoch_2.pth", "iter_10.pth"), ("2_shades", "epoch_3.pth", "iter_15.pth")):
        for part in ("state_dict", "ema_state_dict"):
            expected, found = weights(whole / folder / name, part), weights(work_dir / folder / own, part)
            assert [k for k in expected if not torch.equal(expected[k], found[k])] == [], f"{folder} {part}"


class _Interrupted(Exception):
    pass


def test_killed_between_stages(make_config, tmp_path: Path, whole: Path, monkeypatch) -> None:
    """After the first stage's end is noted, and after the second was noted as begun, before its first checkpoint."""
    from zoo.engine.runner import Runner

    file, work_dir = make_config(), tmp_path / "between"
    real = Runner.train

    def train_once(self: Any) -> Any:
        if Path(self.work_dir).name.startswith("2_"):
            raise _Interrupted
        return real(self)

    monkeypatch.setattr(Runner, "train", train_once)
    with pytest.raises(_Interrupted):
        train(file, work_dir=work_dir)
    assert len(json.loads((work_dir / STATE).read_text(encoding="utf-8"))["stages"]) == 2
    state = json.loads((work_dir / STATE).read_text(encoding="utf-8"))
    state["stages"].pop()  # as it was when the first stage had ended
    (work_dir / STATE).write_text(json.dumps(state))
    with pytest.raises(_Interrupted):
        train(file, work_dir=work_dir, resume=True)
    monkeypatch.setattr(Runner, "train", real)
    torch.manual_seed(77)  # whatever the process drew before must not matter
    runner = train(file, work_dir=work_dir, resume=True)
    assert Path(runner.work_dir).name == "2_shades"
    assert_equal_ends(work_dir, whole)
    # once more: everything is finished, nothing is trained again
    before = (work_dir / "2_shades" / "epoch_3.pth").stat().st_mtime_ns
    train(file, work_dir=work_dir, resume=True)
    assert (work_dir / "2_shades" / "epoch_3.pth").stat().st_mtime_ns == before


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """A work directory in which the first stage is finished."""
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(whole / "1_colours", folder / "1_colours")
    state = json.loads((whole / STATE).read_text(encoding="utf-8"))
    state["stages"].pop()
    (folder / STATE).write_text(json.dumps(state))
    return folder


def staged(file: Path, work_dir: Path, *options: str, resume: bool = True) -> StagedTraining:
    return StagedTraining(prepare(file, work_dir=work_dir, options=list(options)), resume=resume)


def test_a_finished_stage_keeps_its_config(make_config, half: Path) -> None:
    assert staged(make_config(), half).finished == 1
    with pytest.raises(ConfigError, match=r"stage 1 \('colours'\) is finished.*train_cfg.max_epochs was 2 and is 4"):
        staged(make_config(), half, "stages.0.train_cfg.max_epochs=4")
    with pytest.raises(ConfigError, match=r"stage 1 .* is finished.*model.backbone.dim was None and is 16"):
        staged(make_config(), half, "model.backbone.dim=16")
    assert staged(make_config(), half, "stages.1.train_cfg.max_epochs=4").finished == 1  # not begun yet
    with pytest.raises(ConfigError, match=r"stage 1 of .* is 'colours', the config has 'hues'"):
        staged(make_config(STAGES.replace("colours", "hues")), half)


def test_a_work_directory_is_not_overwritten(make_config, half: Path) -> None:
    with pytest.raises(ConfigError, match="holds a training with 1 of 2 stages finished: go on with resume"):
        staged(make_config(), half, resume=False)
    (half / STATE).unlink()
    with pytest.raises(ConfigError, match="1_colours holds checkpoints, but stages.json does not know"):
        staged(make_config(), half)


def test_damaged_files_are_told(make_config, half: Path) -> None:
    training = staged(make_config(), half)
    file = half / "1_colours" / "epoch_2.pth"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"the weights of stage 1 \('colours'\).*truncated"):
        training.run()
    file.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        training.run()
    (half / STATE).write_text('{"format": 1, "sta')
    with pytest.raises(CheckpointError, match="stages.json is damaged"):
        staged(make_config(), half)
    (half / STATE).write_text('{"format": 2, "stages": []}')
    with pytest.raises(CheckpointError, match="format 2"):
        staged(make_config(), half)


def test_only_the_classifier_may_differ(make_config, half: Path) -> None:
    wider = STAGES.replace("model=dict(num_classes=5)", "model=dict(backbone=dict(dim=12))").replace("freeze", "# ")
    with pytest.raises(ConfigError, match=r"stage 2 \('shades'\) cannot start .*backbone.table.* as load_except"):
        staged(make_config(wider), half).run()
    assert len(json.loads((half / STATE).read_text(encoding="utf-8"))["stages"]) == 1  # not begun


def test_best_weights_need_to_be_saved(make_config, half: Path) -> None:
    stages = STAGES.replace('name="shades"', 'name="shades", start_from="best"')
    with pytest.raises(CheckpointError, match="starts from the best weights of 'colours'.*needs save_best"):
        staged(make_config(stages), half).run()


def test_best_weights(make_config, tmp_path: Path) -> None:
    stages = STAGES.replace('name="shades"', 'name="shades", start_from="best"')
    more = 'default_hooks["checkpoint"].update(save_best="toy/accuracy")'
    train(make_config(stages, more), work_dir=tmp_path / "best")
    best = tmp_path / "best" / "1_colours" / "best_toy_accuracy.pth"
    after = weights(tmp_path / "best" / "2_shades" / "epoch_3.pth")
    assert torch.equal(weights(best, "ema_state_dict")["backbone.stem.weight"], after["backbone.stem.weight"])
