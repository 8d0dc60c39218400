"""The loss over ticks against its definition, and the classifier that uses it."""

import math

import pytest
import torch

from zoo.backbones.ctm import ctm_nano
from zoo.classification.data_sample import ClsDataSample
from zoo.classification.ticks import TickClassifier, TickLoss, at_tick, certainty


def definition(predictions: torch.Tensor, targets: torch.Tensor, most_certain: bool) -> torch.Tensor:
    total = 0.0
    for logits, target in zip(predictions, targets):
        losses, entropies = [], []
        for tick in logits.T:
            p = tick.exp() / tick.exp().sum()
            losses.append(-p[target].log())
            entropies.append(-(p * p.log()).sum() / math.log(len(p)))
        chosen = entropies.index(min(entropies)) if most_certain else -1
        total = total + (min(losses) + losses[chosen]) / 2
    return total / len(predictions)


@pytest.mark.parametrize("most_certain", [True, False])
def test_equals_the_definition(most_certain):
    torch.manual_seed(0)
    predictions = torch.randn(7, 5, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(5, (7,))
    loss = TickLoss(most_certain)(predictions, targets)
    expected = definition(predictions, targets, most_certain)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, predictions)[0] for x in (loss, expected)))


def test_soft_targets_and_one_tick():
    torch.manual_seed(0)
    predictions, targets = torch.randn(3, 4, 5), torch.randint(4, (3,))
    hot = torch.nn.functional.one_hot(targets, 4).float()
    torch.testing.assert_close(TickLoss()(predictions, hot), TickLoss()(predictions, targets))
    one = predictions[..., 0]
    torch.testing.assert_close(TickLoss()(one, targets), torch.nn.functional.cross_entropy(one, targets))
    with pytest.raises(ValueError, match=r"\[B, C, T\]"):
        TickLoss()(predictions[..., None], targets)


def test_certainty_of_a_tick():
    predictions = torch.stack([torch.zeros(2, 4), torch.eye(4)[:2] * 50], dim=-1)  # [2, 4, 2]
    torch.testing.assert_close(certainty(predictions), torch.tensor([[0.0, 1.0]] * 2), atol=1e-5, rtol=0)
    assert torch.equal(at_tick(predictions, torch.tensor([1, 0]))[0], predictions[0, :, 1])


def samples(n: int) -> list[ClsDataSample]:
    out = []
    for i in range(n):
        sample = ClsDataSample()
        sample.set_gt_label(i % 3)
        out.append(sample)
    return out


def test_classifier_trains_on_all_ticks_and_predicts_one():
    torch.manual_seed(0)
    model = TickClassifier(dict(type=ctm_nano), num_classes=3)
    x = torch.randn(4, 3, 32, 32)
    model.train()
    assert model(x, mode="tensor").shape == (4, 3, 8)
    loss = model(x, samples(4), mode="loss")["loss"]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert model(x, mode="tensor").shape == (4, 3)
        predicted = model(x, samples(4), mode="predict")
        logits = model.backbone(x)
    assert [int(s.pred_label) for s in predicted] == logits.argmax(1).tolist()


def test_other_backbones_are_refused():
    with pytest.raises(TypeError, match="think"):
        TickClassifier(dict(type="vit_nano"), num_classes=3)
