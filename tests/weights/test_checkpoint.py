"""Reading checkpoint files: what is accepted, what is refused, and that nothing in them is run."""

import argparse
import errno
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from zoo.files import save_atomically
from zoo.weights.checkpoint import (
    CheckpointError,
    read_checkpoint,
    save_safetensors,
    state_dict_of,
)
from zoo.weights.inert import Inert, Name


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_torch_file_with_what_training_writes(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = {
        "state_dict": {"module.a": torch.arange(3.0)},
        "history": history,
        "epoch": np.int64(7),
        "scores": np.array([0.5, 1.5], dtype=np.float32),
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert read["history"]._log_history.tolist() == [1.0, 3.0]
    assert read["history"].max_length == 1000000
    assert read["epoch"] == 7
    assert read["scores"].tolist() == [0.5, 1.5]
    assert read["args"].lr == 0.1
    assert torch.equal(state_dict_of(read)["a"], torch.arange(3.0))


def test_safetensors_round_trip(tmp_path):
    state = {"w": torch.randn(4, 3).t(), "n": torch.tensor(3)}
    save_safetensors(tmp_path / "c.safetensors", state, {"classes": "[]"})
    read = read_checkpoint(tmp_path / "c.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, form):
    target, file = tmp_path / "made_by_the_pickle", tmp_path / "c.pth"
    if form == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": Bomb(target)}))
    else:
        torch.save({"state_dict": Bomb(target)}, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="c.pth"):
        read_checkpoint(file)
    assert not target.exists()
    # the bomb is live: an unsafe reader would have set it off
    if form == "pickle":
        pickle.loads(file.read_bytes())
        assert target.exists()


def test_getattr_in_a_pickle_reaches_nothing(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (torch.Tensor, "__init__")

    torch.save({"a": Reach()}, tmp_path / "c.pth")
    found = read_checkpoint(tmp_path / "c.pth")["a"]
    assert isinstance(found, Inert)
    assert found.class_name == "builtins.getattr"
    assert found.arguments == (Name("torch.Tensor"), "__init__")


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path, name, keep):
    file = tmp_path / name
    state = {"w": torch.randn(64, 64)}
    save_safetensors(file, state, {}) if name.endswith("safetensors") else torch.save(state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(file)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_state_dict_prefers_the_average():
    content = {
        "state_dict": {"w": torch.zeros(1)},
        "ema_state_dict": {"module.w": torch.ones(1), "steps": torch.tensor(3)},
    }
    assert state_dict_of(content)["w"].item() == 1
    assert state_dict_of(content, prefer_ema=False)["w"].item() == 0


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], {"state_dict": {}}])
def test_no_state_dict(content):
    with pytest.raises(CheckpointError, match="no state dict"):
        state_dict_of(content)


def test_full_disk_keeps_the_file_that_was_there(tmp_path):
    file = tmp_path / "c.bin"
    file.write_bytes(b"before")

    def write(handle):
        handle.write(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_atomically(file, write)
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]
