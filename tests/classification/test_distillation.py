"""Losses of distillation and of attention against their formulas; the model that trains by them."""

import pytest
import torch
from torch.nn import functional as F

from zoo.backbones.deit_lt import DistilledViT
from zoo.backbones.moh import MoHTransNeXt
from zoo.backbones.tap_fan import TapFan
from zoo.classification.auxiliary import AttentionDiversificationLoss, LoadBalanceLoss, MatchingLoss
from zoo.classification.data_sample import ClsDataSample
from zoo.classification.distillation import DistillationLoss, DistilledClassifier, effective_number_weights
from zoo.classification.model import ImageClassifier

STUDENT = dict(type=DistilledViT, img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
TEACHER = dict(type="vit_nano", input_size=16, dim=16, depth=1, num_heads=2)
COUNTS = [50, 10, 2]


def samples(labels=(0, 2)):
    found = []
    for label in labels:
        sample = ClsDataSample()
        sample.set_gt_label(label)
        found.append(sample)
    return found


def drawn():
    generator = torch.Generator().manual_seed(0)
    logits, dist, teacher = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    targets = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    return logits, dist, targets / targets.sum(1, keepdim=True), teacher


def test_weights_by_effective_number():
    weights = effective_number_weights(COUNTS, beta=0.9)
    plain = torch.tensor([0.1 / (1 - 0.9**n) for n in COUNTS])
    torch.testing.assert_close(weights, plain / plain.sum() * 3)
    assert float(effective_number_weights(COUNTS, beta=0.0).std()) == 0
    for bad in (dict(beta=1.0), dict(class_counts=[3, 0])):
        with pytest.raises(ValueError, match=next(iter(bad))):
            effective_number_weights(**{"class_counts": COUNTS, **bad})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
def test_distillation_loss(kind, weighted):
    logits, dist, targets, teacher = drawn()
    loss = DistillationLoss(kind, alpha=0.3, tau=2.0, weighted=weighted, weighted_base=weighted)
    loss.set_class_counts(COUNTS)
    w = loss.class_weights.double() if weighted else torch.ones(3, dtype=torch.float64)
    total, base, second = loss(logits, dist, targets, teacher)

    def soft_target(x):
        return -(targets * w * x.log_softmax(1)).sum(1).mean()

    if kind == "hard":
        chosen = teacher.argmax(1)
        expected = (w[chosen] * -dist.log_softmax(1)[range(4), chosen]).sum() / w[chosen].sum()
    elif kind == "soft":
        log_teacher = (teacher / 2).log_softmax(1) * w
        log_teacher = log_teacher / log_teacher.sum(1, keepdim=True) if weighted else log_teacher
        expected = (log_teacher.exp() * (log_teacher - (dist / 2).log_softmax(1))).sum() * 4 / 12
    else:
        expected = soft_target(dist)
    torch.testing.assert_close(base, 0.7 * soft_target(logits))
    torch.testing.assert_close(second, 0.3 * expected)
    torch.testing.assert_close(total, base + second)


def test_distillation_loss_refuses():
    logits, dist, targets, _ = drawn()
    with pytest.raises(ValueError, match="teacher_logits"):
        DistillationLoss("hard")(logits, dist, targets)
    with pytest.raises(ValueError, match="set_class_counts"):
        DistillationLoss("none", weighted=True)(logits, dist, targets)
    for bad in (dict(kind="mild"), dict(alpha=1.5), dict(tau=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DistillationLoss(**bad)


def test_classifier_distils_from_a_frozen_teacher():
    torch.manual_seed(0)
    model = DistilledClassifier(STUDENT, num_classes=3, teacher=TEACHER, distillation=dict(kind="hard", alpha=0.5))
    model.train()
    assert not model.teacher.training
    x = torch.randn(2, 3, 16, 16)
    losses = model(x, samples(), mode="loss")
    logits, dist = model.backbone.forward_both(x)
    torch.testing.assert_close(losses["loss_cls"], 0.5 * F.cross_entropy(logits, torch.tensor([0, 2])))
    torch.testing.assert_close(losses["loss_dist"], 0.5 * F.cross_entropy(dist, model.teacher(x).argmax(1)))
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.backbone.parameters())
    scores = model.eval()(x, samples(), mode="predict")[0].pred_score
    torch.testing.assert_close(scores, ((logits + dist) / 2).softmax(-1)[0])
    mixed = DistilledClassifier(STUDENT, 3, teacher=TEACHER, mixup=dict(mixup_alpha=0.5)).train()
    assert all(v.isfinite() for v in mixed(x, samples(), mode="loss").values())
    with pytest.raises(ValueError, match="kind 'none'"):
        DistilledClassifier(STUDENT, 3, distillation=dict(kind="none"), teacher=TEACHER)
    with pytest.raises(TypeError, match="distillation token"):
        DistilledClassifier("vit_nano", 3, teacher=TEACHER)


def test_teacher_weights_are_loaded(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source = DistilledClassifier(STUDENT, 3, teacher=TEACHER).teacher
    save_file(source.state_dict(), tmp_path / "teacher.safetensors")
    torch.manual_seed(2)
    model = DistilledClassifier(STUDENT, 3, teacher=TEACHER, teacher_weights=str(tmp_path / "teacher.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), source.parameters(), strict=True))


@pytest.mark.parametrize("batch", [1, 3])
def test_attention_diversification(batch):
    torch.manual_seed(0)
    layers = [torch.randn(batch, heads, 7, 7, dtype=torch.float32).mul(2).softmax(-1) for heads in (2, 3)]
    total = 0.0
    for attention in layers:
        cosines = []
        for image in attention.mean(1):
            mean = image.mean(0)
            mean = mean * (mean > 0.9 / 7)
            cosines += [torch.cosine_similarity(mean, row * (row > 0.9 / 7), dim=0) for row in image]
        total += torch.stack(cosines).mean()
    torch.testing.assert_close(AttentionDiversificationLoss(0.9, weight=3)(layers), 3 * total / 2)
    with pytest.raises(ValueError, match="threshold=-1"):
        AttentionDiversificationLoss(-1)
    for loss in (AttentionDiversificationLoss(), LoadBalanceLoss(), MatchingLoss()):
        with pytest.raises(ValueError, match="empty"):
            loss([])


def test_auxiliary_losses_in_a_classifier():
    torch.manual_seed(0)
    fan = dict(type=TapFan, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    x = torch.randn(2, 3, 16, 16)
    model = ImageClassifier(fan, num_classes=3, auxiliary=[dict(type=AttentionDiversificationLoss, threshold=0.5)])
    losses = model.train()(x, samples(), mode="loss")
    assert set(losses) == {"loss", "loss_attention"}
    assert 0 < losses["loss_attention"] <= 1
    losses["loss_attention"].backward()
    assert model.backbone.blocks[0].attn.q.weight.grad.abs().max() > 0
    moh = dict(type=MoHTransNeXt, img_size=32, embed_dims=(8,) * 4, num_heads=(4,) * 4, depths=(1,) * 4, mlp_ratios=2)
    moh |= dict(shared_head=(4, 1, 1, 0), routed_head=(0, 2, 2, 2))
    model = ImageClassifier(moh, num_classes=3, auxiliary=["load_balance"])
    losses = model.train()(torch.randn(2, 3, 32, 32), samples(), mode="loss")
    assert 0.005 < losses["loss_balance"] < 0.05  # about 0.01 * 1 for balanced heads times their share
    losses["loss_balance"].backward()
    assert model.backbone.stages[1][0].attn.gates.routed_gate.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="records no 'attention'"):
        ImageClassifier("vit_nano", 3, auxiliary=["attention_diversification"])
    with pytest.raises(ValueError, match="grad_checkpointing"):
        ImageClassifier(fan, 3, auxiliary=["attention_diversification"], grad_checkpointing=True)


def test_lora_in_a_classifier():
    pytest.importorskip("peft")
    model = ImageClassifier("vit_nano", num_classes=3, lora=dict(r=2, targets=["qkv"]))
    trained = {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad and "lora" in n}
    assert trained == {"lora_A", "lora_B"}
    others = {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n}
    assert others == {"backbone.head.weight", "backbone.head.bias", "backbone.norm.weight", "backbone.norm.bias"}
