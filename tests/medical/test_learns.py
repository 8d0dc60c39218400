"""Recipes learn: on generated abdomens within seconds, and on real nuclei (slow)."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from zoo.data.phantom_dataset import cached_phantom
from zoo.engine.launch import train

#: Small enough for seconds; the benchmark has 40 volumes of 96 x 96 x 48.
VOLUMES, SIZE, EPOCHS = 10, (64, 64, 32), 16


@pytest.fixture(scope="module")
def bench(repo_root):
    path = repo_root / "tools" / "bench_medical_training.py"
    spec = importlib.util.spec_from_file_location("bench_medical_training", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_medical_training"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_medical_training"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Folder of a cache that the recipes' data set finds its volumes in."""
    folder = tmp_path_factory.mktemp("phantoms")
    cached_phantom(VOLUMES, SIZE, 0, folder)
    return folder


def test_a_recipe_reaches_a_dice_of_0_6(phantoms, tmp_path):
    """By the runner, in about 20 s of one core; the whole recipe and full-sized volumes are the benchmark's."""
    options = [f"train_cfg.max_epochs={EPOCHS}", f"train_cfg.val_interval={EPOCHS}"]
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        at = f"{loader}.dataset"
        options += [f"{at}.volumes={VOLUMES}", f"{at}.size={SIZE}", f"{at}.folder={phantoms}"]
    options += ["optim_wrapper.optimizer.lr=4e-3", "visualizer=None"]
    runner = train("attention-unet-nano_seg_40e_phantom", work_dir=tmp_path, options=options)
    found = {k: float(v.data[-1][0]) for k, v in runner.message_hub.log_scalars.items() if k.startswith("val/")}
    assert found["val/volume/dice"] > 0.6, found
    assert found["val/volume/dice/liver"] > 0.85, found
    assert (tmp_path / "best_volume_dice.pth").is_file()


def test_a_run_by_the_clock_goes_on(bench, phantoms, tmp_path):
    """What it has after a stop equals what it has without one, and a finished one is not trained again."""
    recipe = bench.RECIPES["monai_unet_nano"]
    data = dict(volumes=VOLUMES, size=SIZE, folder=str(phantoms))

    def make():
        return bench.phantom_task(recipe, 1, 0, **data)

    whole, first = (
        bench.Run("monai_unet_nano", 1, 0, 1e6, tmp_path / name, make) for name in ("whole.pth", "stopped.pth")
    )
    for run in (whole, first):
        for _ in range(2):
            run.used = 0.0  # the rate follows from the time
            run.step()
    first.save()
    second = bench.Run("monai_unet_nano", 1, 0, 1e6, tmp_path / "stopped.pth", make)
    for run in (whole, second):
        run.used = 0.0
        run.step()
    assert second.steps == whole.steps == 3
    own, other = whole.model.state_dict(), second.model.state_dict()
    assert all(bool((own[k] == other[k]).all()) for k in own)
    assert all(bool((whole.average[k] == second.average[k]).all()) for k in own)
    second.used, second.seconds = 2e6, 1e6
    second.points.append(second.evaluate())
    assert 0 <= second.points[0].dice <= 1
    named = [p.split("=")[0] for p in second.points[0].classes.split()]
    assert named == ["liver", "spleen", "kidney", "gallbladder"]
    second.save()
    third = bench.Run("monai_unet_nano", 1, 0, 1e6, tmp_path / "stopped.pth", lambda: pytest.fail("trained again"))
    assert third.run() == second.points
    with pytest.raises(ValueError, match="is of a run of 1000000.0 s, not 60 s"):
        bench.Run("monai_unet_nano", 1, 0, 60, tmp_path / "stopped.pth", make)


def test_the_table_keeps_other_runs(bench, tmp_path):
    def point(model, minutes, dice, seed=0):
        return bench.Point(model, 0, seed, minutes, 10, 80, dice, "liver=0.9", 1000)

    old, new = point("a", 1.0, 0.8), [point("b", 1.0, 0.85), point("b", 2.0, 0.92), point("b", 2.0, 0.94, 1)]
    bench.write_results([old], tmp_path / "t.csv", tmp_path / "t.png")

    def run(p):
        return (p.model, p.fold, p.seed)

    assert bench.with_earlier(new, tmp_path / "t.csv", run) == [old, *new]
    bench.write_results([old, *new], tmp_path / "t.csv", tmp_path / "t.png")
    again = point("b", 2.0, 0.95, 1)
    assert bench.with_earlier([again], tmp_path / "t.csv", run) == [old, *new[:2], again]
    assert bench.with_earlier([old], tmp_path / "t.csv", run) == [*new, old]
    assert bench.summary(new) == ["b: Dice 0.9300 +- 0.0141 (2 runs), 0.9 after 2.0 CPU minutes"]
    assert (tmp_path / "t.png").stat().st_size > 1000


@pytest.fixture
def nuclei(repo_root):
    """The folder of a photograph of nuclei (image.png, instances.png)."""
    path = Path(os.environ.get("ZOO_NUCLEI", repo_root.parent / "shared" / "data" / "nuclei"))
    if not (path / "image.png").is_file():
        pytest.skip(f"there is no image.png in {path}; ZOO_NUCLEI names another folder")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_unet_nano", "wau_unet_nano"])
def test_nuclei_are_found(bench, nuclei, name, tmp_path):
    """Trained on three quadrants of a real image, the fourth has a foreground Dice of at least 0.85."""

    def make():
        return bench.nuclei_task(bench.RECIPES[name], nuclei, 3, 0)

    points = bench.Run(name, 3, 0, 60.0, tmp_path / "run.pth", make).run()
    assert points[-1].dice >= 0.85, points
