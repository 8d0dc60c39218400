"""The model: targets, losses, predictions, and the faults it names."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.engine.optim import parameter_groups
from zoo.segmentation.data_sample import SegDataSample, boxes_of_masks
from zoo.segmentation.geometry import ImageSize, restore_labels, restore_map
from zoo.segmentation.losses import CrossEntropy
from zoo.segmentation.model import SegmentationModel, inference_settings
from zoo.segmentation.targets import mask_targets, semantic_targets

K = 3


class Pixels(nn.Module):
    """A semantic network of one convolution, with an auxiliary head."""

    num_classes = K

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, 2, 1)

    def forward(self, images):
        logits = self.conv(images)
        return {"logits": logits, "aux": [logits * 2]} if self.training else {"logits": logits}


def sample(labels=None, name="a.png", size=None, original=None, **fields):
    size = tuple(size or labels.shape)
    made = SegDataSample(metainfo=dict(img_id=7, img_path=name, img_shape=size, ori_shape=original or size))
    if labels is not None:
        made.set_sem_seg(labels)
    return made


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SegmentationModel(Pixels(), data_preprocessor=dict(mean=(0, 0, 0), std=(1, 1, 1)))


def test_losses(model):
    labels = torch.randint(0, K, (2, 8, 8), dtype=torch.uint8)
    labels[:, 0] = 255
    images = torch.randn(2, 3, 8, 8)
    losses = model(images, [sample(x) for x in labels], mode="loss")
    logits = F.interpolate(model.segmenter.conv(images), size=(8, 8), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(logits, labels.long(), ignore_index=255)
    torch.testing.assert_close(losses["loss_cross_entropy"], expected)
    aux = 0.4 * F.cross_entropy(logits * 2, labels.long(), ignore_index=255)
    torch.testing.assert_close(losses["aux0.loss_cross_entropy"], aux)
    assert [k for k in losses if "loss" not in k] == ["pixel_accuracy"]


def test_padding_does_not_count(model):
    """Images of two sizes in one batch; the labels in the padding are ignored."""
    images = [torch.randint(0, 255, (3, *s), dtype=torch.uint8) for s in ((8, 12), (6, 16))]
    samples = [sample(torch.randint(0, K, i.shape[1:])) for i in images]
    data = model.data_preprocessor({"inputs": images, "data_samples": samples}, True)
    assert set(data) == {"inputs", "data_samples"}
    assert data["inputs"].shape == (2, 3, 8, 16)
    targets = model.targets(samples, (8, 16), torch.device("cpu"))
    assert targets.shape == (2, 8, 16)
    assert (targets[0, :, 12:] == 255).all()
    assert (targets[1, 6:] == 255).all()
    torch.testing.assert_close(targets[1, :6], samples[1].gt_sem_seg)
    assert all(v.isfinite() for v in model(**data, mode="loss").values())


def test_predictions_have_the_original_size(model):
    images = torch.randn(1, 3, 8, 16)
    (found,) = model(images, [sample(size=(8, 12), original=(20, 31))], mode="predict")
    logits = model.segmenter.conv(images)
    whole = F.interpolate(logits, size=(8, 16), mode="bilinear", align_corners=False)[..., :12]
    expected = F.interpolate(whole, size=(20, 31), mode="bilinear", align_corners=False).argmax(1)[0]
    torch.testing.assert_close(found.pred_sem_seg, expected)
    assert found.pred_sem_seg.dtype == torch.int64
    (bare,) = model(images, mode="predict")
    assert bare.pred_sem_seg.shape == (8, 16)


@pytest.mark.parametrize("chunk", [1, 3, 16, 100])
def test_labels_class_by_class(chunk):
    logits = torch.randn(37, 5, 7)
    logits[20] = logits[4]  # of equal ones the first
    size = ImageSize((16, 24), (15, 20), (31, 29))
    labels = restore_labels(logits, size, chunk)
    torch.testing.assert_close(labels, restore_map(logits, size).argmax(0))
    assert not (labels == 20).any()


def test_an_image_of_one_pixel():
    model = SegmentationModel("upernet_davit_nano").eval()
    image = torch.randint(0, 255, (3, 1, 1), dtype=torch.uint8)
    data = model.data_preprocessor({"inputs": [image], "data_samples": [sample(size=(1, 1))]})
    with torch.no_grad():
        (found,) = model(**data, mode="predict")
    assert found.pred_sem_seg.shape == (1, 1)
    assert 0 <= int(found.pred_sem_seg) < 6


def test_a_batch_in_which_nothing_counts(model):
    losses = model(torch.randn(2, 3, 8, 8), [sample(torch.full((8, 8), 255))] * 2, mode="loss")
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_labels_that_are_no_classes_are_named(model):
    good, bad = sample(torch.zeros(8, 8, dtype=torch.uint8)), sample(torch.zeros(8, 8, dtype=torch.uint8), "b.png")
    bad.gt_sem_seg[2, 3], bad.gt_sem_seg[0, 0] = 150, 3
    message = r"image 7 \(b.png\) has the labels \[3, 150\], but the model has 3 classes \(0 to 2\) and ignores 255"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 3, 8, 8), [good, bad], mode="loss")
    bad.gt_sem_seg = bad.gt_sem_seg.long() - 1
    with pytest.raises(ValueError, match=r"b.png.*\[-1, 149\]"):
        model(torch.zeros(2, 3, 8, 8), [good, bad], mode="loss")


def test_a_mask_of_another_size_than_its_image(model):
    wrong = sample(torch.zeros(8, 6, dtype=torch.uint8), size=(8, 8))
    with pytest.raises(ValueError, match=re.escape("image 7 (a.png) of (8, 8) has masks of (8, 6)")):
        model(torch.zeros(1, 3, 8, 8), [wrong], mode="loss")
    large = sample(torch.zeros(9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="larger than the batch"):
        model(torch.zeros(1, 3, 8, 8), [large], mode="loss")


def test_a_sample_without_labels(model):
    with pytest.raises(ValueError, match="a.png.*has no gt_sem_seg"):
        model(torch.zeros(1, 3, 8, 8), [sample(size=(8, 8))], mode="loss")
    with pytest.raises(ValueError, match="needs data_samples"):
        model(torch.zeros(1, 3, 8, 8), mode="loss")
    with pytest.raises(ValueError, match="mode='train'"):
        model(torch.zeros(1, 3, 8, 8), mode="train")


def test_a_loss_that_is_no_number(model):
    model.segmenter.conv.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"loss_cross_entropy=nan.*a\.png"):
        model(torch.zeros(1, 3, 8, 8), [sample(torch.zeros(8, 8).long())], mode="loss")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_of_semantic_labels(dtype):
    labels = torch.tensor([[0, 0, 255], [2, 2, 255]], dtype=dtype)
    (target,) = mask_targets([sample(labels)], (3, 4), K, 255, "cpu")
    assert target["labels"].tolist() == [0, 2]
    assert target["masks"].shape == (2, 3, 4)
    assert target["masks"][0].nonzero().tolist() == [[0, 0], [0, 1]]
    assert target["masks"][1].nonzero().tolist() == [[1, 0], [1, 1]]


def test_masks_of_panoptic_segments_and_instances():
    ids = torch.tensor([[1, 1, 0], [5, 5, 9]])
    segments = [dict(id=1, label=0, is_thing=False), dict(id=5, label=2, is_thing=True)]
    both = sample(size=(2, 3)).set_panoptic(ids, [*segments, dict(id=9, label=2, is_thing=True, is_crowd=True)])
    both.set_instances(torch.tensor([[[1, 0, 0], [0, 0, 0]]]), [1])
    (target,) = mask_targets([both], (2, 3), K, 255, "cpu")
    assert target["labels"].tolist() == [0, 2]
    assert target["masks"].flatten(1).int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    (target,) = mask_targets([both], (2, 3), K, 255, "cpu", source="instances")
    assert target["labels"].tolist() == [1]
    with pytest.raises(ValueError, match="no gt_sem_seg"):
        mask_targets([both], (2, 3), K, 255, "cpu", source="sem_seg")
    with pytest.raises(ValueError, match="source='boxes'"):
        mask_targets([both], (2, 3), K, 255, "cpu", source="boxes")
    with pytest.raises(ValueError, match="labels between 0 and 2.*2 classes"):
        mask_targets([both], (2, 3), 2, 255, "cpu")


def test_samples_check_what_they_are_given():
    empty = sample(size=(2, 2)).set_instances(torch.zeros(0, 2, 2), [])
    assert empty.gt_instances.boxes.shape == (0, 4)
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    assert boxes_of_masks(masks).tolist() == [[2, 1, 5, 3], [0, 0, 0, 0]]
    found = sample(size=(2, 2)).set_pred(
        instances=dict(labels=torch.tensor([1, 2]), scores=torch.tensor([0.2, 0.9]), masks=torch.ones(2, 2, 2).bool())
    )
    assert found.pred_instances.labels.tolist() == [2, 1]
    for make, message in (
        (lambda s: s.set_sem_seg(torch.zeros(2, 2)), "float32"),
        (lambda s: s.set_sem_seg(torch.zeros(2, 2, 3).long()), r"\(2, 2, 3\)"),
        (lambda s: s.set_instances(torch.zeros(2, 2), [0]), r"\(2, 2\)"),
        (lambda s: s.set_instances(torch.zeros(1, 2, 2), [0, 1]), "1 masks, 2 labels"),
        (lambda s: s.set_panoptic(torch.zeros(2, 2).long(), [dict(id=1)]), "label"),
        (lambda s: s.set_panoptic(torch.zeros(2, 2).long(), [dict(id=1, label=0)] * 2), "different numbers"),
        (lambda s: s.set_panoptic(torch.zeros(2, 2).long(), [dict(id=0, label=0)]), "0 is void"),
    ):
        with pytest.raises(ValueError, match=message):
            make(sample(size=(2, 2)))


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(num_classes=4), ValueError, "num_classes=4, but the segmenter has 3"),
        (dict(ignore_index=2), ValueError, "ignore_index=2 is one of the 3 classes"),
        (dict(criterion=dict(type=CrossEntropy)), ValueError, "take loss="),
        (dict(mask_source="boxes"), ValueError, "mask_source='boxes'"),
        (dict(test_cfg=dict(mode="slide")), ValueError, "needs crop"),
        (dict(test_cfg=dict(mode="tile")), ValueError, "mode='tile'"),
        (dict(test_cfg=dict(crop=3)), ValueError, "only mode='slide'"),
        (dict(test_cfg=dict(mode="slide", crop=4, stride=5)), ValueError, "left out"),
        (dict(data_preprocessor=dict(std=(0, 1, 1))), ValueError, "std"),
    ],
)
def test_arguments_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SegmentationModel(Pixels(), **options)


def test_settings_of_windows():
    assert inference_settings("slide", crop=512) == {"mode": "slide", "crop": (512, 512), "stride": (341, 341)}
    assert inference_settings() == {"mode": "whole"}


def test_an_ignored_value_that_is_not_255():
    labels = semantic_targets([sample(torch.tensor([[0, 65535]]))], (1, 3), K, 65535, "cpu")
    assert labels.tolist() == [[[0, 65535, 65535]]]


def test_parameter_groups_and_half_precision():
    model = SegmentationModel("upernet_davit_nano", num_classes=K)
    groups = parameter_groups(model, 1e-3, 0.05, layer_decay=0.5, custom_keys={"head": dict(lr_mult=10)})
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(model.segmenter.head.classifier.weight)] == pytest.approx(1e-2)
    assert rates[id(model.segmenter.backbone.stem.conv.weight)] < 1e-3
    samples = [sample(torch.randint(0, K, (64, 64))) for _ in range(2)]
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, copy.deepcopy(samples), mode="loss")
    assert losses["loss_cross_entropy"].dtype == torch.float32
    sum(v for k, v in losses.items() if "loss" in k).backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []


@pytest.mark.parametrize("original", [(12, 20), (9, 13)])
def test_overlapping_windows(original):
    """A network that sees one pixel gives the same labels by windows as for the whole image."""
    network = Pixels()
    network.conv = nn.Conv2d(3, K, 1)
    network.eval()
    images = torch.randn(1, 3, 16, 24)
    size = dict(size=(12, 20), original=original)
    whole, slide = (
        SegmentationModel(network, test_cfg=cfg)(images, [sample(**size)], mode="predict")[0].pred_sem_seg
        for cfg in (None, dict(mode="slide", crop=8, stride=5))
    )
    assert slide.shape == original
    torch.testing.assert_close(slide, whole)
