"""The parts of the arena: the grid, corruptions, the file of results, fits, the recipe."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from zoo.arena import growth, measure
from zoo.arena.corrupt import corrupt, corruption_names
from zoo.arena.grid import HOSTS, Job, Settings, build_host, expand, spread
from zoo.arena.report import pareto_front
from zoo.arena.store import Row, Store
from zoo.arena.train import Images, _augmented, accuracy, load_images, train_once
from zoo.mixers.base import Mixer
from zoo.registry import MIXERS, UnknownNameError


def test_grid_has_every_combination_once():
    jobs = expand(Settings(mixers=("softmax", "window"), seeds=(0, 1)))
    assert len({j.key for j in jobs}) == len(jobs) == 2 * 2 * 3 + 2
    assert [j.alone for j in jobs] == sorted(j.alone for j in jobs)  # what measures time comes last
    assert Job("quality", "vit", "window", "classification").key == "quality/classification/vit/window"
    assert [j.kind for j in expand(Settings(mixers=("window",), train=False, cost=False, status=False))] == ["growth"]


def test_grid_refuses_what_it_does_not_know():
    with pytest.raises(UnknownNameError, match="softmax"):
        expand(Settings(mixers=("softmaxx",)))
    with pytest.raises(UnknownNameError, match="arena host"):
        expand(Settings(mixers=("softmax",), hosts=("vitt",)))
    for wrong in ({"epochs": 0}, {"severities": (6,)}, {"sizes": (32,)}, {"seeds": ()}):
        with pytest.raises(ValueError):
            Settings(mixers=("softmax",), **wrong)


def test_settings_survive_json():
    settings = Settings(mixers=("a", "b"), sizes=(64, 128), data="x")
    import dataclasses
    import json

    assert Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    assert "mixers" not in settings.recipe


def test_spread_takes_the_yardstick_and_an_even_share():
    names = [f"m{i:02d}" for i in range(40)] + ["softmax"]
    chosen = spread(names, 5)
    assert chosen[0] == "softmax"
    assert [names.index(n) for n in chosen[1:]] == [0, 10, 20, 30]
    assert spread(["b", "a"], 5) == ["a", "b"]
    assert len(spread(MIXERS.names())) == min(12, len(MIXERS.names()))


@pytest.mark.parametrize("host", HOSTS.names())
@pytest.mark.parametrize("size", [28, 64])
def test_hosts_build_small_and_large(host, size):
    small, large = (build_host(host, "softmax", image_size=size, small=s) for s in (True, False))
    assert min(small.strides) < min(large.strides)
    assert small(torch.randn(1, 3, size, size)).shape == (1, 10)


@pytest.fixture(scope="module")
def photograph():
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[:192:2, 100:292:2])  # uint8 [96, 96, 3]


@pytest.mark.parametrize("name", corruption_names())
def test_corruption_is_stronger_with_severity_and_repeats(name, photograph):
    def distance(severity):
        out = corrupt(photograph, name, severity)
        assert out.shape == photograph.shape
        assert out.dtype == np.uint8
        return np.abs(out.astype(float) - photograph).mean()

    distances = [distance(s) for s in (1, 3, 5)]
    assert 0.5 < distances[0] < distances[1] < distances[2] < 110
    assert np.array_equal(corrupt(photograph, name, 3, seed=4), corrupt(photograph, name, 3, seed=4))
    tiny = photograph[:28, :28]
    assert not np.array_equal(corrupt(tiny, name, 3), tiny)


def test_corruptions_by_their_formulas(photograph):
    x = photograph / 255
    np.testing.assert_allclose(corrupt(photograph, "brightness", 2) / 255, np.clip(x + 0.2, 0, 1), atol=0.003)
    mean = x.mean((0, 1))
    np.testing.assert_allclose(corrupt(photograph, "contrast", 5) / 255, mean + 0.1 * (x - mean), atol=0.003)
    grey = np.full((64, 64, 3), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", 1).astype(float) / 255
    assert noise.std() == pytest.approx(0.07, rel=0.05)
    changed = (corrupt(grey, "impulse_noise", 4) != 128).mean()
    assert changed == pytest.approx(0.2, rel=0.1)
    for blur in ("defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "elastic_transform", "pixelate"):
        assert np.abs(corrupt(grey, blur, 5).astype(int) - 128).max() <= 1, blur  # nothing to blur


def test_corruption_refuses_what_it_cannot_do(photograph):
    with pytest.raises(ValueError, match="unknown"):
        corrupt(photograph, "snowy")
    with pytest.raises(ValueError, match="severity"):
        corrupt(photograph, "fog", 0)
    with pytest.raises(ValueError, match="uint8"):
        corrupt(photograph.astype(np.float32), "fog")


def test_store_keeps_a_job_whole_and_replaces_it(tmp_path):
    store = Store(tmp_path / "r.sqlite", {"epochs": 1})
    job = Job("cost", "vit", "window")
    store.finish(job, [Row("latency_ms", 2.0, size=224), Row("latency_ms", error="skipped", size=512)], 1.5)
    store.finish(Job("cost", "vit", "bra"), [], 1.0, error="killed after 3 s")
    assert store.finished() == {"cost/vit/window", "cost/vit/bra"}
    assert store.finished(with_errors=False) == {"cost/vit/window"}
    store.finish(job, [Row("latency_ms", 3.0, size=224)], 1.5)
    again = Store(tmp_path / "r.sqlite")
    assert [(r["value"], r["size"]) for r in again.rows(mixer="window")] == [(3.0, 224)]
    assert [r["error"] for r in again.rows(mixer="bra")] == ["killed after 3 s"]
    assert again.rows(seed=None, mixer="window", device="cuda") == []
    with pytest.raises(ValueError, match="one is needed"):
        Row("latency_ms")


def test_store_refuses_results_of_another_recipe(tmp_path):
    Store(tmp_path / "r.sqlite", Settings(mixers=("a",), epochs=2).recipe).close()
    Store(tmp_path / "r.sqlite", Settings(mixers=("b",), epochs=2, cost=False).recipe).close()
    with pytest.raises(ValueError, match=r"epochs=3 \(there 2\)"):
        Store(tmp_path / "r.sqlite", Settings(mixers=("a",), epochs=3).recipe)
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "none.sqlite")


def test_exponent_is_that_of_a_power_law():
    assert measure.exponent([(n, 3 * n**1.7) for n in (10, 100, 250)]) == pytest.approx(1.7)
    x, y = np.array([1.0, 2, 4, 8]), np.array([1.0, 3, 3, 11])
    assert measure.exponent(list(zip(x, y))) == pytest.approx(np.polyfit(np.log(x), np.log(y), 1)[0])
    with pytest.raises(ValueError, match="two different"):
        measure.exponent([(1, 2), (1, 3)])


def test_predicted_follows_the_last_two_sizes():
    assert measure.predicted({}, 512) is None
    assert measure.predicted({256: 1.0}, 512) == pytest.approx(4.0)  # at least in proportion to tokens
    assert measure.predicted({128: 1.0, 256: 16.0}, 512) == pytest.approx(256.0)
    settings = Settings(mixers=("softmax",), time_limit=10, memory_limit=100)
    assert "expected time of 256 s" in measure._too_much(settings, 512, {128: 1.0, 256: 16.0}, {})
    assert "expected memory of 400 MiB" in measure._too_much(settings, 512, {}, {256: 100.0})
    assert measure._too_much(settings, 512, {256: 1.0}, {256: 10.0}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident set is read from /proc")
def test_peak_memory_is_what_was_used():
    code = """
