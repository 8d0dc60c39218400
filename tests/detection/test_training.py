"""Training end to end: four images are learnt, one's own data trains by one command, is tested and predicted."""

import json
import shutil

import numpy as np
import pytest
import torch

from zoo.cli import main
from zoo.data.shapes import Shapes
from zoo.data.shapes_detection import ShapesDetection
from zoo.detection import criterion
from zoo.detection.model import DetectionModel
from zoo.engine.config import load_config
from zoo.engine.hooks import NonFiniteLossError
from zoo.engine.launch import prepare
from zoo.engine.optim import ParamGroups
from zoo.engine.own_detection import detector_name, is_detector, own_detection_config
from zoo.engine.runner import Runner
from zoo.metrics.coco import CocoBoxes
from zoo.registry import MODELS, UnknownNameError, build
from zoo.weights.checkpoint import read_checkpoint


@pytest.mark.parametrize(("name", "steps"), [("deformable_detr_nano", 100), ("dino_nano", 60)])
def test_four_images_are_learnt(name, steps):
    """AP of at least 0.6 within 90 s; about 15 s of one core each."""
    torch.manual_seed(0)
    dataset = ShapesDetection("train", 4, 64, objects=(1, 3))
    model = DetectionModel(name, 8)
    samples = [dataset[i] for i in range(4)]
    data = {k: [s[k] for s in samples] for k in ("inputs", "data_samples")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1, (i + 1) / 10) * (0.1 if i > 0.8 * steps else 1)
    )
    model.train()
    for _ in range(steps):
        losses = model(**model.data_preprocessor(data, True), mode="loss")
        optimizer.zero_grad()
        sum(v for k, v in losses.items() if "loss" in k).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(data), mode="predict")
    metric = CocoBoxes()
    metric.dataset_meta = dataset.metainfo
    metric.process(None, [s.to_dict() for s in found])
    assert metric.evaluate(4)["coco/AP"] >= 0.6


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Shapes as COCO with gaps in the category ids."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 12), ("val", 4)):
        file = Shapes(split, count, 64, objects=(1, 3)).write_coco(root)
        content = json.loads(file.read_text(encoding="utf-8"))
        for item in content["categories"]:
            item["id"] = 10 * item["id"]
        for item in content["annotations"]:
            item["category_id"] *= 10
        file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The work directory of a detector that one command trained."""
    out = tmp_path_factory.mktemp("work")
    command = ["train", "--model", "dino", "--data", str(shapes), "--epochs", "1", "--work-dir", str(out)]
    assert main([*command, "--workers", "0", "--cfg-options", "log_level=WARNING"]) == 0
    return out


def test_own_data_by_one_command(trained, shapes, capsys):
    config = load_config(next(trained.glob("dino_nano_*.py")))
    assert config.model.num_classes == 8
    checkpoint = trained / "epoch_1.pth"
    saved = read_checkpoint(checkpoint)
    assert len(saved["state_dict"]) == len(DetectionModel("dino_nano", 8).state_dict())
    heads = [saved["ema_state_dict"][f"detector.network.class_embed.{i}.weight"] for i in (0, 2)]
    assert torch.equal(*heads)  # decoder layers share one head, and one average of it
    assert not torch.equal(heads[0], saved["state_dict"]["detector.network.class_embed.0.weight"])
    args = ["test", str(next(trained.glob("dino_nano_*.py"))), str(checkpoint), "--work-dir", str(trained / "test")]
    assert main([*args, "--json"]) == 0
    by_model = json.loads(capsys.readouterr().out)
    entries = json.loads((trained / "test" / "predictions.json").read_text(encoding="utf-8"))
    assert {e["category_id"] for e in entries} <= {10 * i for i in range(1, 9)}
    annotations = str(shapes / "annotations" / "instances_val.json")
    given = [
        "--predictions",
        str(trained / "test" / "predictions.json"),
        "--work-dir",
        str(trained / "again"),
        "--json",
    ]
    for config_or_file in (annotations, str(next(trained.glob("dino_nano_*.py")))):
        assert main(["test", config_or_file, *given]) == 0
        assert json.loads(capsys.readouterr().out) == pytest.approx(by_model, abs=1e-9)


def test_predict_with_the_trained_weights(trained, shapes, tmp_path, capsys):
    args = [
        "predict",
        "dino_nano",
        str(shapes / "val"),
        "--weights",
        str(trained / "epoch_1.pth"),
        "--out",
        str(tmp_path),
    ]
    more = ["--score-threshold", "0.01", "--max-detections", "5", "--attention", "--coco", str(tmp_path / "coco.json")]
    assert main([*args, *more]) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4
    names = {
        c["name"]
        for c in json.loads((shapes / "annotations" / "instances_val.json").read_text(encoding="utf-8"))["categories"]
    }
    assert all(1 <= len(line["objects"]) <= 5 for line in lines)
    assert {o["name"] for line in lines for o in line["objects"]} <= names
    entries = json.loads((tmp_path / "coco.json").read_text(encoding="utf-8"))
    assert {e["category_id"] for e in entries} <= {10 * i for i in range(1, 9)}
    assert len(list(tmp_path.glob("*_attention.png"))) == 4
    assert main([*args[:-2], "--score-threshold", "0.999", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["objects"] for line in shown][-4:] == [[]] * 4


def test_other_heads_are_replaced(trained, shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    keep = {10, 20, 30}
    content["categories"] = [c for c in content["categories"] if c["id"] in keep]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in keep]
    root = tmp_path / "few"
    shutil.copytree(shapes / "train", root / "train")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    config = own_detection_config(
        "dino_nano", root, weights=trained / "epoch_1.pth", work_dir=tmp_path / "w", workers=0
    )
    assert config.model.num_classes == 3
    assert config.train_dataloader.dataset.part == "train"  # there is no val split
    runner = Runner.from_cfg(prepare(config, options={"log_level": "WARNING"}))
    kept = read_checkpoint(trained / "epoch_1.pth")["ema_state_dict"]
    key = "detector.network.transformer.level_embed"
    assert torch.equal(runner.model.state_dict()[key], kept[key])
    assert runner.model.state_dict()["detector.network.class_embed.0.weight"].shape[0] == 3


def test_nan_loss_stops_and_keeps_the_checkpoint(shapes, tmp_path, monkeypatch):
    config = own_detection_config("deformable_detr_nano", shapes, epochs=3, work_dir=tmp_path / "w", workers=0)
    whole, calls = criterion.SetCriterion.loss_boxes, []

    def loss_boxes(self, *args):
        calls.append(1)
        found = whole(self, *args)
        return {**found, "loss_giou": found["loss_giou"] * float("nan")} if len(calls) > 20 else found

    monkeypatch.setattr(criterion.SetCriterion, "loss_boxes", loss_boxes)
    runner = Runner.from_cfg(prepare(config, options={"log_level": "ERROR", "train_cfg.val_interval": 9}))
    runner._val_loop = None
    with pytest.raises(NonFiniteLossError) as error:
        runner.train()
    message = str(error.value)
    assert "loss_giou" in message
    assert "the batch is images" in message
    assert ".png" in message
    assert "at iteration 6 (epoch 2)" in message  # four predictions an iteration
    assert "epoch_1.pth" in message
    assert all(torch.isfinite(v).all() for v in runner.model.state_dict().values() if v.is_floating_point())


def test_names_of_detectors():
    assert is_detector("dino")
    assert is_detector("dino_nano")
    assert not is_detector("davit_tiny")
    assert detector_name("dino", small=True) == "dino_nano"
    assert detector_name("dino", small=False) == "dino_4scale_r50"
    assert detector_name("detr", small=False) == "detr_resnet50"
    with pytest.raises(UnknownNameError, match="did you mean"):
        detector_name("dinno", small=True)


def test_recipes_train_the_backbone_slower():
    config = load_config("deformable-detr-r50_det_50e_coco")
    with torch.device("meta"):
        model = build(config.model.to_dict(), MODELS)
    wrapper = ParamGroups(config.optim_wrapper.to_dict(), config.optim_wrapper.paramwise_cfg.to_dict())
    wrapper.wrapper.pop("paramwise_cfg")
    rates = {}
    groups = wrapper(model).optimizer.param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    for group in groups:
        rates |= {names[id(p)]: group["lr"] for p in group["params"]}
    assert rates["detector.backbone.layer3.0.conv1.weight"] == pytest.approx(2e-5)
    assert rates["detector.network.transformer.reference_points.weight"] == pytest.approx(2e-5)
    assert rates["detector.network.transformer.encoder.layers.0.self_attn.sampling_offsets.bias"] == pytest.approx(2e-5)
    assert rates["detector.network.input_proj.0.0.weight"] == pytest.approx(2e-4)
    assert not any(n.startswith(("detector.backbone.conv1", "detector.backbone.layer1")) for n in rates)
    assert np.isclose(sum(len(g["params"]) for g in groups), len(rates))
