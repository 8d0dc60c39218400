"""Sliding windows: the same as averaging logits of the whole image, in memory that does not grow with the image."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.segmentation.bands import restored_bands, taps
from zoo.segmentation.data_sample import SegDataSample
from zoo.segmentation.geometry import ImageSize, restore_map
from zoo.segmentation.model import SegmentationModel
from zoo.segmentation.sliding import checked_windows, sliding_window

K = 5


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, K, 3, 2, 1)


@torch.no_grad()
def averaged(network, image, crop, stride, size=None):
    """Logits of the whole image, by the definition: sums and counts, then one interpolation."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, K, height, width), torch.zeros(height, width)
    for y in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for x in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(y * stride[0] + crop[0], height), min(x * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            logits = network(image[..., top:bottom, left:right])
            logits = F.interpolate(logits, size=(bottom - top, right - left), mode="bilinear", align_corners=False)
            total[..., top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    total = total / count
    return total if size is None else F.interpolate(total, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("image", [(37, 53), (64, 64), (1, 1), (5, 90), (90, 3)])
@pytest.mark.parametrize(("crop", "stride"), [((16, 16), (10, 11)), ((8, 24), (8, 24)), ((16, 8), (3, 5))])
@pytest.mark.parametrize("size", [None, (50, 31), (20, 110)])
def test_equals_averaged_logits(conv, image, crop, stride, size):
    x = torch.randn(1, 3, *image)
    expected = averaged(conv, x, crop, stride, size)
    for memory in (1 << 30, 4 * K * 17 * 20, 1):  # one strip, several, one for each column of windows
        found = sliding_window(conv, x, crop, stride, K, output="logits", size=size, batch=3, memory=memory)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        labels = sliding_window(conv, x, crop, stride, K, size=size, memory=memory)
        assert labels.dtype == torch.uint8
        best = found.topk(2, dim=1).values  # sums in another order may turn ties round
        certain = best[:, 0] - best[:, 1] > 1e-5
        assert torch.equal(labels.long()[certain], found.argmax(1)[certain])


def test_windows_are_few(conv):
    """No window is computed twice where the sums fit, and batches are filled."""
    sizes = []

    def network(windows):
        sizes.append(tuple(windows.shape))
        return conv(windows)

    sliding_window(network, torch.randn(1, 3, 30, 50), 16, 10, K, batch=3)
    # rows at 0, 10, 14; columns at 0, 10, 20, 30, 34
    assert sizes == [(3, 3, 16, 16), (2, 3, 16, 16)] * 3


def test_bytes_stay_bytes(conv):
    image = torch.randint(0, 256, (1, 3, 20, 33), dtype=torch.uint8)
    found = sliding_window(lambda w: conv(w.float() / 255), image, 16, 12, K, output="probabilities")
    expected = averaged(conv, image.float() / 255, (16, 16), (12, 12)).softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 20, 33))


def test_more_classes_than_a_byte_holds():
    def network(windows):
        logits = torch.zeros(len(windows), 300, *windows.shape[-2:])
        logits[:, 299] = windows[:, 0]
        return logits

    labels = sliding_window(network, torch.ones(1, 3, 9, 9), 4, 3, 300)
    assert labels.dtype == torch.int32
    assert (labels == 299).all()


@pytest.mark.parametrize("size", [None, (41, 23)])
def test_the_model_slides_like_this(conv, size):
    class Network(nn.Module):
        num_classes = K

        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, images):
            return {"logits": self.conv(images)}

    model = SegmentationModel(Network(), test_cfg=dict(mode="slide", crop=16, stride=10)).eval()
    x = torch.randn(1, 3, 32, 40)
    sample = SegDataSample(metainfo=dict(img_shape=(30, 37), ori_shape=size or (30, 37)))
    (found,) = model(x, [sample], mode="predict")
    expected = averaged(conv, x[..., :30, :37], (16, 16), (10, 10), size).argmax(1)[0]
    assert (found.pred_sem_seg == expected).float().mean() > 0.999
    assert found.pred_sem_seg.dtype == torch.int64


@pytest.mark.parametrize(
    "size",
    [
        ImageSize((16, 24), (15, 20), (31, 29)),
        ImageSize((8, 8), (8, 8), (8, 8)),
        ImageSize((16, 24), (16, 24), (1, 100)),
        ImageSize((16, 24), (16, 24), (7, 9)),
        ImageSize((1, 1), (1, 1), (3, 2)),
    ],
)
def test_bands_are_the_restored_map(size):
    maps = torch.randn(4, 5, 7)
    for rows in (1, 3, 100):
        bands = dict(restored_bands(maps, size, rows=rows))
        assert list(bands) == list(range(0, size.original[0], rows))
        torch.testing.assert_close(torch.cat(list(bands.values()), 1), restore_map(maps, size), atol=1e-5, rtol=1e-5)
    assert next(iter(restored_bands(maps, size, budget=1)))[1].shape[1] == 1


def test_taps_of_the_same_size_are_the_values_themselves():
    own = taps(7, 7)
    assert own.low.tolist() == own.high.tolist() == list(range(7))
    assert not own.weight.any()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(crop=0), "crop=0"),
        (dict(crop=(4, 4, 4)), "crop="),
        (dict(stride=9), "stride=.*left out"),
        (dict(output="masks"), "output='masks'"),
        (dict(batch=0), "batch=0"),
        (dict(size=(0, 4)), "size="),
        (dict(image=torch.zeros(2, 3, 4, 4)), r"image has shape \(2, 3, 4, 4\)"),
        (dict(image=torch.zeros(1, 3, 0, 4)), "image has shape"),
        (dict(num_classes=K + 1), r"\[1, 6, h, w\] is needed"),
    ],
)
def test_arguments_that_are_refused(conv, options, message):
    given = {"image": torch.zeros(1, 3, 12, 12), "crop": 8, "stride": 6, "num_classes": K, **options}
    with pytest.raises(ValueError, match=message):
        sliding_window(conv, **given)


def test_steps_by_default():
    assert checked_windows(512) == ((512, 512), (341, 341))
    assert checked_windows((3, 1)) == ((3, 1), (2, 1))


def test_logits_that_are_no_numbers(conv):
    with pytest.raises(FloatingPointError, match="rows"):
        sliding_window(lambda w: conv(w) / 0 * 0, torch.zeros(1, 3, 12, 12), 8, 6, K)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image():
    """8192 x 8192 pixels, 20 classes: below 4 GiB with interpreter and image; the sums are the same for a wider one."""
    program = textwrap.dedent(
        """
        import json, resource, sys
        import numpy as np, torch
        from torch import nn
        from zoo.segmentation.inference import SegmentationPredictor
        from zoo.segmentation.model import SegmentationModel

        class Network(nn.Module):
            num_classes = 20

            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 20, 16, 16)

            def forward(self, images):
                return {"logits": self.conv(images)}

        torch.set_num_threads(1)
        predictor = SegmentationPredictor(SegmentationModel(Network()), device="cpu")
        peaks = []
        for side in (1024, 8192):
            image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
            (result,) = predictor([image], sliding=(1024, 1024))
            assert result.label_map.shape == (side, side)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        print(json.dumps(peaks))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert large < 4
    # 1 GiB of sums at most, the image (0.19 GiB, twice for the array it is made of) and its labels
    assert large - small < 2
