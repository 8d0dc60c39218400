"""The typed sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zoo.classification.data_sample import ClsDataSample


@pytest.mark.parametrize("value", [2, np.int64(2), torch.tensor(2), [2], torch.tensor([2], dtype=torch.int32)])
def test_labels_become_int64_vectors(value: Any) -> None:
    sample = ClsDataSample().set_gt_label(value).set_pred_label(value)
    for label in (sample.gt_label, sample.pred_label):
        assert torch.equal(label, torch.tensor([2]))
        assert label.dtype == torch.int64


def test_several_labels_and_meta() -> None:
    sample = ClsDataSample(metainfo={"img_path": "a.png"}).set_gt_label([0, 3]).set_pred_score(torch.rand(4))
    assert sample.gt_label.tolist() == [0, 3]
    assert sample.img_path == "a.png"
    assert set(sample.to_dict()) == {"img_path", "gt_label", "pred_score"}


@pytest.mark.parametrize("value", [1.5, torch.tensor(True), torch.tensor([0.0])])
def test_what_is_no_class_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="gt_label"):
        ClsDataSample().set_gt_label(value)


def test_scores_of_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pred_score has shape \(2, 4\)"):
        ClsDataSample().set_pred_score(torch.rand(2, 4))
