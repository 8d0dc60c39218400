"""What goes wrong in a long training: full disks, damaged files, signals, diverged losses, hostile checkpoints."""

from __future__ import annotations

import errno
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.engine import checkpoint as files
from zoo.engine.checkpoint import checkpoint_files, find_last_good, what_is_wrong, write_checkpoint, write_pointer
from zoo.engine.hooks import NonFiniteLossError
from zoo.files import save_atomically
from zoo.weights.checkpoint import CheckpointError, read_checkpoint

BY_ITERATION = {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.max_keep": 0}


def _content(value: float) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((1000,), value)}, "meta": {"epoch": 1}}


# -- writing ------------------------------------------------------------------------------------------------------


class _FullDisk:
    """A file on a device without space: takes ``room`` bytes."""

    def __init__(self, file: Any, room: int):
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``full_disk(room)``: from now on a checkpoint has that many bytes of space."""

    def fill(room: int) -> None:
        def save(path: Any, write: Any) -> None:
            save_atomically(path, lambda file: write(_FullDisk(file, room)))

        monkeypatch.setattr(files, "save_atomically", save)

    return fill


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_full_disk_keeps_the_previous_file(tmp_path: Path, full_disk: Any, room: int) -> None:
    file = tmp_path / "epoch_1.pth"
    write_checkpoint(file, _content(1.0))
    full_disk(room)
    with pytest.raises(CheckpointError, match=r"epoch_1.pth could not be written .*earlier checkpoints are untouched"):
        write_checkpoint(file, _content(2.0))
    assert read_checkpoint(file)["state_dict"]["w"][0] == 1
    assert os.listdir(tmp_path) == ["epoch_1.pth"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_device_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own ENOSPC, which arrives when the buffer is flushed."""

    def save(path: Any, write: Any) -> None:
        with open("/dev/full", "wb") as file:
            write(file)

    monkeypatch.setattr(files, "save_atomically", save)
    with pytest.raises(CheckpointError, match="could not be written"):
        write_checkpoint(tmp_path / "epoch_1.pth", _content(1.0))


def test_full_disk_in_a_training(toy: Any, tmp_path: Path, full_disk: Any) -> None:
    """The training stops with a sentence; the checkpoint before is there, is found, and is resumed."""
    toy({"train_cfg.max_epochs": 1}).train()
    full_disk(2000)
    with pytest.raises(CheckpointError, match=r"epoch_2.pth could not be written"):
        toy({"train_cfg.max_epochs": 2}, resume=True).train()
    work_dir = tmp_path / "run"
    assert find_last_good(work_dir) == work_dir / "epoch_1.pth"
    assert not list(work_dir.glob(".*"))


def test_old_checkpoints_go_only_after_new_ones_came(toy: Any, tmp_path: Path) -> None:
    toy({**BY_ITERATION, "default_hooks.checkpoint.max_keep": 2, "train_cfg.max_epochs": 1}).train()
    assert sorted(f.name for f in (tmp_path / "run").glob("*.pth")) == ["iter_4.pth", "iter_5.pth"]
    assert (tmp_path / "run" / files.POINTER).read_text(encoding="utf-8") == "iter_5.pth"


def test_logs_in_a_checkpoint_do_not_grow_for_ever() -> None:
    from mmengine.logging import HistoryBuffer

    values = [float(i) for i in range(files.LOGGED + 50)]
    saved = files.plain({"loss": HistoryBuffer(values, [1] * len(values))})["loss"]
    restored = files.history_buffer(saved)
    assert len(restored.data[0]) == files.LOGGED
    assert restored.current() == values[-1]
    assert restored.mean(20) == sum(values[-20:]) / 20


# -- finding the last good one ------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A work directory with three checkpoints; the pointer names the third."""
    for i in (1, 2, 3):
        file = tmp_path / f"epoch_{i}.pth"
        write_checkpoint(file, _content(float(i)))
        os.utime(file, (i, i))
    write_pointer(tmp_path, "epoch_3.pth")
    return tmp_path


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0xFF
    file.write_bytes(data)


def test_newest_good_one_is_found(three: Path) -> None:
    assert find_last_good(three) == three / "epoch_3.pth"
    (three / files.POINTER).unlink()
    assert find_last_good(three) == three / "epoch_3.pth"
    assert [f.name for f in checkpoint_files(three)] == ["epoch_3.pth", "epoch_2.pth", "epoch_1.pth"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "a byte of the weights", "text", "missing"])
def test_damaged_newest_one_is_passed_over(three: Path, damage: str) -> None:
    newest = three / "epoch_3.pth"
    if damage == "truncated":
        newest.write_bytes(newest.read_bytes()[:-700])
    elif damage == "empty":
        newest.write_bytes(b"")
    elif damage == "a byte of the weights":
        _flip(newest, newest.read_bytes().index(torch.full((4,), 3.0).numpy().tobytes()) + 4)
    elif damage == "text":
        newest.write_text("not a checkpoint")
    else:
        newest.unlink()
    told: list[str] = []
    assert find_last_good(three, told.append) == three / "epoch_2.pth"
    assert len(told) == (damage != "missing")
    assert all("epoch_3.pth is passed over" in t for t in told)
    assert what_is_wrong(newest) is not None


