"""Reading, overriding, checking and writing configs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

import zoo.engine.config as config_module
from zoo.engine.config import (
    ConfigError,
    apply_options,
    check_config,
    config_doc,
    config_text,
    find_config,
    list_configs,
    load_config,
    parse_option,
)
from zoo.registry import MODELS, UnknownNameError, build


def _with(toy_config: Path, tmp_path: Path, more: str) -> Path:
    file = tmp_path / "changed.py"
    file.write_text(toy_config.read_text(encoding="utf-8") + more)
    return file


# -- finding ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs: ``family/alpha-tiny.py`` and ``family/beta-tiny.py``, with a base."""
    root = tmp_path / "configs"
    for name in ("_base_/part", "family/alpha-tiny", "family/beta-tiny"):
        file = root / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'"""Doc of {name}."""\nrandomness = dict(seed=5)\n')
    (root / "family" / "beta-tiny.py").write_text(
        '"""Doc."""\nfrom mmengine.config import read_base\n\nwith read_base():\n    from .._base_.part import *\n\n'
        'randomness.update(deterministic=True)\nlog_level = "ERROR"\n'
    )
    monkeypatch.setattr(config_module, "config_roots", lambda: [root])
    return root


def test_found_by_name_and_by_path(two_configs: Path) -> None:
    expected = two_configs / "family" / "alpha-tiny.py"
    assert find_config("alpha-tiny") == expected
    assert find_config("alpha-tiny.py") == expected
    assert find_config(expected) == expected
    assert set(list_configs()) == {"alpha-tiny", "beta-tiny"}
    assert config_doc("alpha-tiny") == "Doc of family/alpha-tiny."


def test_unknown_name_has_the_nearest(two_configs: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean alpha-tiny"):
        find_config("alfa-tiny")


def test_two_configs_of_one_name_are_refused(two_configs: Path) -> None:
    (two_configs / "other").mkdir()
    shutil.copy(two_configs / "family" / "alpha-tiny.py", two_configs / "other")
    with pytest.raises(ConfigError, match="two configs are named 'alpha-tiny'"):
        list_configs()


def test_base_files_are_read(two_configs: Path) -> None:
    config = load_config("beta-tiny")
    assert config.randomness == {"seed": 5, "deterministic": True}
    assert config.log_level == "ERROR"


def test_every_config_of_the_checkout_is_found_and_is_valid() -> None:
    for path in list_configs().values():
        load_config(path)
        assert config_doc(path), f"{path} has no docstring"


def test_every_config_of_the_checkout_builds_without_memory() -> None:
    """On the meta device: the whole model, with its loss and mixing."""
    for path in list_configs().values():
        model_config = load_config(path, check=False).model
        with torch.device("meta"):
            model = build(model_config.to_dict(), MODELS)
        assert sum(p.numel() for p in model.parameters()) > 1000, path
        assert all(p.is_meta for p in model.parameters()), path


# -- reading what is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("model = dict(", "was never closed"),
        ("train_cfg = dict(max_epochs=1 / 0)", "ZeroDivisionError"),
        ("_base_ = 'x.py'", "use 'with read_base"),
        ("from mmengine.config import read_base\nwith read_base():\n    from zoo.x import *", "relative import"),
    ],
)
def test_unreadable_file_is_told(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(file)
    assert "broken.py" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train_dataloder = train_dataloader", "unknown key 'train_dataloder'; did you mean train_dataloader"),
        ('model["backbone"]["dims"] = 3', r"model\.backbone\.dims: ToyBackbone .*did you mean dim"),
        ('model["num_class"] = 3', r"model\.num_class: ImageClassifier .*did you mean num_classes"),
        ('train_dataloader["batchsize"] = 3', r"train_dataloader\.batchsize: .*did you mean batch_size"),
        ('train_dataloader["dataset"]["lenght"] = 3', r"dataset\.lenght: ToyData .*did you mean length"),
        ('train_cfg["max_epoch"] = 3', r"train_cfg\.max_epoch: .*did you mean max_epochs"),
        ('del train_cfg["by_epoch"]', "by_epoch=True or False"),
        ('val_cfg["fp61"] = True', r"val_cfg\.fp61: .*did you mean fp16"),
        ('optim_wrapper["clip_grads"] = None', r"optim_wrapper\.clip_grads: .*did you mean clip_grad"),
        ('optim_wrapper["optimizer"]["weightdecay"] = 0', r"optimizer\.weightdecay: AdamW .*did you mean weight_decay"),
        ('optim_wrapper["paramwise_cfg"] = dict(layerdecay=0.5)', r"paramwise_cfg\.layerdecay: .*layer_decay"),
        ('param_scheduler["warm_up"] = 0', r"param_scheduler\.warm_up: WarmupCosineLR .*did you mean warmup"),
        ('default_hooks["checkpoint"]["intervall"] = 0', r"default_hooks\.checkpoint\.intervall: .*interval"),
        ('custom_hooks[0]["decai"] = 0.9', r"custom_hooks\.0\.decai: EMAHook .*did you mean decay"),
        ('custom_hooks.append(dict(decay=0.9))', r"custom_hooks\.1 needs a 'type'"),
        ('randomness["diff_rank_seed"] = True', r"randomness\.diff_rank_seed: unknown key"),
        ('randomness["sed"] = 1', r"randomness\.sed: .*did you mean seed"),
        ('env_cfg = dict(cudnn_benchmrk=True)', r"env_cfg\.cudnn_benchmrk: .*did you mean cudnn_benchmark"),
        ('strategy = dict(name="fsdp", unit=("A",))', r"strategy\.unit: Strategy .*did you mean units"),
        ('model["mixup"]["mixup_alfa"] = 1', r"model\.mixup\.mixup_alfa: BatchMixup .*did you mean mixup_alpha"),
        ('model["data_preprocessor"] = dict(means=1)', r"data_preprocessor\.means: .*did you mean mean"),
        ('model["backbone"] = "davit_tini"', r"model\.backbone: unknown name 'davit_tini'.*davit_tiny"),
        ('model["backbone"] = dict(type="davit_tiny", depht=1)', r"backbone\.depht: .*did you mean depths"),
        ('model["type"] = "zoo.classification.model.ImageClasifier"', "there is no 'zoo.classification"),
        ('val_evaluator["prefx"] = "a"', r"val_evaluator\.prefx: .*did you mean prefix"),
    ],
)  # fmt: skip
def test_misspelt_key_is_named_with_file_and_nearest(
    toy_config: Path, tmp_path: Path, change: str, message: str
) -> None:
    file = _with(toy_config, tmp_path, change + "\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_config(file)
    assert str(file) in str(error.value)


def test_failing_import_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "imports.py"
    file.write_text("from zoo.classification.model import Classifier\nmodel = dict(type=Classifier)\n")
    with pytest.raises(ConfigError, match=r"model\.type: Failed to import Classifier"):
        load_config(file)


def test_names_with_an_underscore_are_the_files_own(toy_config: Path, tmp_path: Path) -> None:
    config = load_config(_with(toy_config, tmp_path, "_length = 7\ntrain_cfg.update(max_epochs=_length)\n"))
    assert config.train_cfg.max_epochs == 7
    assert "_length" not in config_text(config)


# -- overriding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("a.b=3", 3), ("a.b=1e-3", 1e-3), ("a.b=true", True), ("a.b=None", None), ("a.b=[1, 2]", [1, 2]),
     ("a.b=text", "text"), ("a.b=dict", "dict"), ("a.b={'c': 1}", {"c": 1}), ("a.b=x=y", "x=y")],
)  # fmt: skip
def test_values_of_options(text: str, value: Any) -> None:
    assert parse_option(text) == ("a.b", value)


