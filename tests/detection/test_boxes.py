import pytest
import torch
from torchvision import ops

from zoo.detection import boxes


def corners(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=g, dtype=torch.float64)
    return torch.cat([low, low + torch.rand(n, 2, generator=g, dtype=torch.float64) + 0.01], dim=1)


def test_formats_are_inverse_and_equal_torchvisions():
    xyxy = corners(9)
    cxcywh = boxes.xyxy_to_cxcywh(xyxy)
    torch.testing.assert_close(cxcywh, ops.box_convert(xyxy, "xyxy", "cxcywh"))
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(cxcywh), xyxy)


def test_overlaps_equal_torchvisions():
    a, b = corners(7), corners(5, 1)
    iou, union = boxes.box_iou(a, b)
    torch.testing.assert_close(iou, ops.box_iou(a, b))
    areas = ops.box_area(a)[:, None] + ops.box_area(b)
    torch.testing.assert_close(union, areas / (1 + iou))
    giou = ops.generalized_box_iou(a, b)
    torch.testing.assert_close(boxes.generalised_box_iou(a, b), giou)
    torch.testing.assert_close(boxes.paired_generalised_iou(a[:5], b), giou[:5].diagonal())


def test_epsilon_keeps_empty_boxes_finite():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert boxes.generalised_box_iou(point, point, 1e-6).isfinite().all()


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_inverse_sigmoid_is_bounded(eps):
    x = torch.tensor([-1.0, 0.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    out = boxes.inverse_sigmoid(x, eps)
    torch.testing.assert_close(out[2].sigmoid(), x[2])
    bound = torch.log(torch.tensor(1 / eps, dtype=torch.float64))
    torch.testing.assert_close(out[[0, 1, 3, 4]], torch.stack([-bound, -bound, bound, bound]))