import torch
from zoo.arena.measure import Meter
torch.ones(200 * 2**18).sum()  # 200 MiB that are freed before counting starts
meter = Meter(torch.device("cpu"))
meter.start()
torch.ones(96 * 2**18).sum()
print(meter.peak() / 2**20)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 95 < float(out) < 106


def test_cost_rows_have_every_measure():
    settings = Settings(mixers=("softmax",), sizes=(64, 96, 128))
    rows = list(measure.cost_rows(settings, Job("cost", "vit", "softmax")))
    assert all(r.error is None for r in rows if r.device == "cpu" and "memory" not in r.measure)
    sizes = {m: sorted(r.size for r in rows if r.measure == m and r.device == "cpu") for m in ("latency_ms", "flops")}
    assert sizes == {"latency_ms": [64, 96, 128], "flops": [64, 96, 128]}
    flops = {r.size: r.value for r in rows if r.measure == "flops"}
    dim, tokens = 192, 64  # at 128 px
    block = 12 * dim**2 * tokens + 2 * tokens**2 * dim
    assert flops[128] == 2 * block + 3 * 16 * 16 * dim * tokens + 10 * dim
    (parameters,) = (r.value for r in rows if r.measure == "parameters")
    assert parameters == sum(p.numel() for p in build_host("vit", "softmax", image_size=64, small=False).parameters())


class Quadratic(Mixer):
    """Says that it is linear, and is not."""

    growth = "linear"

    def forward(self, x, prefix=None):
        # Waiting, not multiplying: how long a large product takes depends on the allocator, too.
        end = time.process_time() + 2e-3 * (x.shape[1] * x.shape[2] / 1024) ** 2
        while time.process_time() < end:
            pass
        return x


