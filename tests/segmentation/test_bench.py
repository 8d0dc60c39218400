"""The benchmark of training: runs go on where they stopped, and transformers' model trains by the same recipe."""

import importlib.util
import sys

import pytest
import torch

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bench(repo_root):
    file = repo_root / "tools" / "bench_segmentation_training.py"
    spec = importlib.util.spec_from_file_location("bench_segmentation_training", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def data(bench):
    return bench.data(8, 2)


def backbone_of(bench, name, folder):
    """A file with weights of a run's backbone (not trained)."""
    inner, spec = bench.backbone_spec(name)
    torch.manual_seed(7)
    file = folder / f"backbone_{inner}.pth"
    torch.save(bench.build({**spec, "num_classes": 5}, bench.MODELS).state_dict(), file)
    return file


@pytest.mark.parametrize(
    "name", ["upernet_davit_nano", "mask_rcnn_nano", "mask2former_nano", "transformers_mask2former"]
)
def test_a_run_goes_on(bench, data, name, tmp_path):
    backbone = backbone_of(bench, name, tmp_path)

    def make(seconds=100.0):
        return bench.Run(name, seconds, tmp_path, *data, backbone)

    run = make()
    parts = [m for n, m in run.model.named_modules() if n.endswith("backbone")]
    saved = torch.load(backbone, weights_only=True)
    assert all(torch.equal(v, saved[k]) for k, v in parts[0].state_dict().items())
    run.step()
    run.used = 60.0
    point = run.evaluate()
    assert (point.minutes, point.steps, point.images) == (1.0, 1, 8)
    assert (point.miou is None) == (name == "mask_rcnn_nano")
    assert (point.mask_ap is None) == (name == "upernet_davit_nano")
    assert 0 <= point.score() <= 1
    run.points.append(point)
    run.save()
    again = make()
    assert (again.steps, again.used, again.points) == (1, 60.0, run.points)
    run.step()
    again.step()
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    with pytest.raises(ValueError, match="another folder"):
        make(seconds=5.0)


def test_the_same_size_as_transformers(bench):
    sizes = {}
    for name in ("mask2former_nano", bench.PEER):
        model = bench.Peer() if name == bench.PEER else bench.SegmentationModel(name)
        sizes[name] = sum(p.numel() for p in model.parameters())
    assert sizes["mask2former_nano"] == sizes[bench.PEER]


def test_perfect_masks_have_an_ap_of_one(bench, data):
    _, val = data
    found = []
    for i in range(len(val)):
        gt = val[i]["data_samples"].gt_instances
        gt.scores = torch.ones(len(gt.labels))
        found.append(gt)
    assert bench.mask_ap(val, found, 1) == pytest.approx(1.0)
    for f in found:
        f.labels = f.labels % 5 + 1
    assert bench.mask_ap(val, found, 1) == pytest.approx(0.0)


def test_the_table_keeps_other_runs(bench, tmp_path):
    def point(name, **scores):
        return bench.Point(name, 1.0, 10, 80, **{"miou": None, "mask_ap": None, "pq": None, **scores}, parameters=5)

    table, picture = tmp_path / "t.csv", tmp_path / "t.png"
    first = [point("mask_rcnn_nano", mask_ap=0.5), point(bench.PEER, miou=0.1, mask_ap=0.2, pq=0.3)]
    bench.write_results(first, table, picture)
    other, again = point("mask2former_nano", pq=0.4), point("mask_rcnn_nano", mask_ap=0.6)
    assert bench.with_earlier([other], table, lambda p: p.model) == [*first, other]
    assert bench.with_earlier([again], table, lambda p: p.model) == [first[1], again]
    assert picture.stat().st_size > 1000
    assert bench.with_earlier([other], tmp_path / "none.csv", lambda p: p.model) == [other]
