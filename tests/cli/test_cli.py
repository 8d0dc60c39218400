"""The `zoo` command: what each verb prints, its exit status, and what it says of wrong input."""

import json
import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

import zoo
from zoo.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 2 classes that differ in brightness, 12 images each, 24 x 20 pixels."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 200)):
        (root / name).mkdir()
        for i in range(12):
            image = np.clip(rng.normal(level, 10, (20, 24, 3)), 0, 255).astype(np.uint8)
            assert cv2.imwrite(str(root / name / f"{i}.png"), image)
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The work directory of a model that was trained on the folder by one command."""
    out = tmp_path_factory.mktemp("work")
    command = ["train", "--model", "davit_nano", "--data", str(folder), "--epochs", "3", "--work-dir", str(out)]
    assert main([*command, "--workers", "0", "--cfg-options", "log_level=WARNING"]) == 0
    return out


def _json(capsys, *argv):
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_list(capsys):
    every = {m["name"]: m for m in _json(capsys, "list")}
    assert set(every) == set(zoo.list_models())
    assert every["davit_tiny"]["params"] == 28360168
    assert every["davit_tiny"]["input_size"] == 224
    davit = [m["name"] for m in _json(capsys, "list", "--family", "davit")]
    assert davit == [n for n in davit if n.startswith("davit_")]
    assert "davit_base" in davit
    routed = {m["name"] for m in _json(capsys, "list", "--mixer", "bra")}
    assert "biformer_tiny" in routed
    assert "vit_tiny" in routed  # a host takes any
    assert "davit_tiny" not in routed
    assert [m["name"] for m in _json(capsys, "list", "*former_t*")] == ["biformer_tiny"]


def test_list_in_a_pipe_is_plain(capsys):
    assert main(["list", "davit_*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:2] == ["model", "family"]
    assert all(line.count("\t") == lines[0].count("\t") for line in lines)


def test_list_imports_no_torch_and_is_fast():
    code = "import sys; from zoo.cli import main; main(['list']); assert 'torch' not in sys.modules"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["list", "davt*"], "davit_tiny"),
        (["list", "--family", "davitt"], "davit"),
        (["show", "davit_tny"], "davit_tiny"),
        (["train", "no-such-config"], "no config file"),
        (["train"], "--model and --data"),
        (["train", "--model", "davit_nano", "--data", "/nowhere"], "/nowhere"),
        (["predict", "davit_nano", "/nowhere.png", "--weights", "/none.pth"], "/nowhere.png"),
        (["bench", "davit_nano", "--batch", "0"], "--batch 0"),
        (["data", "check", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_input_is_one_message_and_status_1(capsys, argv, words):
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_unknown_verb_is_status_2():
    with pytest.raises(SystemExit) as stopped:
        main(["lst"])
    assert stopped.value.code == 2


def test_show_model(capsys):
    shown = _json(capsys, "show", "davit_tiny")
    assert shown["params"] == 28360168
    assert shown["strides"] == [4, 8, 16, 32]
    assert "drop_path_rate" in shown["arguments"]


def test_show_config_is_a_config(capsys, tmp_path):
    from zoo.engine.config import load_config

    assert main(["show", "davit-nano_cls_12e_digits", "--cfg-options", "train_cfg.max_epochs=3"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "shown.py").write_text(text)
    assert load_config(tmp_path / "shown.py").train_cfg.max_epochs == 3


def test_config_check(capsys, tmp_path):
    assert main(["config", "check", "davit-nano_cls_12e_digits"]) == 0
    assert main(["show", "davit-nano_cls_12e_digits"]) == 0
    text = capsys.readouterr().out.split("\n", 1)[1]
    (tmp_path / "wrong.py").write_text(text.replace("max_epochs", "max_epoch"))
    assert main(["config", "check", str(tmp_path / "wrong.py")]) == 1
    assert "max_epochs" in capsys.readouterr().err


def test_doctor(capsys):
    report = _json(capsys, "doctor")
    assert report["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "eager: yes" in report["operators"]["window_attention"]
    assert "broken" not in report["packages"]["opencv"]


def test_bench(capsys):
    result = _json(capsys, "bench", "davit_nano", "--steps", "2", "--size", "32")
    assert result["images_per_second"] > 0
    assert result["latency_min_max_ms"][0] <= result["latency_ms"] <= result["latency_min_max_ms"][1]


def test_data_check(capsys, folder, tmp_path):
    report = _json(capsys, "data", "check", str(folder))
    assert report["histogram"] == {"all": {"dark": 12, "light": 12}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "broken.png" in capsys.readouterr().out


def test_own_data_in_one_command(capsys, trained):
    names = os.listdir(trained)
    assert "last_checkpoint" in names
    assert "curves.png" in names
    config = next(n for n in names if n.endswith(".py"))
    metrics = _json(capsys, "test", str(trained / config), str(trained / "epoch_3.pth"))
    assert metrics["accuracy/top1"] == metrics["macro/f1"] == 100.0
    assert main(["test", str(trained / config), str(trained / "epoch_3.pth"), "--work-dir", str(trained / "t")]) == 0
    assert "confusion.png" in capsys.readouterr().out
    assert json.loads((trained / "t" / "confusion.json").read_text(encoding="utf-8"))["matrix"] == [[2, 0], [0, 2]]
    assert (trained / "t" / "per_class.csv").read_text(encoding="utf-8").splitlines()[1].startswith("dark,100")
    assert (trained / "t" / "confusion.png").stat().st_size > 1000


def test_predict_follows_the_checkpoint(capsys, trained, folder, tmp_path):
    weights = str(trained / "epoch_3.pth")
    argv = ["predict", "davit_nano", str(folder), "--weights", weights, "--out", str(tmp_path / "out"), "--json"]
    assert main(argv) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 24
    assert all(os.path.basename(os.path.dirname(p["source"])) == p["name"] for p in lines)
    assert (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").count("\n") == 24
    assert len(list((tmp_path / "out").glob("*.png"))) == 24


def test_predict_goes_on_after_a_broken_image(capsys, trained, folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    argv = ["predict", "davit_nano", str(tmp_path / "bad.png"), str(folder / "dark"), "--json"]
    assert main([*argv, "--weights", str(trained / "epoch_3.pth")]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert "bad.png" in lines[0]["error"]
    assert [p["name"] for p in lines[1:]] == ["dark"] * 12
    assert "1 of 13 images could not be read" in captured.err


def test_predict_with_another_models_weights(capsys, trained, folder):
    argv = ["predict", "biformer_nano", str(folder), "--weights", str(trained / "epoch_3.pth")]
    assert main(argv) == 1
    assert "davit_nano" in capsys.readouterr().err


def test_python_front_door_predicts_the_same(trained, folder):
    from PIL import Image

    weights = trained / "epoch_3.pth"
    by_path = next(iter(zoo.predict("davit_nano", folder / "light" / "0.png", weights=weights)))
    image = Image.open(folder / "light" / "0.png")
    by_image = next(iter(zoo.predict("davit_nano", image, weights=weights)))
    by_array = next(iter(zoo.predict("davit_nano", np.asarray(image), weights=weights)))
    assert by_path.name == by_image.name == by_array.name == "light"
    assert torch.equal(by_path.scores, by_image.scores)
    assert torch.equal(by_path.scores, by_array.scores)
