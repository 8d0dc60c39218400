"""The classifier: preprocessing, losses, predictions, heads, gradient checkpointing, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from zoo.classification.data_sample import ClsDataSample
from zoo.classification.head import PooledHead
from zoo.classification.model import ClsPreprocessor, ImageClassifier
from zoo.registry import UnknownNameError


def _model(**arguments: Any) -> ImageClassifier:
    from toy_engine_parts import ToyBackbone

    torch.manual_seed(0)
    return ImageClassifier(**{"backbone": {"type": ToyBackbone, "dropout": 0.0}, "num_classes": 3, **arguments})


def _batch(count: int = 4, size: int = 8) -> tuple[torch.Tensor, list[ClsDataSample]]:
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images, [ClsDataSample().set_gt_label(i % 3) for i in range(count)]


# -- preprocessing ------------------------------------------------------------------------------------------------


def test_normalises_by_the_formula() -> None:
    images = [torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8) for _ in range(2)]
    out = ClsPreprocessor()({"inputs": images, "data_samples": [ClsDataSample(), ClsDataSample()]})
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = torch.stack([(i.double() - mean[:, None, None]) / std[:, None, None] for i in images])
    torch.testing.assert_close(out["inputs"].double(), expected, rtol=1e-5, atol=1e-6)
    assert len(out["data_samples"]) == 2
    swapped = ClsPreprocessor(bgr_input=True)({"inputs": [i.flip(0) for i in images]})
    assert torch.equal(swapped["inputs"], out["inputs"])
    assert swapped["data_samples"] is None
    plain = ClsPreprocessor(mean=None, std=None)({"inputs": torch.stack(images)})["inputs"]
    torch.testing.assert_close(plain, torch.stack(images).float() / 255)


def test_channels_last_and_errors() -> None:
    out = ClsPreprocessor(channels_last=True)({"inputs": torch.zeros(2, 3, 4, 5)})["inputs"]
    assert out.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"sizes \[\(3, 4, 4\), \(3, 4, 5\)\]"):
        ClsPreprocessor()({"inputs": [torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]})
    with pytest.raises(ValueError, match="std"):
        ClsPreprocessor(std=(1, 0, 1))
    assert not ClsPreprocessor().state_dict(), "normalisation is configuration, not weights"


# -- forward ------------------------------------------------------------------------------------------------------


def test_three_modes() -> None:
    model = _model().eval()
    images, samples = _batch()
    logits = model(images)
    assert torch.equal(logits, model.backbone(images))
    labels = torch.tensor([0, 1, 2, 0])
    loss = model(images, samples, mode="loss")["loss"]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))
    predictions = model(images, samples, mode="predict")
    for i, sample in enumerate(predictions):
        assert sample is samples[i]
        torch.testing.assert_close(sample.pred_score, logits[i].softmax(-1))
        assert sample.pred_label.item() == logits[i].argmax().item()
    assert len(model(images, None, mode="predict")) == 4
    with pytest.raises(ValueError, match="mode='train'"):
        model(images, samples, mode="train")


@pytest.mark.parametrize("label", [-1, 3])
def test_label_that_is_no_class_is_told(label: int) -> None:
    with pytest.raises(ValueError, match="the model has 3 classes"):
        _model()(_batch(1)[0], [ClsDataSample().set_gt_label(label)], mode="loss")


def test_mixing_is_for_training_only() -> None:
    model = _model(mixup={"mixup_alpha": 0.8, "label_smoothing": 0.1})
    images, samples = _batch()
    before = images.clone()
    model.eval()
    one = model(images, samples, mode="loss")["loss"]
    hot = nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3) * 0.9 + 0.1 / 3
    expected = -(hot * model(images).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(one, expected)
    model.train()
    assert model(images, samples, mode="loss")["loss"].requires_grad
    assert torch.equal(images, before)


def test_several_labels_an_image() -> None:
    model = _model(score="sigmoid", loss={"type": "binary_cross_entropy", "smoothing": 0.0}).eval()
    images, samples = _batch(2)
    samples[0].set_gt_label([0, 2])
    logits = model(images)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(model(images, samples, mode="loss")["loss"], expected)
    torch.testing.assert_close(model(images, samples, mode="predict")[1].pred_score, logits[1].sigmoid())
    with pytest.raises(ValueError, match="several labels"):
        _model()(images, samples, mode="loss")


# -- backbones and heads ------------------------------------------------------------------------------------------


def test_head_over_the_last_map() -> None:
    model = _model(head={"type": "pooled", "dropout": 0.5}).eval()
    images, _ = _batch()
    assert isinstance(model.head, PooledHead)
    last = model.backbone.forward_features(images)[-1]
    pooled = nn.functional.layer_norm(last.mean((2, 3)), (8,), model.head.norm.weight, model.head.norm.bias, 1e-6)
    torch.testing.assert_close(model(images), pooled @ model.head.fc.weight.T + model.head.fc.bias)
    model.train()
    model(images, _batch()[1], mode="loss")["loss"].backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_backbone_by_name_and_ready() -> None:
    from toy_engine_parts import ToyBackbone

    named = ImageClassifier("davit_nano", num_classes=5)
    assert named.backbone.num_classes == named.num_classes == 5
    ready = ToyBackbone(num_classes=4)
    assert ImageClassifier(ready).num_classes == 4
    assert ImageClassifier({"type": "davit_nano"}, num_classes=2)(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": None, "head": "pooled"}, "needs num_classes"),
        ({"backbone": {"type": "davit_nano", "num_classes": 7}}, "give num_classes once"),
        ({"backbone": {"type": "davit_nano", "num_classes": 0}, "num_classes": None}, "has no classifier"),
        ({"score": "raw"}, "score='raw'"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model(**arguments)


def test_unknown_backbone_has_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="davit_nano"):
        ImageClassifier("davit_nan0", num_classes=3)
    with pytest.raises(TypeError, match="did you mean mixup_alpha"):
        _model(mixup={"mixup_alfa": 1.0})


# -- memory and speed ---------------------------------------------------------------------------------------------


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    images, samples = _batch()
    grads, kept = [], []
    for checkpointing in (False, True):
        model = _model(grad_checkpointing=checkpointing).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = model(images, samples, mode="loss")["loss"]
        kept.append(sum(sizes))
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert kept[1] < kept[0]
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


def test_compiled_network_gives_the_same_under_the_same_names() -> None:
    images, samples = _batch()
    eager, compiled = _model().train(), _model().train()
    compiled.compile_network(backend="aot_eager")
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    losses = [m(images, samples, mode="loss")["loss"] for m in (eager, compiled)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")
