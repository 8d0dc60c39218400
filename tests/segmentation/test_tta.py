"""Test-time augmentation equals the mean of probabilities, computed plainly."""

import pytest
import torch
from torch.nn import functional as F

from zoo.segmentation.geometry import ImageSize, restore_map
from zoo.segmentation.tta import SCALES, Augmentation, View, flip_averaged, mean_labels


def views(original=(33, 29)):
    made = []
    for scale in (8, 12):
        size = ImageSize((2 * scale, 4 * scale), (2 * scale - 1, 3 * scale), original)
        made += [View(torch.randn(6, scale, scale + 2), size, mirrored) for mirrored in (False, True)]
    return made


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("budget", [1, 1000, 1 << 24])
def test_mean_of_probabilities(softmax, budget):
    torch.manual_seed(0)
    given = views()
    total = 0
    for view in given:
        scores = restore_map(view.scores, view.size)
        scores = scores.softmax(0) if softmax else scores
        total = total + (scores.flip(-1) if view.mirrored else scores)
    assert torch.equal(mean_labels(given, softmax, budget), total.argmax(0))


def test_mirrored_views_are_mirrored_back():
    scores = torch.zeros(2, 4, 8)
    scores[1, :, :3] = 5.0  # class 1 at the left of the mirrored image
    labels = mean_labels([View(scores, ImageSize((4, 8), (4, 8), (4, 8)), True)])
    assert labels[0].tolist() == [0] * 5 + [1] * 3


def test_flip_averaged():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)

    def probabilities(x):
        return F.conv2d(x, weight, padding=1).softmax(1)

    x = torch.randn(2, 3, 6, 7)
    expected = (probabilities(x) + F.conv2d(x.flip(3), weight, padding=1).softmax(1).flip(3)) / 2
    torch.testing.assert_close(flip_averaged(probabilities)(x), expected)
    both = flip_averaged(probabilities)(x.flip(-1)).flip(-1)  # a mirrored image gives the mirrored result
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, None),
        (False, None),
        (True, Augmentation(SCALES, True)),
        ("flip", Augmentation((1.0,), True)),
        ([0.5, 1], Augmentation((0.5, 1.0), True)),
        ({"scales": [2], "flip": False}, Augmentation((2.0,), False)),
        ({"flip": False}, Augmentation(SCALES, False)),
        (Augmentation((1.0,)), Augmentation((1.0,))),
    ],
)
def test_what_a_user_may_give(value, expected):
    assert Augmentation.of(value) == expected


@pytest.mark.parametrize("value", ["scales", [], [0], [1, 1.0], [True], 2, {"scale": [1]}, [-1.0]])
def test_what_is_refused(value):
    with pytest.raises(ValueError, match="accepted are"):
        Augmentation.of(value)


def test_views_of_two_images():
    with pytest.raises(ValueError, match="views of one image"):
        mean_labels([*views((5, 5)), *views((6, 6))])
    with pytest.raises(ValueError, match="0 views"):
        mean_labels([])