def test_only_damaged_ones_are_an_error(three: Path) -> None:
    for file in three.glob("*.pth"):
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="all 3 checkpoints"):
        find_last_good(three)


def test_empty_directory_has_none(tmp_path: Path) -> None:
    assert find_last_good(tmp_path) is None


def test_truncated_newest_checkpoint_in_a_training(toy: Any, tmp_path: Path) -> None:
    """The run goes on from the one before and ends as if nothing had happened."""
    whole = toy({}, name="whole")
    whole.train()
    toy({"train_cfg.max_epochs": 2, "param_scheduler.total_iters": 15}).train()
    newest = tmp_path / "run" / "epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    runner = toy({}, resume=True)
    runner.train()
    assert runner._resumed_file.name == "epoch_1.pth"
    expected = whole.bare_model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in runner.bare_model.state_dict().items())


# -- signals and losses -------------------------------------------------------------------------------------------


def test_sigterm_saves_and_exits_with_its_status(toy: Any, tmp_path: Path) -> None:
    from mmengine.hooks import Hook

    class Terminate(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    whole = toy({}, name="whole")
    whole.train()
    runner = toy({})
    runner.register_hook(Terminate())
    with pytest.raises(SystemExit) as stopped:
        runner.train()
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run" / files.POINTER).read_text(encoding="utf-8") == "iter_8.pth"
    runner = toy({}, resume=True)
    runner.train()
    expected = whole.bare_model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in runner.bare_model.state_dict().items())


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(toy: Any, tmp_path: Path) -> None:
    options = {**BY_ITERATION, "model.loss": {"type": "toy_engine_parts.NaNModel", "at": 7}, "model.mixup": None}
    with pytest.raises(NonFiniteLossError, match=r"loss=nan at iteration 7 \(epoch 2\).*iter_6\.pth"):
        toy(options).train()
    last = find_last_good(tmp_path / "run")
    assert last.name == "iter_6.pth"
    assert all(v.isfinite().all() for v in read_checkpoint(last)["state_dict"].values())


# -- hostile and foreign files ------------------------------------------------------------------------------------


class _Exploit:
    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.flag}",))


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_that_would_run_code_is_refused(toy: Any, tmp_path: Path, legacy: bool) -> None:
    flag, file = tmp_path / "it_ran", tmp_path / "run" / "epoch_1.pth"
    file.parent.mkdir()
    torch.save({"meta": {}, "optimizer": _Exploit(flag)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError):
        toy({}, resume=True, load_from=file).train()
    with pytest.raises(CheckpointError):
        toy({}, load_from=file)
    assert not flag.exists()
    function, arguments = _Exploit(flag).__reduce__()  # what reading the pickle would have done
    function(*arguments)
    assert flag.exists()


def test_plain_pickle_is_refused(toy: Any, tmp_path: Path) -> None:
    flag, file = tmp_path / "it_ran", tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps(_Exploit(flag)))
    with pytest.raises(CheckpointError):
        toy({}, load_from=file)
    assert not flag.exists()


def test_weights_alone_cannot_be_resumed(toy: Any, tmp_path: Path) -> None:
    toy({"default_hooks.checkpoint.save_best": "toy/accuracy", "train_cfg.max_epochs": 1}).train()
    best = tmp_path / "run" / "best_toy_accuracy.pth"
    with pytest.raises(CheckpointError, match="holds weights only"):
        toy({}, resume=True, load_from=best).train()


def test_load_from_another_model_names_the_keys(toy: Any, tmp_path: Path) -> None:
    toy({"train_cfg.max_epochs": 1}).train()
    file = tmp_path / "run" / "epoch_1.pth"
    with pytest.raises(CheckpointError, match=r"backbone\.bn"):
        toy({"model.backbone.batch_norm": False}, load_from=file)
    runner = toy({"model.num_classes": 5, "load_strict": False}, load_from=file)
    saved = read_checkpoint(file)["ema_state_dict"]
    assert torch.equal(runner.bare_model.backbone.stem.weight, saved["backbone.stem.weight"])
    assert runner.bare_model.backbone.fc.weight.shape[0] == 5


def test_mmengines_own_checkpoint_is_read(toy: Any, tmp_path: Path) -> None:
    """Log histories and numpy numbers as mmengine 0.10.7 pickles them."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    file = tmp_path / "mmengine.pth"
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    weights = toy({}).bare_model.state_dict()
    torch.save({"state_dict": weights, "message_hub": {"log_scalars": {"loss": history}}, "x": np.float64(3)}, file)
    with pytest.raises(Exception, match="HistoryBuffer"):
        torch.load(file, weights_only=True)
    content = read_checkpoint(file)
    assert files.history_buffer(content["message_hub"]["log_scalars"]["loss"]).mean() == 1.5
    toy({}, load_from=file)
