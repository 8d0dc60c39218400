"""Segmenters on one's own masks by one command, and scores of masks that another program wrote."""

import json

import numpy as np
import pytest
from PIL import Image

from zoo.cli import main
from zoo.data.coco_panoptic import write_ids
from zoo.data.label_maps import MaskError, write_mask
from zoo.data.shapes import Shapes
from zoo.data.shapes_segmentation import ShapesSegmentation
from zoo.engine.config import ConfigError
from zoo.engine.evaluate_segmentation import evaluate_mask_folder
from zoo.engine.own_segmentation import kind_of, own_segmentation_config, segmenter_name
from zoo.metrics.coco_masks import CocoMasks
from zoo.metrics.panoptic import PanopticQuality, panoptic_counts, panoptic_result
from zoo.metrics.semantic import PixelTotals, count_pairs
from zoo.registry import UnknownNameError

SIZE = 64


@pytest.fixture(scope="module")
def shapes():
    return ShapesSegmentation("train", 8, SIZE, num_shapes=3, objects=(1, 3))


@pytest.fixture(scope="module")
def masks(shapes, tmp_path_factory):
    """Six images to train on and two to validate on, with masks; numbers 0, 10, 20 and 30 instead of 0 to 3."""
    root = tmp_path_factory.mktemp("masks")
    for i in range(8):
        split = "train" if i < 6 else "val"
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes.load_image(i)).save(root / "images" / split / f"{i}.png")
        semantic = shapes.load_annotation(i, (SIZE, SIZE)).semantic
        write_mask(root / "masks" / split / f"{i}_mask.png", semantic * 10)
    return root


@pytest.fixture(scope="module")
def panoptic(shapes, tmp_path_factory):
    """The same as COCO panoptic data, without a split to validate on."""
    root = tmp_path_factory.mktemp("panoptic")
    (root / "images").mkdir()
    images, annotations = [], []
    for i in range(8):
        Image.fromarray(shapes.load_image(i)).save(root / "images" / f"{i}.png")
        known = shapes.load_annotation(i, (SIZE, SIZE))
        write_ids(root / "annotations" / "panoptic" / f"{i}.png", known.segments * 999)
        images.append(dict(id=i + 5, file_name=f"{i}.png", height=SIZE, width=SIZE))
        infos = [dict(id=s["id"] * 999, category_id=s["label"] + 1, iscrowd=0) for s in known.infos]
        annotations.append(dict(image_id=i + 5, file_name=f"{i}.png", segments_info=infos))
    categories = [dict(id=k + 1, name=n, isthing=int(k > 0)) for k, n in enumerate(shapes.classes)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "annotations" / "panoptic.json").write_text(json.dumps(content))
    return root


def test_names():
    assert segmenter_name("upernet", small=True).endswith("_nano")
    assert segmenter_name("mask2former", small=False) == "mask2former_swin_tiny"
    assert segmenter_name("upernet_davit_tiny", small=True) == "upernet_davit_tiny"
    assert (kind_of("upernet_davit_nano"), kind_of("mask2former_nano")) == ("semantic", "masks")
    with pytest.raises(UnknownNameError, match="did you mean"):
        segmenter_name("upernett", small=True)


