"""Every head learns four images by heart."""

import time

import pytest
import torch

from zoo.segmentation.data_sample import SegDataSample
from zoo.segmentation.model import SegmentationModel


def four_images(size=64):
    """Rectangles of three classes over a background, in colours that vary; the edge is not labelled."""
    generator = torch.manual_seed(0)
    images = torch.randint(100, 140, (4, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = []
    for n, image in enumerate(images):
        labels = torch.zeros(size, size, dtype=torch.uint8)
        for label in (1, 2, 3):
            y, x = torch.randint(0, size // 2, (2,), generator=generator).tolist()
            h, w = torch.randint(size // 4, size // 2, (2,), generator=generator).tolist()
            labels[y : y + h, x : x + w] = label
            image[:, y : y + h, x : x + w] = torch.randint(0, 255, (3, 1, 1), generator=generator, dtype=torch.uint8)
        labels[:2] = 255
        meta = dict(img_id=n, img_path=f"{n}.png", img_shape=(size, size), ori_shape=(size, size))
        samples.append(SegDataSample(metainfo=meta).set_sem_seg(labels))
    return {"inputs": list(images), "data_samples": samples}


def mean_iou(model, data):
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(data), mode="predict")
    predicted = torch.stack([s.pred_sem_seg for s in found])
    labels = torch.stack([s.gt_sem_seg for s in found])
    predicted, labels = predicted[labels != 255], labels[labels != 255]
    overlaps = []
    for c in range(4):
        union = ((predicted == c) | (labels == c)).sum()
        overlaps.append(((predicted == c) & (labels == c)).sum() / union)
    return float(torch.stack(overlaps).mean())


@pytest.mark.parametrize(
    "segmenter",
    [
        dict(type="upernet_davit_nano"),
        pytest.param(dict(type="upernet_biformer_nano"), marks=pytest.mark.slow),
        pytest.param(dict(type="upernet_agent_swin_nano"), marks=pytest.mark.slow),
        pytest.param(dict(type="semantic_fpn_davit_nano"), marks=pytest.mark.slow),
        pytest.param(dict(type="fcn_davit_nano"), marks=pytest.mark.slow),
        pytest.param(dict(type="segformer_b0", head=dict(type="segformer", dim=64)), marks=pytest.mark.slow),
    ],
    ids=lambda s: s["type"],
)
def test_four_images_are_learned(segmenter):
    torch.manual_seed(0)
    model = SegmentationModel(segmenter, num_classes=4, loss=["cross_entropy", "dice"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    data = four_images()
    start = time.thread_time()
    assert mean_iou(model, data) < 0.5
    for step in range(300):
        model.train()
        losses = model(**model.data_preprocessor(data, True), mode="loss")
        loss = sum(v for k, v in losses.items() if "loss" in k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 and float(losses["pixel_accuracy"]) > 0.98 and mean_iou(model, data) >= 0.93:
            break
    assert mean_iou(model, data) >= 0.93
    assert time.thread_time() - start < 60
