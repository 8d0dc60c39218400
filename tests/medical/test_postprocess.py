"""Largest connected parts, against MONAI's."""

import numpy as np
import pytest

from zoo.medical.postprocess import keep_largest_components


@pytest.mark.parametrize("shape", [(12, 13, 9), (25, 30)])
def test_equals_monai(shape):
    transforms = pytest.importorskip("monai.transforms")
    rng = np.random.default_rng(0)
    changed = 0
    for connectivity in range(1, len(shape) + 1):
        for share in (0.1, 0.3, 0.5):
            labels = np.where(rng.random(shape) < share, rng.integers(1, 4, shape), 0).astype(np.uint8)
            labels[:4, :5] = 1  # parts whose sizes differ for sure
            labels[5:8, 1:7] = 2
            labels[-3:, -4:] = 3
            expected = transforms.KeepLargestConnectedComponent(connectivity=connectivity)(labels[None].copy())[0]
            found = keep_largest_components(labels, connectivity=connectivity)
            assert np.array_equal(found, np.asarray(expected))
            assert found.dtype == labels.dtype
            changed += int((found != labels).sum())
    assert changed > 100


def test_classes_can_be_named_and_the_input_stays():
    labels = np.zeros((6, 6), np.int64)
    labels[0, :3], labels[5, 5], labels[2, :2], labels[4, 0] = 1, 1, 2, 2
    before = labels.copy()
    found = keep_largest_components(labels, [2])
    assert np.array_equal(labels, before)
    assert found[5, 5] == 1
    assert found[4, 0] == 0
    assert (keep_largest_components(labels) != labels).sum() == 2
    assert not keep_largest_components(np.zeros((3, 3, 3), np.uint8)).any()


def test_arguments():
    labels = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="connectivity=3: accepted are 1 to 2"):
        keep_largest_components(labels, connectivity=3)
    with pytest.raises(ValueError, match="background has no parts"):
        keep_largest_components(labels, [0])
    with pytest.raises(TypeError, match="float64"):
        keep_largest_components(labels.astype(float))
