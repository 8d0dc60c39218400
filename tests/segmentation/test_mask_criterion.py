"""Losses and matching of mask classification: transformers' values on the same predictions and points."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from zoo.segmentation.mask_criterion import MaskCriterion
from zoo.segmentation.mask_matcher import MaskMatcher, pairwise_cross_entropy, pairwise_dice, pairwise_focal
from zoo.segmentation.maskformer import MaskFormer
from zoo.segmentation.point_sampling import RandomPoints, sample_at, uncertain_points

CLASSES, QUERIES, LAYERS = 4, 9, 3
NAMES = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


class FixedPoints(RandomPoints):
    """The same points whenever as many are wanted."""

    def __call__(self, rows, points, device):
        generator = torch.Generator().manual_seed(points)
        return torch.empty(1, points, 2).uniform_(generator=generator).expand(rows, -1, -1).contiguous()


def fixed_rand(*size, device=None):
    return FixedPoints()(size[0], size[1], device)


@pytest.fixture
def predictions():
    g = torch.Generator().manual_seed(0)
    layers = [
        {
            "class_logits": torch.randn(3, QUERIES, CLASSES + 1, generator=g).requires_grad_(),
            "mask_logits": torch.randn(3, QUERIES, 12, 15, generator=g).mul(3).requires_grad_(),
        }
        for _ in range(LAYERS)
    ]
    targets = [
        {
            "labels": torch.randint(CLASSES, (n,), generator=g),
            "masks": torch.rand(n, 40, 52, generator=g) < 0.4,
        }
        for n in (3, 1, 12)  # more objects than queries in the last
    ]
    return {**layers[0], "aux_outputs": layers[1:]}, targets


def compare(ours, theirs, outputs):
    """Equal losses of all layers and equal gradients of their sum."""
    assert len(ours) == 3 * LAYERS == len(theirs)
    leaves = [t for layer in [outputs, *outputs["aux_outputs"]] for t in (layer["class_logits"], layer["mask_logits"])]
    for name, value in ours.items():
        kind, _, number = name.partition("_")[2].partition("_")
        expected = theirs[NAMES[f"loss_{kind}"] + (f"_{number}" if number else "")]
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert float(value.detach()) > 0
    found = torch.autograd.grad(sum(ours.values()), leaves)
    expected = torch.autograd.grad(sum(theirs.values()), leaves)
    for a, b in zip(found, expected):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
        assert b.abs().max() > 0


def test_mask2former_losses_are_transformers(predictions, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mask2former import modeling_mask2former as theirs

    outputs, targets = predictions
    config = transformers.Mask2FormerConfig(num_labels=CLASSES, train_num_points=300)
    peer = theirs.Mask2FormerLoss(config, {})
    criterion = MaskCriterion(CLASSES, num_points=300, matcher=dict(num_points=300))
    criterion.draw = criterion.matcher.draw = FixedPoints()
    monkeypatch.setattr(theirs.torch, "rand", fixed_rand)
    aux = [
        {"masks_queries_logits": x["mask_logits"], "class_queries_logits": x["class_logits"]}
        for x in outputs["aux_outputs"]
    ]
    expected = peer(
        outputs["mask_logits"],
        outputs["class_logits"],
        [t["masks"].float() for t in targets],
        [t["labels"] for t in targets],
        aux,
    )
    monkeypatch.undo()
    compare(criterion(outputs, targets), expected, outputs)


def test_maskformer_losses_are_transformers(predictions):
    pytest.importorskip("transformers")
    from transformers.models.maskformer import modeling_maskformer as theirs

    outputs, targets = predictions
    matcher = theirs.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    peer = theirs.MaskFormerLoss(CLASSES, matcher, {}, 0.1)
    spec = {k: v for k, v in MaskFormer.default_criterion.items() if k != "type"}
    aux = [
        {"masks_queries_logits": x["mask_logits"], "class_queries_logits": x["class_logits"]}
        for x in outputs["aux_outputs"]
    ]
    expected = peer(
        outputs["mask_logits"],
        outputs["class_logits"],
        [t["masks"].float() for t in targets],
        [t["labels"] for t in targets],
        aux,
    )
    compare(MaskCriterion(CLASSES, **spec)(outputs, targets), expected, outputs)


def test_matching_is_the_cheapest_of_all(predictions):
    outputs, targets = predictions
    matcher = MaskMatcher(num_points=200)
    matcher.draw = FixedPoints()
    (pairs,) = matcher([outputs], targets[:2])
    for i, t in enumerate(targets[:2]):
        cost = matcher.cost(outputs["class_logits"][i], outputs["mask_logits"][i], t["labels"], t["masks"])
        n = len(t["labels"])
        least = min(
            sum(float(cost[q, j]) for j, q in enumerate(chosen)) for chosen in itertools.permutations(range(QUERIES), n)
        )
        queries, found = pairs[i]
        assert sorted(found.tolist()) == list(range(n))
        assert sum(float(cost[q, j]) for q, j in zip(queries, found)) == pytest.approx(least, rel=1e-5)


def test_pairwise_costs_by_their_definition():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, generator=g, dtype=torch.float64) * 4
    t = torch.rand(2, 20, generator=g, dtype=torch.float64)
    for q, j in itertools.product(range(3), range(2)):
        bce = F.binary_cross_entropy_with_logits(x[q], t[j])
        p = x[q].sigmoid()
        focal = (t[j] * -0.25 * (1 - p) ** 2 * p.log() + (1 - t[j]) * -0.75 * p**2 * (1 - p).log()).mean()
        dice = 1 - (2 * (p * t[j]).sum() + 1) / (p.sum() + t[j].sum() + 1)
        assert torch.allclose(pairwise_cross_entropy(x, t)[q, j], bce, rtol=1e-10)
        assert torch.allclose(pairwise_focal(x, t)[q, j], focal, rtol=1e-10)
        assert torch.allclose(pairwise_dice(x, t)[q, j], dice, rtol=1e-10)


def test_images_without_objects(predictions):
    outputs, targets = predictions
    empty = [{"labels": t["labels"][:0], "masks": t["masks"][:0]} for t in targets]
    criterion = MaskCriterion(CLASSES, num_points=50, matcher=dict(num_points=50))
    losses = criterion(outputs, empty)
    assert float(losses["loss_mask"]) == float(losses["loss_dice"]) == 0
    assert float(losses["loss_ce"]) > 0
    sum(losses.values()).backward()
    assert outputs["mask_logits"].grad.abs().max() == 0
    mixed = criterion(outputs, [*targets[:1], *empty[1:]])
    assert float(mixed["loss_mask"]) > 0


def test_points_follow_their_generator(predictions):
    outputs, targets = predictions

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        own = MaskCriterion(CLASSES, num_points=40, matcher=dict(num_points=40), generator=generator)
        return {k: float(v) for k, v in own(outputs, targets).items()}

    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert run(3) == run(3)
    assert run(3) != run(4)
    assert torch.equal(torch.get_rng_state(), state)  # PyTorch's own numbers are left alone


def test_predictions_that_are_no_numbers_are_named(predictions):
    outputs, targets = predictions
    bad = {k: v for k, v in outputs.items() if k != "aux_outputs"}
    bad["mask_logits"] = bad["mask_logits"].detach().clone()
    bad["mask_logits"][1, 0, 0] = float("nan")
    criterion = MaskCriterion(CLASSES, num_points=40, matcher=dict(num_points=40))
    with pytest.raises(FloatingPointError, match="image 1"):
        criterion(bad, targets)


def test_uncertain_points_lie_where_masks_are_unsure():
    ramp = torch.linspace(-8, 8, 64).expand(2, 64, 64)  # a mask whose edge is the column in the middle
    draw = RandomPoints(torch.Generator().manual_seed(0))
    points = uncertain_points(ramp, 400, oversample=3, importance=0.75, draw=draw)
    assert points.shape == (2, 400, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    distance = (points[..., 0] - 0.5).abs()
    # A quarter of the candidates has at most 0.125; logits also fall towards 0 within half a pixel of the border.
    assert distance[:, :300].quantile(0.97) < 0.14
    assert distance[:, 300:].quantile(0.97) > 0.4
    assert uncertain_points(ramp, 10, importance=1.0).shape == (2, 10, 2)


def test_sampling_is_bilinear():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    centres = torch.tensor([[[0.125, 1 / 6], [0.875, 5 / 6], [0.25, 0.5]]])  # pixels (0, 0), (2, 3), between columns
    assert torch.allclose(sample_at(maps, centres), torch.tensor([[[0.0, 11.0, 4.5]]]), atol=1e-5)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="mask_loss='dice'"):
        MaskCriterion(3, mask_loss="dice")
    with pytest.raises(ValueError, match="importance=2"):
        MaskCriterion(3, importance=2)
    with pytest.raises(ValueError, match="num_points=0"):
        MaskMatcher(num_points=0)
    with pytest.raises(ValueError, match="all 0"):
        MaskMatcher(0, 0, 0)