def test_one_command_trains_and_its_checkpoint_is_tested(masks, tmp_path, capsys):
    out = tmp_path / "work"
    command = ["train", "--model", "upernet_davit_nano", "--data", str(masks), "--epochs", "1", "--batch-size", "3"]
    command += ["--workers", "0", "--work-dir", str(out), "--cfg-options", "log_level=WARNING"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "the data set can be trained on" in text
    config = next(out.glob("*.py"))
    assert "num_classes=4" in config.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["test", str(config), str(out / "best_semantic_mIoU.pth"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 0 < values["semantic/mIoU"] < 1
    assert (out / "test" / "confusion.png").is_file()


def test_faults_end_before_training(masks, tmp_path, capsys):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(masks, root)
    write_mask(root / "masks" / "train" / "0_mask.png", np.zeros((SIZE, 8), int))
    command = ["train", "--model", "upernet_davit_nano", "--data", str(root), "--work-dir", str(tmp_path / "w")]
    assert main(command) != 0
    captured = capsys.readouterr()
    assert "0_mask.png is 64 x 8 pixels" in captured.out
    assert "cannot be trained on" in captured.err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "model, target, metric, source",
    [
        ("upernet_davit_nano", "semantic", None, None),
        ("mask2former_nano", "panoptic", PanopticQuality, "panoptic"),
    ],
)
def test_panoptic_data(panoptic, tmp_path, model, target, metric, source):
    config = own_segmentation_config(model, panoptic, epochs=1, work_dir=tmp_path)
    assert config.train_dataloader.dataset.targets == [target]
    assert config.model.num_classes == 4
    assert config.model.get("mask_source") == source
    if metric is not None:
        assert config.val_evaluator[0].type is metric or str(config.val_evaluator[0].type).endswith(metric.__name__)
        assert config.model.postprocess.thing_classes == [1, 2, 3]


def test_instances(tmp_path):
    Shapes("train", 4, SIZE, classes=("circle", "square")).write_coco(tmp_path / "data")
    config = own_segmentation_config("mask2former_nano", tmp_path / "data", epochs=1, work_dir=tmp_path / "w")
    assert config.model.mask_source == "instances"
    assert str(getattr(config.val_evaluator[0].type, "__name__", config.val_evaluator[0].type)).endswith(
        CocoMasks.__name__
    )
    with pytest.raises(ValueError, match="MaskFormer and Mask2Former learn them"):
        own_segmentation_config("upernet_davit_nano", tmp_path / "data", work_dir=tmp_path / "w")


@pytest.mark.parametrize(
    "options, words", [(dict(epochs=0), "epochs=0"), (dict(mixer="agent"), "mixer='agent'"), (dict(size=-3), "size=-3")]
)
def test_wrong_options(masks, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        own_segmentation_config("upernet_davit_nano", masks, work_dir=tmp_path, **options)


# -- masks that another program wrote -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(masks, tmp_path_factory):
    """A config's file, whose test data are images 6 and 7."""
    out = tmp_path_factory.mktemp("config")
    own_segmentation_config("upernet_davit_nano", masks, epochs=1, workers=0, work_dir=out)
    return next(out.glob("*.py"))


def predicted(shapes, index):
    """A prediction that is right in part."""
    return np.roll(shapes.load_annotation(index, (SIZE, SIZE)).semantic, 3, axis=1)


def test_label_maps(config, shapes, tmp_path, capsys):
    totals = PixelTotals(4)
    for i in (6, 7):
        found = predicted(shapes, i)
        write_mask(tmp_path / "found" / f"{i}.png", found)
        write_mask(tmp_path / "numbers" / f"{i}_out.png", found * 10)
        totals.add(count_pairs(found, shapes.load_annotation(i, (SIZE, SIZE)).semantic, 4))
    expected = {f"semantic/{k}": pytest.approx(v) for k, v in totals.result().stats.items()}
    command = ["test", str(config), "--json", "--work-dir", str(tmp_path / "out"), "--predictions"]
    assert main([*command, str(tmp_path / "found")]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert (tmp_path / "out" / "per_class.csv").is_file()
    assert main([*command, str(tmp_path / "numbers"), "--numbers", "masks", "--boundary"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 0 < values.pop("semantic/boundary_F") < 1
    assert values == expected


def test_wrong_label_maps(config, shapes, tmp_path):
    folder = tmp_path / "found"
    write_mask(folder / "6.png", predicted(shapes, 6))
    with pytest.raises(FileNotFoundError, match="1 of 2 images have no prediction in .*such as '7'"):
        evaluate_mask_folder(config, folder)
    write_mask(folder / "7.png", np.zeros((3, 4), int))
    with pytest.raises(ValueError, match=r"7.png'.* is 3 x 4 pixels, the truth 64 x 64"):
        evaluate_mask_folder(config, folder)
    write_mask(folder / "7.png", np.full((SIZE, SIZE), 9))
    with pytest.raises(ValueError, match=r"7.png'.*the prediction has the values 9"):
        evaluate_mask_folder(config, folder)
    with pytest.raises(MaskError, match=r"6.png' has the values \d"):
        evaluate_mask_folder(config, folder, numbers="masks")
    with pytest.raises(FileNotFoundError, match="no folder of predictions"):
        evaluate_mask_folder(config, tmp_path / "none")
    with pytest.raises(ConfigError, match="ShapesDetection, which has no masks"):
        evaluate_mask_folder("dino-nano_det_60e_shapes", folder)


def test_panoptic_predictions(panoptic, shapes, tmp_path):
    out = tmp_path / "config"
    own_segmentation_config("mask2former_nano", panoptic, epochs=1, workers=0, work_dir=out)
    config = next(out.glob("*.py"))
    from zoo.engine.evaluate_segmentation import data_to_test

    rows = [int(i) - 5 for i in data_to_test(config).image_ids[data_to_test(config)._indices]]
    annotations, counts = [], np.zeros((4, 4))
    for row in rows:
        known = shapes.load_annotation(row, (SIZE, SIZE))
        found = np.roll(known.segments, 2, axis=0)
        infos = [{**i, "label": (i["label"] + (i["id"] == 2)) % 4} for i in known.infos]
        infos = [i for i in infos if (found == i["id"]).any()]
        counts += panoptic_counts(found, infos, known.segments, known.infos, 4)
        write_ids(tmp_path / "found" / "result" / f"{row}.png", found * 7)
        listed = [dict(id=i["id"] * 7, category_id=i["label"] + 1) for i in infos]
        annotations.append(dict(image_id=row + 5, file_name=f"{row}.png", segments_info=listed))
    path = tmp_path / "found" / "result.json"
    path.write_text(json.dumps(dict(annotations=annotations)))
    result = evaluate_mask_folder(config, tmp_path / "found", out_dir=tmp_path / "out")
    expected = panoptic_result(counts, list(shapes.classes), [False, True, True, True]).stats
    assert result.stats == {k: pytest.approx(v, nan_ok=True) for k, v in expected.items()}
    assert 0 < result.stats["PQ"] < 1
    for change, error, words in (
        (lambda a: a[0].update(image_id=99), FileNotFoundError, "have no prediction"),
        (lambda a: a.append(dict(a[0])), ValueError, "two predictions"),
        (lambda a: a[0]["segments_info"][0].update(category_id=77), ValueError, "of category 77, which there is not"),
        (lambda a: a[0]["segments_info"].pop(), MaskError, "which are not described"),
    ):
        changed = json.loads(json.dumps(annotations))
        change(changed)
        path.write_text(json.dumps(dict(annotations=changed)))
        with pytest.raises(error, match=words):
            evaluate_mask_folder(config, tmp_path / "found")
