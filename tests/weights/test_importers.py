"""Every importer gives the authors' state dict back exactly, and loses nothing on the way."""

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

from zoo.weights.importers import importer, systems

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("ZOO_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
CASES = [p for s in systems() for p in sorted((FIXTURES / s).glob("*.safetensors"))]
TIMM = [(s, e) for s in systems() if s.startswith("timm_") for e in getattr(importer(s), "CHECKPOINTS", ())]


def _state(path):
    with safe_open(path, "pt") as file:
        entry = file.metadata()["entry"]
        return entry, {k[6:]: file.get_tensor(k) for k in file.keys() if k.startswith("state/")}  # noqa: SIM118


def _same(back, state):
    """``back`` is ``state``; it may have other names of the same tensors, which fixtures leave out."""
    for key, value in state.items():
        assert key in back, key
        assert back[key].dtype == value.dtype, key
        assert back[key].shape == value.shape, key
        assert torch.equal(back[key], value), key
    places = {back[k].data_ptr() for k in state}
    assert all(v.data_ptr() in places for k, v in back.items() if k not in state)


def _extra_is_noticed(translate, state):
    """An unknown key is refused, or kept for the model to refuse; it is never dropped."""
    expected = len(translate(dict(state))) + 1
    try:
        found = translate({**state, "no_such.part.weight": torch.zeros(1)})
    except (KeyError, ValueError):
        return
    assert len(found) == expected


def _check(module, entry, state):
    own = module.convert_state_dict(entry, dict(state))
    _same(module.revert_state_dict(entry, own), state)
    _extra_is_noticed(lambda s: module.convert_state_dict(entry, s), state)
    _extra_is_noticed(lambda s: module.revert_state_dict(entry, s), own)


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_authors_keys_come_back(path):
    module = importer(path.parent.name)
    entry, state = _state(path)
    if not state:
        pytest.skip("a function, which has no weights")
    try:
        module.convert_state_dict(entry, dict(state))
    except LookupError as error:
        if isinstance(error, KeyError):
            raise
        pytest.skip(f"no checkpoints of {entry}: a part that has an adapter only")
    before = {k: v.clone() for k, v in state.items()}
    _check(module, entry, state)
    _same(state, before)


@pytest.mark.parametrize("system, entry", TIMM)
def test_timms_keys_come_back(system, entry):
    _check(importer(system), entry, timm.create_model(entry, num_classes=7).state_dict())


def test_all_systems_say_what_they_read():
    for system in systems():
        module = importer(system)
        for entry, classes in getattr(module, "CHECKPOINTS", {}).items():
            assert isinstance(entry, str)
            assert all(isinstance(c, str) for c in classes), entry
        for function in ("config_from_official", "convert_state_dict", "revert_state_dict"):
            assert callable(getattr(module, function)), (system, function)
        with pytest.raises(LookupError):
            module.config_from_official("no.such.Class", {})
    with pytest.raises(LookupError, match="no importer for system 'nothing'"):
        importer("nothing")
