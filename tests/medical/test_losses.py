import pytest
import torch
import torch.nn.functional as F

from zoo.medical import losses


def case(classes=3, sizes=(4, 5)):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *sizes, generator=g, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, *sizes), generator=g)
    return logits, labels


@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 2)])
def test_soft_dice_counts_class_by_class(sizes):
    logits, labels = case(sizes=sizes)
    p = logits.softmax(1)
    scores = []
    for b in range(2):
        for c in range(3):
            t = (labels[b] == c).double()
            inter = float((p[b, c] * t).sum())
            scores.append(2 * (inter + 0.01) / (float(p[b, c].sum() + t.sum()) + 0.01))
    expected = 1 - sum(scores) / len(scores)
    assert float(losses.soft_dice_loss(logits, labels)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.soft_dice_loss(logits, labels[:, None])) == pytest.approx(expected, rel=1e-12)


def test_voxel_cross_entropy_is_the_mean_over_voxels():
    logits, labels = case()
    picked = logits.log_softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(losses.voxel_cross_entropy(logits, labels[:, None]), -picked.mean())
    with pytest.raises(ValueError, match="target has shape"):
        losses.voxel_cross_entropy(logits, labels[..., :2])


def test_overlap_losses_equal_sums_by_hand():
    logits, labels = case()
    p, t = logits.sigmoid(), F.one_hot(labels, 3).movedim(-1, 1).double()
    inter, squares = float((p * t).sum()), float((p * p).sum() + (t * t).sum())
    assert float(losses.squared_dice_loss(p, t)) == pytest.approx(3 * (1 - (2 * inter + 1) / (squares + 1)))
    jaccard = tversky = 0.0
    for c in range(3):
        a, b = p[:, c], t[:, c]
        i = float((a * b).sum())
        jaccard += 1 - (i + 1) / (float((a * a).sum() + (b * b).sum()) - i + 1)
        missed, wrong = float(b.sum()) - i, float(a.sum()) - i
        tversky += (1 - (i + 1) / (i + 0.7 * missed + 0.3 * wrong + 1)) ** 0.75
    assert float(losses.jaccard_loss(p, t)) == pytest.approx(jaccard)
    assert float(losses.focal_tversky_loss(p, t)) == pytest.approx(tversky)
    with pytest.raises(ValueError, match="target has shape"):
        losses.jaccard_loss(p, t[:, :1])


def test_a_perfect_prediction_has_a_finite_gradient():
    t = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]], dtype=torch.float64)
    p = t.clone().requires_grad_()
    loss = losses.focal_tversky_loss(p, t)
    loss.backward()
    assert float(loss.detach()) < 1e-8
    assert p.grad.isfinite().all()


def test_deep_supervision_takes_every_kth_voxel():
    target = torch.arange(64.0, dtype=torch.float64).view(1, 1, 8, 8)
    small, large = torch.zeros(1, 1, 2, 4, dtype=torch.float64), torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mean, each = losses.deep_supervision_loss(F.l1_loss, [small, large], target)
    # rows 0 and 4, columns 0, 2, 4, 6
    picked = [r * 8 + c for r in (0, 4) for c in (0, 2, 4, 6)]
    assert [float(e) for e in each] == pytest.approx([sum(picked) / 8, sum(abs(v - 1) for v in range(64)) / 64])
    assert float(mean) == pytest.approx(sum(float(e) for e in each) / 2)
    with pytest.raises(ValueError, match="has to divide"):
        losses.deep_supervision_loss(F.l1_loss, [torch.zeros(1, 1, 3, 8)], target)
