"""Shapes of published checkpoints, built from recorded weights.

Each goes through `zoo convert`, gives the recorded outputs, and gives the authors' keys back.
"""

import argparse
import collections
import importlib.util
import json
import pathlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from zoo.cli import main
from zoo.registry import MODELS, build
from zoo.weights.checkpoint import read_checkpoint
from zoo.weights.convert import metadata, official_spec
from zoo.weights.importers import importer, systems
from zoo.weights.load import load_weights

ROOT = Path(__file__).resolve().parents[2]


def _tool():
    spec = importlib.util.spec_from_file_location(
        "zoo_tools_conformance_for_weights", ROOT / "tools" / "conformance.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


def _fixtures() -> list[Path]:
    """One network a system and class of the authors, where our importer reads checkpoints of it."""
    import os

    folder = Path(os.environ.get("ZOO_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
    found: dict[tuple[str, str], Path] = {}
    for system in systems():
        entries = getattr(importer(system), "CHECKPOINTS", {})
        for path in sorted((folder / system).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                entry = file.metadata()["entry"]
            if entry in entries and TOOL.adapter(system) is not None:
                found.setdefault((system, entry), path)
    return list(found.values())


# -- what stands around the weights ---------------------------------------------------------------------------------


class YacsNode(dict):
    """As yacs' CfgNode: a dict with attributes of its own."""


class EasyDict(dict):
    pass


class Callback:
    def __init__(self):
        self.best, self.path = 0.5, pathlib.Path("out/best.ckpt")


for _cls, _module, _name in (
    (YacsNode, "yacs.config", "CfgNode"),
    (EasyDict, "easydict", "EasyDict"),
    (Callback, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
):
    _cls.__module__, _cls.__qualname__, _cls.__name__ = _module, _name, _name


class Importable:
    """Lets pickle find the classes above under the names of packages that are not installed."""

    def __init__(self, *classes):
        self.classes = classes

    def __enter__(self):
        self.before = dict(sys.modules)
        for cls in self.classes:
            parts = cls.__module__.split(".")
            for i in range(1, len(parts) + 1):
                name = ".".join(parts[:i])
                sys.modules[name] = types.ModuleType(name)
            setattr(sys.modules[cls.__module__], cls.__name__, cls)

    def __exit__(self, *_):
        for cls in self.classes:
            parts = cls.__module__.split(".")
            for i in range(1, len(parts) + 1):
                name = ".".join(parts[:i])
                if name in self.before:
                    sys.modules[name] = self.before[name]
                else:
                    sys.modules.pop(name, None)


def _wrong(state):
    """The same names with other numbers: what must not be taken."""
    return {k: torch.full_like(v, 7) if v.is_floating_point() else v for k, v in state.items()}


def _prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def _optimizer(state):
    parameters = [nn.Parameter(v.clone()) for v in state.values() if v.is_floating_point()][:5]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer.state_dict()


def _module_of(state):
    """A module whose state dict this is."""
    root = nn.Module()
    for key, value in state.items():
        *path, name = key.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node._modules[part]
        if value.is_floating_point():
            node.register_parameter(name, nn.Parameter(value.clone()))
        else:
            node.register_buffer(name, value.clone())
    return root


def _tied(state):
    """All tensors as views of one storage, with gaps between them."""
    whole = {k: v.clone() for k, v in state.items()}
    floats = [k for k, v in whole.items() if v.dtype == torch.float32]
    storage = torch.empty(sum(whole[k].numel() + 3 for k in floats))
    at = 0
    for k in floats:
        view = storage[at : at + whole[k].numel()].view(whole[k].shape)
        view.copy_(whole[k])
        whole[k], at = view, at + whole[k].numel() + 3
    return whole


def plain(state, path):
    torch.save(state, path)


def timm_training(state, path):
    args = argparse.Namespace(lr=5e-4, model="x", opt_betas=(0.9, 0.999), output=pathlib.PurePosixPath("out"))
    torch.save(
        {"epoch": 299, "arch": "x", "state_dict": _wrong(state), "state_dict_ema": state, "args": args,
         "optimizer": _optimizer(state), "metric": np.float64(81.4), "amp_scaler": {"scale": 65536.0}},
        path,
    )  # fmt: skip


def deit_training(state, path):
    args = argparse.Namespace(lr=1e-3, device=torch.device("cuda"), dtype=torch.float16)
    torch.save({"model": state, "optimizer": _optimizer(state), "lr_scheduler": {"last_epoch": 3}, "args": args}, path)


def deit_with_ema(state, path):
    torch.save({"model": _wrong(state), "model_ema": state, "scaler": {}, "epoch": 3, "args": None}, path)


def data_parallel(state, path):
    torch.save({"state_dict": _prefixed(state, "module."), "best_acc1": torch.tensor(81.4)}, path)


def compiled(state, path):
    torch.save({"model": _prefixed(state, "module._orig_mod.")}, path)


def swin_training(state, path):
    with Importable(YacsNode):
        node = YacsNode(MODEL=YacsNode(TYPE="x", DEPTHS=[2, 2]))
        node.__dict__["__immutable__"] = True
        torch.save({"model": state, "config": node, "max_accuracy": np.float32(83.1), "epoch": np.int64(299)}, path)


def mmcv_training(state, path):
    meta = dict(env_info="x", seed=0, CLASSES=tuple(f"class {i}" for i in range(7)), config=ConfigDict(a=dict(b=1)))
    torch.save({"meta": meta, "state_dict": state, "optimizer": _optimizer(state)}, path)


def mmengine_training(state, path):
    hub = {"log_scalars": {"train/loss": HistoryBuffer([1.0, 0.5], [1, 1])}, "runtime_info": {}, "resumed_keys": {}}
    meta = {"dataset_meta": {"classes": [f"class {i}" for i in range(7)]}, "cfg": "raise SystemExit('run')", "iter": 3}
    averaged = {"steps": torch.tensor(3), **_prefixed(state, "module.")}
    content = {"state_dict": _wrong(state), "ema_state_dict": averaged, "message_hub": hub, "meta": meta}
    torch.save(content, path)


def dense_backbone(state, path):
    head = {"bbox_head.fc_cls.weight": torch.ones(4, 8), "neck.lateral.0.weight": torch.ones(2, 2)}
    torch.save({"state_dict": {**_prefixed(state, "backbone."), **head}, "meta": {}}, path)


def lightning(state, path):
    with Importable(Callback, EasyDict):
        torch.save(
            {"epoch": 1, "global_step": 10, "pytorch-lightning_version": "1.9.0", "loops": {"fit_loop": {}},
             "state_dict": _prefixed(state, "model."), "callbacks": {"ModelCheckpoint{'monitor': None}": Callback()},
             "hyper_parameters": EasyDict(lr=0.1), "optimizer_states": [_optimizer(state)]},
            path,
        )  # fmt: skip


def basicsr(state, path):
    torch.save({"params": _wrong(state), "params_ema": state}, path)


def ordered_with_metadata(state, path):
    model = collections.OrderedDict(state)
    model._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(model, path)


def parameters(state, path):
    torch.save({"net": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}}, path)


def older_format(state, path):
    torch.save({"state_dict": state, "args": argparse.Namespace(x=1)}, path, _use_new_zipfile_serialization=False)


def older_format_views(state, path):
    torch.save({"model": _tied(state), "epoch": 3}, path, _use_new_zipfile_serialization=False)


def one_storage(state, path):
    torch.save(_tied(state), path)


def channels_last(state, path):
    torch.save(
        {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()}, path
    )


def numpy_pickle(state, path):
    arrays = {k: np.asfortranarray(v.numpy()) if v.ndim > 1 else v.numpy() for k, v in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": True}, protocol=4))


def tensor_pickle(state, path):
    path.write_bytes(pickle.dumps(collections.defaultdict(list, state=1, **{"state_dict": state}), protocol=2))


def whole_module(state, path):
    torch.save({"model": _module_of(state), "epoch": 1}, path)


def double_precision(state, path):
    torch.save({"state_dict": {k: v.double() if v.is_floating_point() else v for k, v in state.items()}}, path)


def plain_safetensors(state, path):
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"})


SHAPES = [
    plain, timm_training, deit_training, deit_with_ema, data_parallel, compiled, swin_training, mmcv_training,
    mmengine_training, dense_backbone, lightning, basicsr, ordered_with_metadata, parameters, older_format,
    older_format_views, one_storage, channels_last, numpy_pickle, tensor_pickle, whole_module, double_precision,
    plain_safetensors,
]  # fmt: skip
FIXTURES = _fixtures()
COUNT = max(len(SHAPES), len(FIXTURES)) if FIXTURES else 0


def _cases():
    for i in range(COUNT):
        shape, path = SHAPES[i % len(SHAPES)], FIXTURES[i % len(FIXTURES)]
        if shape is dense_backbone and path.parent.name not in BACKBONES:
            path = next(p for p in FIXTURES if p.parent.name in BACKBONES)
        yield shape, path


#: systems whose weights are found within those of a detector
BACKBONES = ("agent_attention", "biformer", "davit")
CASES = list(_cases())


def test_there_are_enough(conformance_dir):
    assert len(SHAPES) >= 20
    assert len(FIXTURES) >= 3


@pytest.mark.parametrize(
    "shape, path", CASES, ids=lambda x: getattr(x, "__name__", None) or f"{x.parent.name}-{x.stem}"
)
def test_converts_and_gives_the_recorded_outputs(shape, path, tmp_path, capsys, rounds_as_recorded):
    system, fixture = path.parent.name, TOOL.load(path)
    source = tmp_path / ("in.safetensors" if shape is plain_safetensors else "in.pth")
    target, back = tmp_path / "out.safetensors", tmp_path / "back.pth"
    shape(fixture.state, source)
    arguments = ["--entry", fixture.entry, "--kwargs", json.dumps(fixture.kwargs)]
    assert main(["convert", system, str(source), str(target), *arguments]) == 0, capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, target.name])
    noted = metadata(target)["converted_from"]
    assert (noted["system"], noted["entry"], noted["source_file"]) == (system, fixture.entry, source.name)
    if shape in (mmcv_training, mmengine_training):
        assert metadata(target)["dataset_meta"]["classes"][6] == "class 6"
    # the authors' keys come back, with their values
    assert main(["convert", system, str(target), str(back), "--to-official"]) == 0, capsys.readouterr().err
    official = read_checkpoint(back)["model"]
    assert all(torch.equal(official[k], v.to(official[k].dtype)) for k, v in fixture.state.items())
    for key in official.keys() - fixture.state.keys():  # fixtures leave out other names of the same tensor
        assert any(torch.equal(official[key], official[k]) for k in fixture.state), key
    # our model takes the file as it is
    own = importer(system)
    model = build(official_spec(own, fixture.entry, fixture.kwargs, fixture.state), MODELS)
    assert load_weights(model, target).exact
    # and computes what the authors' does
    state = own.revert_state_dict(fixture.entry, model.state_dict())
    produced = TOOL.adapter(system).run(fixture.entry, fixture.kwargs, state, fixture.inputs)
    tolerance = TOOL.NETWORK_TOLERANCE
    found = TOOL.compare(produced, fixture.outputs, tolerance)
    if found["status"] == "fail" and not rounds_as_recorded(system):
        pytest.xfail(str(found))
    assert found["status"] == "pass", found


def test_authors_file_is_loaded_without_converting(conformance_dir, tmp_path):
    fixture = TOOL.load(conformance_dir / "davit" / "backbone.safetensors")
    deit_training(fixture.state, tmp_path / "in.pth")
    model = build(importer("davit").config_from_official(fixture.entry, fixture.kwargs), MODELS)
    report = load_weights(model, tmp_path / "in.pth")
    assert report.exact
    assert report.converted_by == fixture.entry


def test_raw_weights_on_request(conformance_dir, tmp_path):
    fixture = TOOL.load(conformance_dir / "davit" / "backbone.safetensors")
    deit_with_ema(fixture.state, tmp_path / "in.pth")
    assert main(["convert", "davit", str(tmp_path / "in.pth"), str(tmp_path / "o.safetensors"), "--no-ema"]) == 0
    values = [v for v in read_checkpoint(tmp_path / "o.safetensors").values() if v.is_floating_point()]
    assert all((v == 7).all() for v in values)


def test_other_models_and_targets_are_refused(conformance_dir, tmp_path, capsys):
    fixture = TOOL.load(conformance_dir / "davit" / "backbone.safetensors")
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    plain(fixture.state, source)

    def fails(*arguments) -> str:
        assert main(["convert", *arguments]) == 1
        assert not target.exists()
        return capsys.readouterr().err

    assert "of none of these classes" in fails("biformer", str(source), str(target))
    assert "is of another model than davit_tiny" in fails("davit", str(source), str(target), "--model", "davit_tiny")
    assert "no importer for system 'davitt'" in fails("davitt", str(source), str(target))
    assert "written as .safetensors" in fails("davit", str(source), str(tmp_path / "out.bin"))
    other = json.dumps({**fixture.kwargs, "mlp_ratio": 3.0})
    message = fails("davit", str(source), str(target), "--entry", fixture.entry, "--kwargs", other)
    assert "another shape" in message
    less = {k: v for k, v in fixture.state.items() if k != "head.bias"}
    plain(less, source)
    message = fails("davit", str(source), str(target), "--entry", fixture.entry, "--kwargs", json.dumps(fixture.kwargs))
    assert "missing: head.fc.bias" in message


def test_registered_model_is_found(tmp_path, capsys):
    import zoo

    own = zoo.create_model("davit_nano", num_classes=10)
    davit = importer("davit")
    plain(davit.revert_state_dict(davit.NETWORK, own.state_dict()), tmp_path / "in.pth")
    assert main(["convert", "davit", str(tmp_path / "in.pth"), str(tmp_path / "o.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "davit_nano"
    assert metadata(tmp_path / "o.safetensors")["converted_from"]["model"] == "davit_nano"
