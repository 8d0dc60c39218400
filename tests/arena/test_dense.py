"""Segmentation and detection in the arena: targets, scores, and a whole comparison of all tasks."""

import numpy as np
import pytest
import torch

from zoo.arena.dense import (
    Detection,
    Segmentation,
    assign,
    decode_boxes,
    draw_scenes,
    find_boxes,
)
from zoo.arena.grid import TASKS, Job, Settings, expand
from zoo.arena.report import markdown
from zoo.arena.run import RESULTS
from zoo.arena.store import Store
from zoo.arena.worker import data_path, rows
from zoo.cli import build_parser
from zoo.cli.compare import settings_of


@pytest.fixture(scope="module")
def scenes():
    return draw_scenes("test", 6, 64)


def test_scenes(scenes):
    assert scenes.images.shape == (6, 64, 64, 3)
    for semantic, boxes, labels in zip(scenes.semantic, scenes.boxes, scenes.labels):
        objects = labels >= 0
        assert 1 <= objects.sum() <= 4
        assert set(np.unique(semantic)) - {0} == set(labels[objects] + 1)
        for k in np.flatnonzero(objects):  # a box holds pixels of its class
            x0, y0, x1, y1 = boxes[k].astype(int)
            assert (semantic[y0:y1, x0:x1] == labels[k] + 1).any()


def test_cells_belong_to_the_smallest_box():
    boxes = np.zeros((8, 4), np.float32)
    labels = np.full(8, -1)
    boxes[0], labels[0] = (0, 0, 40, 40), 3
    boxes[1], labels[1] = (16, 16, 24, 24), 1
    found, at = assign(boxes, labels, 16)
    assert found[5, 5] == 1  # in both
    assert at[5, 5].tolist() == [16, 16, 24, 24]
    assert found[0, 0] == -1  # in the large one, but far from its centre
    assert set(np.unique(found)) == {-1, 1, 3}
    assert (found == 3).sum() + (found == 1).sum() == 16  # the centre's cells at most one and a half cells away


def test_boxes_are_found_again():
    """Outputs made of the targets give the objects back."""
    boxes = np.zeros((8, 4), np.float32)
    boxes[:2] = (8, 12, 30, 28), (40, 40, 60, 62)
    labels = np.array([2, 4, *[-1] * 6])
    found, at = (torch.from_numpy(a) for a in assign(boxes, labels, 16))
    output = torch.full((9, 16, 16), -10.0)
    for k in range(5):
        output[k][found == k] = 10.0
    y, x = torch.meshgrid(*[(torch.arange(16) + 0.5) * 4] * 2, indexing="ij")
    reach = torch.stack([x - at[..., 0], y - at[..., 1], at[..., 2] - x, at[..., 3] - y]).clamp(min=1e-3)
    output[5:] = torch.log(torch.expm1((reach / 8).double())).float()  # the inverse of what decodes it
    positive = found >= 0
    assert torch.allclose(decode_boxes(output[None, 5:])[0][positive], at[positive], atol=1e-4)
    corners, scores, classes = find_boxes(output, 64)
    best = scores > 0.9
    order = classes[best].argsort()
    assert classes[best][order].tolist() == [2, 4]
    assert torch.allclose(corners[best][order], torch.from_numpy(boxes[:2]), atol=1e-3)


def test_right_answers_score_100(scenes):
    semantic = torch.from_numpy(scenes.semantic).long()
    logits = 20.0 * torch.nn.functional.one_hot(semantic, 6).permute(0, 3, 1, 2).float()
    assert Segmentation.evaluate(logits, scenes) == {"mIoU": 100.0}
    labels, boxes = Detection.targets(scenes, torch.device("cpu"))
    output = torch.full((6, 9, 16, 16), -10.0)
    y, x = torch.meshgrid(*[(torch.arange(16) + 0.5) * 4] * 2, indexing="ij")
    for i in range(6):
        for k in range(5):
            output[i, k][labels[i] == k] = 10.0
        at = boxes[i]
        reach = torch.stack([x - at[..., 0], y - at[..., 1], at[..., 2] - x, at[..., 3] - y]).clamp(min=1e-3)
        output[i, 5:] = torch.log(torch.expm1((reach / 8).double())).float()
    found = Detection.evaluate(output, scenes)
    assert found["AP"] > 95  # objects whose cells belong to a smaller one are missed
    loss = Detection.loss(output, [labels, boxes])
    assert 0 <= float(loss) < 0.05
    assert float(Detection.loss(torch.zeros_like(output), [labels, boxes])) > 10 * float(loss)
    assert float(Segmentation.loss(logits, [semantic])) < 1e-3


@pytest.mark.parametrize("task", [Segmentation, Detection])
def test_training_lowers_the_loss_and_seeds_count(task, tmp_path):
    settings = Settings(mixers=("softmax",), seeds=(0, 1), epochs=1, max_train=16, max_test=4)
    path = tmp_path / "scenes.npz"
    task.prepare(settings, path)
    written = path.stat().st_mtime_ns
    task.prepare(settings, path)
    assert path.stat().st_mtime_ns == written
    first = {
        (r.measure, r.seed): r.value for r in task.rows(settings, Job("quality", "vit", "softmax", task.name), path)
    }
    assert {m for m, _ in first} == {*task.measures(), f"{task.name}_loss", f"{task.name}_s"}
    assert first[f"{task.name}_loss", 0] != first[f"{task.name}_loss", 1]
    longer = Settings(mixers=("softmax",), seeds=(0,), epochs=6, max_train=16, max_test=4)
    last = {r.measure: r.value for r in task.rows(longer, Job("quality", "vit", "softmax", task.name), path)}
    assert last[f"{task.name}_loss"] < first[f"{task.name}_loss", 0]


def test_an_error_is_a_row(tmp_path):
    settings = Settings(mixers=("softmax",), seeds=(0,), epochs=1, max_train=4, max_test=2)
    Segmentation.prepare(settings, tmp_path / "scenes.npz")
    found = list(
        Segmentation.rows(settings, Job("quality", "vit", "no_such_mixer", "segmentation"), tmp_path / "scenes.npz")
    )
    assert [(r.measure, r.value) for r in found] == [("mIoU", None)]
    assert "no_such_mixer" in found[0].error


def test_all_tasks_in_one_report(tmp_path):
    """What the processes of `zoo compare --tasks classification,segmentation,detection` do, in this one."""
    tasks = "classification,segmentation,detection"
    given = ["compare", "--mixers", "softmax", "--hosts", "vit", "--tasks", tasks, "--seeds", "0", "--epochs", "1"]
    given += ["--max-train", "20", "--max-test", "10", "--no-cost", "--no-status", "--no-growth"]
    settings = settings_of(build_parser(given).parse_args(given))
    jobs = expand(settings)
    assert [j.task for j in jobs] == tasks.split(",")
    store = Store(tmp_path / RESULTS, settings.recipe)
    for job in jobs:
        TASKS.get(job.task).prepare(settings, data_path(tmp_path, job.task))
        store.finish(job, list(rows(settings, job, tmp_path)), 1.0)
    measured = {(r["task"], r["measure"]) for r in store.rows() if r["error"] is None}
    assert {("classification", "top1"), ("segmentation", "mIoU"), ("detection", "AP")} <= measured
    page = markdown(store, [])
    header = next(line for line in page.splitlines() if line.startswith("| mixer | top-1 %"))
    assert header.startswith("| mixer | top-1 % | corrupted % | mIoU % | AP % | parameters |")
    assert "| `softmax` | " in page
