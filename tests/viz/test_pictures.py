"""Pictures of predictions and confusions."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from zoo.viz import Prediction, save_confusion, save_predictions
from zoo.viz.confusion import draw_confusion
from zoo.viz.predictions import draw_predictions


def prediction(truth=None, labels=("cat", "dog"), title=None):
    image = np.full((20, 30, 3), (10, 200, 90), np.uint8)
    return Prediction(image, labels, (0.75, 0.25)[: len(labels)], truth, title)


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in [axes.title, *axes.texts] if t.get_text()]


def test_texts_and_colours():
    figure = draw_predictions([prediction("cat", title="1.png"), prediction("dog"), prediction()])
    assert texts(figure) == [
        "1.png\ncat",
        "cat",
        "75.0 %",
        "dog",
        "25.0 %",
        "true: dog",
        *["cat", "75.0 %", "dog", "25.0 %"] * 2,
    ]
    titles = [axes.title for axes in figure.axes[::2]]
    red_and_green = [tuple(int(t.get_color()[i : i + 2], 16) for i in (1, 3)) for t in titles[:2]]
    assert red_and_green[0][1] > red_and_green[0][0]
    assert red_and_green[1][0] > red_and_green[1][1]


@pytest.mark.parametrize("count", [1, 5, 13])
def test_the_grid_shows_every_image(tmp_path, picture, count):
    path = save_predictions([prediction("cat")] * count, tmp_path / "deep" / "p.png", columns=4, topk=1)
    pixels = picture(path).astype(int)
    green = (np.abs(pixels - (10, 200, 90)).max(-1) < 3).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(green)[2][1:, cv2.CC_STAT_AREA]
    assert (areas > 5000).sum() == count
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["p.png"]


def test_long_names_are_cut():
    assert "a" * 17 + "..." in texts(draw_predictions([prediction(labels=("a" * 50,))]))


def test_one_pixel_image_and_no_labels(tmp_path):
    save_predictions([Prediction(np.zeros((1, 1, 3), np.uint8), ["x"], [1.0])], tmp_path / "p.png")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no predictions"):
        save_predictions([], tmp_path / "p.png")
    with pytest.raises(ValueError, match="columns=0"):
        save_predictions([prediction()], tmp_path / "p.png", columns=0)


def test_confusion_counts_and_title():
    figure = draw_confusion(np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert texts(figure)[0] == "15 samples, 86.67 % correct"
    assert texts(figure)[1:4] == ["8", "2", "5"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [1, 40, 120])
def test_confusion_of_any_size(tmp_path, picture, count):
    matrix = np.eye(count, dtype=int) * 3
    pixels = picture(save_confusion(matrix, [f"class {i}" for i in range(count)], tmp_path / "c.png"))
    assert max(pixels.shape) < 2500
    assert (pixels.min(-1) < 120).any()


def test_confusion_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 3\).*2 classes need \(2, 2\)"):
        draw_confusion(np.zeros((2, 3)), ["a", "b"])


def test_pyplot_is_not_touched():
    code = (
        "import sys, numpy as np; from zoo.viz.confusion import draw_confusion; draw_confusion(np.eye(2), 'ab'); "
        "import zoo.viz.attention, zoo.viz.curves, zoo.viz.predictions; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
