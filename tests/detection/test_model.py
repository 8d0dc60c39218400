"""The detection model: losses and predictions of every family, unusual batches, and what goes wrong."""

import time

import pytest
import torch

from zoo.detection.data_sample import DetDataSample
from zoo.detection.deformable_transformer import DeformableEncoderLayer, encoder_reference_points
from zoo.detection.encoder_mixer import replace_encoder_mixer
from zoo.detection.matcher import HungarianMatcher
from zoo.detection.model import DetectionModel
from zoo.registry import MODELS

NANO = MODELS.names("*_nano", task="detection")
BOX = ((4.0, 5.0, 30.0, 40.0), 2)


@pytest.fixture(scope="module")
def models():
    """One model a name, built once."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = DetectionModel(name, 4)
        return made[name]

    return get


def losses_of(model, data):
    model.train()
    return model(**model.data_preprocessor(data, True), mode="loss")


def total(losses):
    return sum(v for k, v in losses.items() if "loss" in k)


@pytest.mark.parametrize("name", NANO)
def test_every_family_trains_and_predicts(name, models, batch):
    model = models(name)
    data = batch([(64, 80), (72, 64)], [[BOX, ((10, 10, 20, 20), 0)], [BOX]])
    losses = losses_of(model, data)
    loss = total(losses)
    assert torch.isfinite(loss)
    model.zero_grad()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    model.eval()
    with torch.no_grad():
        found = model(**model.data_preprocessor(data), mode="predict")
    for sample, (h, w) in zip(found, [(64, 80), (72, 64)]):
        pred = sample.pred_instances
        assert len(pred) > 0
        assert (pred.boxes >= 0).all()
        assert (pred.boxes <= torch.tensor([w, h, w, h])).all()
        assert (pred.scores.diff() <= 0).all()
        assert set(pred.labels.tolist()) <= set(range(4))


@pytest.mark.parametrize("name", NANO)
def test_an_image_without_boxes_and_a_batch_without_any(name, models, batch):
    model = models(name)
    for objects in ([[BOX], []], [[], []]):
        losses = losses_of(model, batch([(64, 64), (64, 64)], objects))
        assert torch.isfinite(total(losses))
        model.zero_grad()
        total(losses).backward()
        # every process of a distributed run reduces the same gradients, whatever its images hold
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", ["dino_nano", "detr_nano"])
def test_sizes_that_differ_much(name, models, batch):
    model = models(name)
    data = batch([(1, 1), (40, 300), (200, 20)], [[((0, 0, 1, 1), 0)], [BOX], []])
    if name == "dino_nano":
        data = batch([(33, 31), (40, 300), (200, 20)], [[((0, 0, 1, 1), 0)], [BOX], []])
    prepared = model.data_preprocessor(data)
    assert prepared["inputs"].shape == (3, 3, 200, 300)
    assert (~prepared["mask"]).sum((1, 2)).tolist() == [i.shape[1] * i.shape[2] for i in data["inputs"]]
    assert (prepared["inputs"][:, 0][prepared["mask"]] == 0).all()
    assert torch.isfinite(total(losses_of(model, data)))
    model.eval()
    with torch.no_grad():
        for sample in model(**prepared, mode="predict"):
            assert torch.isfinite(sample.pred_instances.boxes).all()


def test_an_image_alone_is_the_image_in_a_padded_batch(models, batch):
    model = models("deformable_detr_nano").eval()
    data = batch([(64, 96), (96, 64)], [[], []])
    with torch.no_grad():
        together = model(**model.data_preprocessor(data), mode="predict")[0].pred_instances
        alone = {k: v[:1] for k, v in data.items()}
        alone = model(**model.data_preprocessor(alone), mode="predict")[0].pred_instances
    # The padded backbone sees zeros where the lone one sees its border: scores agree closely, not exactly.
    assert torch.allclose(together.scores[:10], alone.scores[:10], atol=0.05)


def test_frozen_parts_stay(batch):
    resnet = dict(type="zoo.detection.resnet.ResNetBackbone", name="resnet18", out_indices=(3,), planes=(8, 8, 16, 16))
    model = DetectionModel(dict(type="detr_nano", backbone={**resnet, "stem": 8}), 4)
    before = {k: v.clone() for k, v in model.state_dict().items() if "bn1" in k or "conv1" in k}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    total(losses_of(model, batch([(64, 64)], [[BOX]]))).backward()
    optimizer.step()
    after = model.state_dict()
    frozen = tuple(f"detector.backbone.{part}" for part in ("bn1", "conv1", "layer1"))
    stem = [k for k in before if k.startswith(frozen)]
    assert stem
    assert all(torch.equal(before[k], after[k]) for k in stem)
    running = [k for k in before if "running" in k]
    assert all(torch.equal(before[k], after[k]) for k in running)


@pytest.mark.parametrize("name", ["deformable_detr_nano", "detr_nano", "dab_detr_nano", "dino_nano"])
def test_encoder_mixer_is_one_argument(name, batch):
    model = DetectionModel(dict(type=name, encoder_mixer="agent"), 4)
    plain = DetectionModel(name, 4)
    assert sum(p.numel() for p in model.parameters()) != sum(p.numel() for p in plain.parameters())
    loss = total(losses_of(model, batch([(64, 80), (48, 64)], [[BOX], []])))
    loss.backward()
    assert torch.isfinite(loss)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and "encoder" in n]


def test_any_backbone_is_one_argument(batch):
    for backbone in ("davit_nano", dict(type="davit_nano", out_indices=(1, 2))):
        detector = dict(type="deformable_detr_nano", backbone=backbone, network_options=dict(num_feature_levels=4))
        loss = total(losses_of(DetectionModel(detector, 4), batch([(64, 64)], [[BOX]])))
        assert torch.isfinite(loss)


def test_bfloat16(models, batch):
    model = models("dino_nano")
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch([(64, 64)], [[BOX]]))
    assert all(v.dtype == torch.float32 for k, v in losses.items() if "loss" in k)
    assert torch.isfinite(total(losses))


def test_nan_stops_with_images_and_losses(batch):
    model = DetectionModel("detr_nano", 4)
    data = batch([(64, 64), (64, 64)], [[BOX], [BOX]])
    with torch.no_grad():
        model.detector.network.class_embed.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"matching costs .* images 100 \(0\.png\), 101 \(1\.png\)"):
        losses_of(model, data)
    empty = batch([(64, 64)], [[]])
    with pytest.raises(FloatingPointError, match=r"loss_ce=nan.* images 100"):
        losses_of(model, empty)


def test_a_label_that_is_no_class(models, batch):
    with pytest.raises(ValueError, match=r"image 100 \(0.png\) has labels between 4 and 4, but the model has 4"):
        losses_of(models("detr_nano"), batch([(64, 64)], [[((1, 1, 5, 5), 4)]]))
    with pytest.raises(ValueError, match="accepted are 'loss'"):
        models("detr_nano")(torch.zeros(1, 3, 64, 64), mode="other")


def test_no_prediction_above_the_threshold(batch):
    model = DetectionModel("detr_nano", 4, score_threshold=0.999).eval()
    data = batch([(64, 64)], [[]])
    with torch.no_grad():
        (sample,) = model(**model.data_preprocessor(data), mode="predict")
    assert sample.pred_instances.boxes.shape == (0, 4)


def test_wrong_arguments_are_told():
    with pytest.raises(TypeError, match="did you mean"):
        DetectionModel(dict(type="detr_nano", bakbone="davit_nano"), 4)
    with pytest.raises(ValueError, match="no encoder layer"):
        replace_encoder_mixer(torch.nn.Linear(2, 2), "agent")
    with pytest.raises(ValueError, match="2 boxes have 1 labels"):
        DetDataSample().set_gt([[0, 0, 1, 1], [0, 0, 2, 2]], [1])


def test_matching_is_under_two_percent_of_a_step():
    """300 queries and 100 targets: all seven matchings of an image, against six encoder layers at 800 x 800 pixels.

    The layers are a part of a training step of the published detectors, so that the share of the whole is smaller.
    """
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "pred_logits": torch.randn(1, 300, 91, generator=generator),
        "pred_boxes": torch.rand(1, 300, 4, generator=generator) * 0.5 + 0.2,
    }
    boxes = torch.rand(100, 4, generator=generator) * 0.5 + 0.2
    targets = [{"labels": torch.randint(0, 91, (100,), generator=generator), "boxes": boxes}]
    matcher = HungarianMatcher()
    assert len(matcher(outputs, targets)[0][0]) == 100
    started = time.process_time()
    for _ in range(7):
        matcher(outputs, targets)
    matching = time.process_time() - started

    shapes = [(100, 100), (50, 50), (25, 25), (13, 13)]
    layer = DeformableEncoderLayer(256, 1024)
    tokens = torch.randn(1, sum(h * w for h, w in shapes), 256, generator=generator, requires_grad=True)
    points = encoder_reference_points(shapes, torch.ones(1, 4, 2))
    started = time.process_time()
    layer(tokens, tokens, points, shapes, None).sum().backward()
    assert matching < 0.02 * 6 * (time.process_time() - started)
