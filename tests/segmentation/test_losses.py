"""Losses of semantic segmentation against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from zoo.registry import UnknownNameError
from zoo.segmentation.losses import LOSSES, Boundary, CrossEntropy, Dice, Focal, Lovasz, SemanticCriterion

K, IGNORE = 4, 255


@pytest.fixture
def example():
    generator = torch.manual_seed(0)
    logits = torch.randn(2, K, 9, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, K, (2, 9, 7), generator=generator)
    labels[0, :3] = IGNORE
    return logits, labels


def flat(logits, labels):
    counted = labels != IGNORE
    return logits.movedim(1, -1)[counted], labels[counted]


def needs_boundary():
    monai = pytest.importorskip("monai.losses", reason="MONAI (extra medical)")
    if not hasattr(monai, "BoundaryLoss"):
        pytest.skip("MONAI before 1.6 has no boundary loss")


def test_cross_entropy(example):
    logits, labels = example
    torch.testing.assert_close(CrossEntropy(K)(logits, labels), F.cross_entropy(*flat(logits, labels)))
    weights = [0.5, 0.0, 2.0, 1.0]
    expected = F.cross_entropy(*flat(logits, labels), torch.tensor(weights, dtype=torch.float64))
    loss = CrossEntropy(K, class_weights=weights).double()(logits, labels)
    torch.testing.assert_close(loss, expected)
    expected = F.cross_entropy(*flat(logits, labels), label_smoothing=0.1)
    torch.testing.assert_close(CrossEntropy(K, label_smoothing=0.1)(logits, labels), expected)


def test_hard_examples(example):
    logits, labels = example
    each = F.cross_entropy(*flat(logits, labels), reduction="none").sort(descending=True).values
    probability = (-each).exp()
    torch.testing.assert_close(CrossEntropy(K, hard_min_kept=5)(logits, labels), each[:10].mean())
    below = probability < 0.3
    assert 10 < below.sum() < len(below)
    torch.testing.assert_close(CrossEntropy(K, hard_threshold=0.3)(logits, labels), each[below].mean())
    both = CrossEntropy(K, hard_threshold=0.3, hard_min_kept=5)(logits, labels)
    torch.testing.assert_close(both, each[below].mean())
    few = CrossEntropy(K, hard_threshold=1e-6, hard_min_kept=5)(logits, labels)
    torch.testing.assert_close(few, each[:10].mean())
    # more than there are: all that count
    torch.testing.assert_close(CrossEntropy(K, hard_min_kept=10**6)(logits, labels), each.mean())


def test_dice(example):
    logits, labels = example
    p, t = flat(logits, labels)
    p, t = p.softmax(1), F.one_hot(t, K).double()
    expected = (1 - 2 * (p * t).sum(0) / (p + t).sum(0)).mean()
    torch.testing.assert_close(Dice(K)(logits, labels), expected)


def test_focal(example):
    logits, labels = example
    x, t = flat(logits, labels)
    t = F.one_hot(t, K).double()
    p = torch.where(t == 1, x.sigmoid(), 1 - x.sigmoid())
    alpha = torch.where(t == 1, 0.25, 0.75)
    expected = (-alpha * (1 - p) ** 2 * p.log()).mean()
    torch.testing.assert_close(Focal(K, alpha=0.25)(logits, labels), expected)
    torch.testing.assert_close(Focal(K, gamma=1.0)(logits, labels), (-(1 - p) * p.log()).mean())


def lovasz(logits, labels):
    """Mean over classes of the Lovasz extension of the Jaccard loss, as a sum over sorted errors."""
    p, t = flat(logits.double(), labels)
    p = p.softmax(1)
    losses = []
    for c in t.unique().tolist():
        errors, order = (p[:, c] - (t == c).double()).abs().sort(descending=True)
        inside = (t == c)[order].double()
        before, total = torch.zeros((), dtype=p.dtype), torch.zeros((), dtype=p.dtype)
        for i in range(len(errors)):
            left = inside.sum() - inside[: i + 1].sum()
            jaccard = 1 - left / (inside.sum() + (1 - inside[: i + 1]).sum())
            total = total + errors[i] * (jaccard - before)
            before = jaccard
        losses.append(total)
    return torch.stack(losses).mean().float()


def test_lovasz(example):
    logits, labels = example[0].float(), example[1]
    torch.testing.assert_close(Lovasz(K)(logits, labels), lovasz(logits, labels), rtol=1e-5, atol=1e-6)
    labels[1] = IGNORE  # an image in which nothing counts is left out of the mean
    expected = lovasz(logits[:1], labels[:1])
    torch.testing.assert_close(Lovasz(K, per_image=True)(logits, labels), expected, rtol=1e-5, atol=1e-6)


def test_boundary():
    needs_boundary()
    labels = torch.zeros(1, 1, 8, dtype=torch.int64)
    labels[..., 3:] = 1
    # distances of class 1 along the row: outside 3, 2, 1, inside 0, -1, ...; of class 0 the other way
    one = torch.tensor([3.0, 2, 1, 0, -1, -2, -3, -4])
    zero = torch.tensor([-2.0, -1, 0, 1, 2, 3, 4, 5])
    logits = torch.randn(1, 2, 1, 8, generator=torch.manual_seed(0), requires_grad=True)
    p = logits.softmax(1)[0, :, 0]
    expected = (p[0] * zero + p[1] * one).mean() / 2
    torch.testing.assert_close(Boundary(2)(logits, labels), expected)
    labels[..., 7] = IGNORE
    loss = Boundary(2)(logits, labels)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad[..., 7].abs().sum() == 0
    assert grad[..., :7].abs().min() > 0


ALL = ["cross_entropy", "dice", "focal", "lovasz", "boundary"]


@pytest.fixture(params=ALL)
def name(request):
    """Of each loss that can be built here."""
    if request.param == "boundary":
        needs_boundary()
    return request.param


def test_the_registry_holds_these():
    assert set(LOSSES.names()) == set(ALL)


def test_nothing_counts(name):
    """All pixels are ignored: the loss is 0, and so is its gradient; not NaN."""
    logits = torch.randn(2, K, 5, 5, requires_grad=True)
    criterion = SemanticCriterion(K, name)
    losses = criterion({"logits": logits, "aux": [logits * 2]}, torch.full((2, 10, 10), IGNORE))
    assert set(losses) == {f"loss_{name}", f"aux0.loss_{name}", "pixel_accuracy"}
    total = losses[f"loss_{name}"] + losses[f"aux0.loss_{name}"]
    total.backward()
    assert float(total.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("options", [{}, {"per_image": True}])
def test_one_image_of_two_counts(name, options):
    if options and name != "lovasz":
        options = {}
    logits = torch.randn(2, K, 6, 6, requires_grad=True)
    labels = torch.randint(0, K, (2, 6, 6))
    labels[1] = IGNORE
    loss = SemanticCriterion(K, dict(type=name, **options))({"logits": logits}, labels)[f"loss_{name}"]
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0].abs().sum() > 0
    assert logits.grad[1].abs().sum() == 0


def test_losses_are_combined_and_weighted(example):
    logits, labels = example[0].float(), example[1]
    spec = ["cross_entropy", dict(type="dice", weight=3.0), dict(type=Focal, weight=0.5)]
    criterion = SemanticCriterion(K, spec, auxiliary_weight=[0.4, 0.1])
    small = logits[..., ::2, ::2]
    losses = criterion({"logits": logits, "aux": [small, logits]}, labels)
    assert {n: criterion.weight_of(n) for n in losses if "loss" in n} == {
        "loss_cross_entropy": 1.0,
        "loss_dice": 3.0,
        "loss_Focal": 0.5,
        "aux0.loss_cross_entropy": pytest.approx(0.4),
        "aux0.loss_dice": pytest.approx(1.2),
        "aux0.loss_Focal": pytest.approx(0.2),
        "aux1.loss_cross_entropy": pytest.approx(0.1),
        "aux1.loss_dice": pytest.approx(0.3),
        "aux1.loss_Focal": pytest.approx(0.05),
    }
    assert criterion.weight_of("pixel_accuracy") is None
    enlarged = F.interpolate(small, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(losses["aux0.loss_dice"], Dice(K)(enlarged, labels))
    counted = labels != IGNORE
    right = (logits.argmax(1) == labels)[counted].float().mean()
    torch.testing.assert_close(losses["pixel_accuracy"], right)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: SemanticCriterion(K, "dise"), UnknownNameError, "did you mean dice"),
        (lambda: SemanticCriterion(K, dict(type="dice", smoth=1)), TypeError, "smooth"),
        (lambda: SemanticCriterion(K, ["dice", "dice"]), ValueError, "twice"),
        (lambda: CrossEntropy(K, class_weights=[1, 2]), ValueError, "class_weights"),
        (lambda: CrossEntropy(K, hard_threshold=1.5), ValueError, "hard_threshold=1.5"),
        (lambda: CrossEntropy(K, hard_min_kept=0), ValueError, "hard_min_kept=0"),
        (
            lambda: SemanticCriterion(K)({"logits": torch.zeros(1, 3, 2, 2)}, torch.zeros(1, 2, 2).long()),
            ValueError,
            "4",
        ),
        (
            lambda: SemanticCriterion(K, auxiliary_weight=[1.0])(
                {"logits": torch.zeros(1, K, 2, 2)}, torch.zeros(1, 2, 2).long()
            ),
            ValueError,
            "0 auxiliary heads",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
