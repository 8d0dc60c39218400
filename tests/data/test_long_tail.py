"""Long-tailed subsets."""

import numpy as np
import pytest

from zoo.data.digits import Digits
from zoo.data.long_tail import LongTailed, long_tailed_counts


def test_counts():
    assert long_tailed_counts(100, 3, 100) == [100, 10, 1]
    assert long_tailed_counts(40, 5, 1) == [40] * 5
    assert long_tailed_counts(5, 1, 50) == [5]
    for bad in ((0, 3, 2), (5, 0, 2), (5, 3, 0.5)):
        with pytest.raises(ValueError, match="accepted are numbers from 1"):
            long_tailed_counts(*bad)


def test_subset_of_digits():
    whole = Digits(split="train", size=8)
    data = LongTailed(dict(type=Digits, split="train", size=8), imbalance=20, seed=3)
    smallest = np.bincount(whole.labels).min()
    assert data.class_counts == long_tailed_counts(smallest, 10, 20)
    assert np.bincount(data.labels).tolist() == data.class_counts
    assert len(data) == sum(data.class_counts) == len(set(data.indices))
    for i in (0, 7, len(data) - 1):
        sample = data[i]
        assert int(sample["data_samples"].gt_label) == data.labels[i]
        assert sample["data_samples"].img_path == data.path_of(i) == whole.path_of(data.indices[i])
    assert data.indices == LongTailed(whole, imbalance=20, seed=3).indices
    assert data.indices != LongTailed(whole, imbalance=20, seed=4).indices
    data.set_epoch(4)
    assert data.epoch == data.dataset.epoch == 4
    assert (data.num_classes, data.metainfo["classes"], data.num_skipped) == (10, whole.classes, 0)
    assert data.skipped_paths() == []
    with pytest.raises(ValueError, match="imbalance=0"):
        LongTailed(whole, imbalance=0)
