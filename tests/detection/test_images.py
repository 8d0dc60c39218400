import pytest
import torch

from zoo.detection.images import mask_at, pad_images


def test_pads_at_the_right_and_bottom():
    a, b = torch.rand(3, 5, 9), torch.rand(3, 7, 4)
    batch, mask = pad_images([a, b], divisor=4)
    assert batch.shape == (2, 3, 8, 12)
    assert torch.equal(batch[0, :, :5, :9], a)
    assert batch[1, :, 7:].abs().sum() == 0
    assert (~mask).sum((1, 2)).tolist() == [45, 28]
    assert not mask[1, :7, :4].any()


def test_masks_follow_the_nearest_pixel():
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[:, 2:] = True
    assert mask_at(mask, (2, 3))[0].tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("images", [[], [torch.rand(3, 4, 4), torch.rand(1, 4, 4)], [torch.rand(4, 4)]])
def test_refuses_what_is_no_batch(images):
    with pytest.raises(ValueError, match="images"):
        pad_images(images)