def test_options_reach_dicts_and_lists(toy_config: Path) -> None:
    options = ["train_cfg.max_epochs=9", "custom_hooks.0.decay=0.5", "train_dataloader.num_workers=2", "resume=True"]
    config = load_config(toy_config, options)
    assert config.train_cfg.max_epochs == 9
    assert config.custom_hooks[0].decay == 0.5
    assert config.train_dataloader.num_workers == 2
    assert config.resume is True


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train_cfg", "not of the form key=value"),
        ("traincfg.max_epochs=1", "no config key 'traincfg'; did you mean train_cfg"),
        ("train_cfg.max_epoch=1", "did you mean max_epochs"),
        ("model.backbon.dim=1", "the config has no 'model.backbon'; did you mean backbone"),
        ("custom_hooks.4.decay=1", "'4' is no element of a list of 1"),
        ("log_level.x=1", "'log_level' is 'WARNING', which has no keys"),
    ],
)
def test_option_that_fits_nothing_is_refused(toy_config: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(toy_config, [option])


# -- writing ------------------------------------------------------------------------------------------------------


def test_written_config_is_read_back_the_same(toy_config: Path, tmp_path: Path) -> None:
    config = load_config(toy_config, {"optim_wrapper.optimizer.betas": (0.9, 0.99)})
    file = tmp_path / "dumped.py"
    file.write_text(config_text(config))
    again = load_config(file)
    assert config_text(again) == file.read_text(encoding="utf-8")
    assert again.optim_wrapper.optimizer.betas == (0.9, 0.99)
    assert again.model.type == "zoo.classification.model.ImageClassifier"


def test_config_with_built_classes_is_written_by_name(tmp_path: Path) -> None:
    from toy_engine_parts import ToyBackbone

    from zoo.classification.model import ImageClassifier

    config = Config({"model": {"type": ImageClassifier, "backbone": {"type": ToyBackbone}}, "log_level": "INFO"})
    file = tmp_path / "dumped.py"
    file.write_text(config_text(config))
    assert load_config(file).model.backbone.type == "toy_engine_parts.ToyBackbone"


def test_long_values_and_odd_floats_are_written_readably(tmp_path: Path) -> None:
    config = Config({"model": {"type": "zoo.classification.model.ImageClassifier", "backbone": {"type": "davit_tiny"}}})
    config.model.data_preprocessor = {"mean": [float(i) / 3 for i in range(12)], "std": (float("inf"),) * 12}
    file = tmp_path / "dumped.py"
    file.write_text(config_text(config))
    assert max(map(len, file.read_text(encoding="utf-8").splitlines())) < 120
    again = load_config(file)
    assert again.model.data_preprocessor.mean == config.model.data_preprocessor.mean
    assert again.model.data_preprocessor.std == (float("inf"),) * 12


def test_check_reads_ready_configs(toy_config: Path) -> None:
    config = load_config(toy_config)
    check_config(config)
    apply_options(config, {"model.score": "sigmoid"})
    check_config(config)
    config.model.skore = "sigmoid"
    with pytest.raises(ConfigError, match="did you mean score"):
        check_config(config)
