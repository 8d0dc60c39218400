"""The benchmark of training: runs go on where they stopped, and transformers' detector trains by the same recipe."""

import importlib.util
import sys

import pytest
import torch

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def bench(repo_root):
    spec = importlib.util.spec_from_file_location("bench_training", repo_root / "tools" / "bench_detection_training.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_training"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_training"]


@pytest.fixture(scope="module")
def prepared(bench, tmp_path_factory):
    """A folder with data and a backbone file (not trained)."""
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(7)
    torch.save(
        bench.build({**bench.nano_backbone(), "num_classes": 8}, bench.MODELS).state_dict(), folder / "backbone.pth"
    )
    return folder, *bench.data(folder, 16, 4)


@pytest.mark.parametrize("name", ["deformable_detr_nano", "transformers_deformable_detr"])
def test_a_run_goes_on(bench, prepared, name, tmp_path):
    folder, train, val = prepared

    def make(seconds=100.0):
        return bench.Run(name, seconds, tmp_path, train, val, folder / "backbone.pth")

    run = make()
    inner = run.model.backbone if name == bench.PEER else run.model.detector.backbone
    saved = torch.load(folder / "backbone.pth", weights_only=True)
    assert all(torch.equal(v, saved[k]) for k, v in inner.state_dict().items())
    run.step()
    run.used = 60.0
    run.points.append(run.evaluate())
    run.save()
    again = make()
    assert (again.steps, again.used, again.points) == (1, 60.0, run.points)
    run.step()
    again.step()
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    with pytest.raises(ValueError, match="another folder"):
        make(seconds=5.0)


def test_rates_of_a_run(bench):
    common = dict(lr=1.0, backbone_lr=1.0, weight_decay=0.0, clip=1.0, warmup=10)
    drops = bench.Recipe(**common, drop=0.75)
    assert [drops.rate(s, x) for s, x in ((0, 0.0), (4, 0.1), (9, 0.2), (500, 0.74), (501, 0.75), (900, 1.0))] == [
        pytest.approx(r) for r in (0.1, 0.5, 1.0, 1.0, 0.1, 0.1)
    ]
    falls = bench.Recipe(**common, floor=0.02)
    assert [falls.rate(s, x) for s, x in ((4, 0.0), (99, 0.0), (99, 0.5), (99, 1.0), (99, 1.2))] == [
        pytest.approx(r) for r in (0.5, 1.0, 0.51, 0.02, 0.02)
    ]


def test_all_small_detectors_and_the_peer_are_compared(bench):
    names = bench.chosen(None)
    assert {"deformable_detr_nano", "dab_detr_nano", "dino_nano", bench.PEER} <= set(names)
    assert bench.chosen("dino_nano")
    with pytest.raises(ValueError, match="there are"):
        bench.chosen("nothing")


def test_table_and_curves(bench, tmp_path):
    points = [bench.Point("a", m, 1, 8, 0.1 * m, 0.2, 5) for m in (1.0, 2.0)]
    bench.write_results(points, tmp_path / "t.csv", tmp_path / "t.png")
    other = [bench.Point("b", 1.0, 1, 8, 0.1, 0.2, 5)]
    assert bench.with_earlier(other, tmp_path / "t.csv", lambda p: p.detector) == [*points, *other]
    assert bench.with_earlier(points[:1], tmp_path / "t.csv", lambda p: p.detector) == points[:1]
    assert (tmp_path / "t.png").stat().st_size > 1000