def test_growth_finds_a_false_claim():
    times = growth.cpu_times(Quadratic, time_limit=0.5, dim=16, num_heads=1)
    measured = [(n, t) for n, t in times.items() if not isinstance(t, str)]
    assert len(measured) >= 3
    assert growth.exceeds("linear", measure.exponent(measured))
    assert not growth.exceeds("quadratic", 2.0)
    assert not growth.exceeds("linear", 1.1)


def test_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    points = {str(i): (float(x), float(y)) for i, (x, y) in enumerate(rng.integers(0, 12, (40, 2)))}
    front = pareto_front(points)

    def beaten(a, b):
        return points[b][0] <= points[a][0] and points[b][1] >= points[a][1] and points[a] != points[b]

    assert {points[n] for n in front} == {points[a] for a in points if not any(beaten(a, b) for b in points)}
    assert all(points[a][0] < points[b][0] and points[a][1] < points[b][1] for a, b in itertools.pairwise(front))


@pytest.fixture(scope="module")
def stripes():
    """A problem that anything learns: horizontal against vertical stripes."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 2
    stripe = ((np.arange(16) // 2) % 2 * 200).astype(np.uint8)
    pixels = np.stack([np.broadcast_to(stripe[:, None] if y else stripe[None], (16, 16)) for y in labels])
    noisy = np.clip(pixels[..., None] + rng.integers(0, 50, (96, 16, 16, 3)), 0, 255).astype(np.uint8)
    return Images(noisy[:64], labels[:64], noisy[64:], labels[64:], {"fog": noisy[64:]}, 2, False)


def test_recipe_learns_and_repeats(stripes):
    settings = Settings(mixers=("softmax",), image_size=16, epochs=6, batch_size=16)
    first, again = (train_once(settings, "vit", "softmax", stripes, seed=1) for _ in range(2))
    assert first["top1"] > 90
    assert first["robust_top1"] == first["corruption.fog"] == first["top1"]
    assert {k: v for k, v in first.items() if k != "train_s"} == {k: v for k, v in again.items() if k != "train_s"}
    assert train_once(settings, "vit", "softmax", stripes, seed=2)["train_loss"] != first["train_loss"]


def test_recipe_stops_at_a_loss_that_is_not_finite(stripes):
    settings = Settings(mixers=("softmax",), image_size=16, epochs=1, learning_rate=float("inf"))
    with pytest.raises(FloatingPointError, match="step"):
        train_once(settings, "vit", "softmax", stripes, seed=0)


def test_augmentation_shifts_and_mirrors_each_image_by_itself():
    x = torch.arange(16.0).expand(64, 3, 16, 16) + 100 * torch.arange(16.0)[:, None]  # tells row and column
    out = _augmented(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape
    corners = out[:, 0, 4:12, 4:12]  # nothing of the border
    forward = (corners[:, 0, 1] - corners[:, 0, 0]) == 1
    assert 16 < int(forward.sum()) < 48
    straight = torch.where(forward[:, None, None], corners, corners.flip(2))
    moved = straight[:, 0, 0] - 404.0
    assert moved.unique().numel() > 10
    assert (moved.abs() <= 2 * 100 + 2).all()
    torch.testing.assert_close(straight - straight[:, :1, :1], (x[:, 0, 4:12, 4:12] - 404))


def test_accuracy_counts_what_is_right():
    pixels = np.zeros((300, 4, 4, 3), np.uint8)
    labels = np.arange(300) % 3
    zero, one = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    always_one = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    with torch.no_grad():
        always_one[1].weight.zero_()
        always_one[1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert accuracy(always_one, pixels, labels, zero, one) == pytest.approx(100 / 3)


def test_images_of_a_folder_are_square_and_limited(tmp_path):
    import cv2

    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for i in range(15):
            assert cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.full((20 + i, 40, 3), i, np.uint8))
    images = load_images(Settings(mixers=("softmax",), data=str(tmp_path), image_size=16, max_train=10, max_test=4))
    assert images.train.shape == (10, 16, 16, 3)
    assert images.test.shape == (4, 16, 16, 3)
    assert np.bincount(images.train_labels).tolist() == [5, 5]
    assert images.augment
    assert set(images.corrupted) == set(corruption_names())
    assert all(v.shape == images.test.shape for v in images.corrupted.values())


def test_digits_are_all_there():
    images = load_images(Settings(mixers=("softmax",), severities=(1, 2)))
    assert len(images.train) + len(images.test) == 1797
    assert images.corrupted["fog"].shape == (2 * len(images.test), 28, 28, 3)
    assert not images.augment
