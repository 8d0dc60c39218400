import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.medical.acmil import GatedACMIL, QueryACMIL, acmil_losses, branch_similarity
from zoo.medical.aem import ABMIL, DSMIL, QueryMIL, aem_losses, bag_probabilities
from zoo.medical.mil import HIDDEN, FeatureProjection, attention_entropy, hide_top


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


HEADS = {
    "gated": lambda: GatedACMIL(12, 16, 3, 8, branches=2),
    "query": lambda: QueryACMIL(12, 16, 3, branches=2),
    "abmil": lambda: ABMIL(12, 16, 3, 8),
    "mha": lambda: QueryMIL(12, 16, 3),
    "dsmil": lambda: DSMIL(12, 16, 3),
    "dsmil nonlinear": lambda: DSMIL(12, 16, 3, nonlinear=True, values=True),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_says_what_it_looked_at(name):
    head = HEADS[name]().eval()
    bag = inputs(1, 21, 12, dtype=torch.float32)
    out = head(bag)
    assert out.logits.shape == (1, 3)
    assert out.scores.shape[-1] == 21
    # the order of the patches is of no importance
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    mixed = head(bag[:, order])
    torch.testing.assert_close(mixed.logits, out.logits)
    torch.testing.assert_close(mixed.scores, out.scores[..., order])
    total = out.logits.square().sum() + (0 if out.parts is None else out.parts.square().sum())
    total.backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []
    for wrong in (bag[0], bag.expand(2, -1, -1), bag[:, :0], bag[..., :5]):
        with pytest.raises(ValueError, match=r"accepted is \[1, N, 12\]"):
            head(wrong)


def test_gated_acmil_is_the_papers_equation():
    head = HEADS["gated"]().double().eval()
    bag = inputs(1, 9, 12)
    f = (bag[0] @ head.project.linear.weight.T).clamp_min(0)
    a = head.attention
    V, U = f @ a.V.weight.T + a.V.bias, f @ a.U.weight.T + a.U.bias
    scores = ((torch.tanh(V) / (1 + (-U).exp())) @ a.weights.weight.T + a.weights.bias).T  # [K, N]
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    out = head(bag)
    torch.testing.assert_close(out.scores[0], scores)
    parts = [w @ f @ b.weight.T + b.bias for w, b in zip(weights, head.branches)]
    torch.testing.assert_close(out.parts, torch.stack(parts))
    pooled = weights.mean(0) @ f
    torch.testing.assert_close(out.logits[0], head.head.weight @ pooled + head.head.bias)
    torch.testing.assert_close(head.pool(bag)[0], pooled)


def test_query_pooling_equals_torchs_attention():
    head = HEADS["mha"]().double().eval()
    head.query.data.normal_()
    p = head.attention
    theirs = nn.MultiheadAttention(16, 8, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.q_proj.weight, p.k_proj.weight, p.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([p.q_proj.bias, p.k_proj.bias, p.v_proj.bias]))
    theirs.out_proj.load_state_dict(p.out_proj.state_dict())
    bag = inputs(1, 9, 12)
    f = head.project(bag)
    pooled, weights = theirs(head.query, f, f, average_attn_weights=False)
    out = head(bag)
    torch.testing.assert_close(out.scores.softmax(-1), weights[0])
    torch.testing.assert_close(out.logits, head.head(p.norm(pooled[0])))


def test_query_acmil_weighs_the_bag_with_the_branches_mean():
    head = HEADS["query"]().double().eval()
    head.queries.data.normal_()
    bag = inputs(1, 9, 12)
    out = head(bag)
    f = head.project(bag)[0]
    weights = out.scores.softmax(-1).mean(1)  # [8, N]
    v = head.bag.v_proj(f).view(9, 8, 2)
    pooled = torch.einsum("hn,nhd->hd", weights, v).reshape(1, 16)
    torch.testing.assert_close(out.logits, head.head(head.bag.norm(head.bag.out_proj(pooled))))


def test_projection_adds_its_residual_pairs():
    layer = FeatureProjection(5, 6, 2).double()
    x = inputs(4, 5)
    y = (x @ layer.linear.weight.T).clamp_min(0)
    for a, _, b, _ in layer.residual:
        y = y + ((y @ a.weight.T).clamp_min(0) @ b.weight.T).clamp_min(0)
    torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("count, fraction, hidden", [(4, 1.0, 4), (5, 0.5, 2), (50, 1.0, 11), (4, 0.0, 0)])
def test_masking_hides_some_of_the_highest(count, fraction, hidden):
    torch.manual_seed(0)
    scores = inputs(3, 11)
    out = hide_top(scores, count, fraction)
    gone = out == HIDDEN
    assert gone.sum(1).tolist() == [hidden] * 3
    assert torch.equal(out[~gone], scores[~gone])
    top = scores.argsort(-1, descending=True)[:, : min(count, 11)]
    for row, allowed in zip(gone, top):
        assert set(row.nonzero().flatten().tolist()) <= set(allowed.tolist())


@pytest.mark.parametrize("name", ["gated", "query"])
def test_masking_is_for_training(name):
    torch.manual_seed(0)
    head = HEADS[name]()
    bag = inputs(1, 30, 12, dtype=torch.float32)
    assert (head.train()(bag).scores == HIDDEN).sum(-1).unique().tolist() == [6]
    assert not (head.eval()(bag).scores == HIDDEN).any()
    with pytest.raises(ValueError, match=r"mask_drop=1\.5"):
        GatedACMIL(mask_drop=1.5)


def test_acmil_losses_equal_loops():
    head = HEADS["query"]().double().eval()
    head.queries.data.normal_()
    label = torch.tensor([2])
    with torch.no_grad():
        out = head(inputs(1, 9, 12))
    found = acmil_losses(out, label)
    w = out.scores.softmax(-1)
    diff = sum(float(F.cosine_similarity(w[h, 0], w[h, 1], dim=0)) for h in range(8)) / 8
    sub = -sum(float(p.log_softmax(0)[2]) for p in out.parts) / 2
    slide = -float(out.logits[0].log_softmax(0)[2])
    assert float(found["diff"]) == pytest.approx(diff)
    assert float(found["sub"]) == pytest.approx(sub)
    assert float(found["slide"]) == pytest.approx(slide)
    assert float(found["total"]) == pytest.approx(diff + sub + slide)
    assert float(found["eval_div"]) == pytest.approx(float((w * w.log()).sum()) / 2)
    assert branch_similarity(out.scores[:, :1]) == 0
    with pytest.raises(ValueError, match=r"output\.parts is None"):
        acmil_losses(out._replace(parts=None), label)


def test_three_branches_have_three_pairs():
    scores = torch.tensor([[[9.0, -9, -9], [-9, 9, -9], [9, -9, -9]]])
    assert branch_similarity(scores).item() == pytest.approx(1 / 3, abs=1e-4)


def test_dsmil_compares_with_the_most_typical_patch():
    head = HEADS["dsmil"]().double()
    bag = inputs(1, 9, 12)
    out = head(bag)
    x = bag[0]
    parts = x @ head.patches.weight.T + head.patches.bias
    q = x @ head.query.weight.T + head.query.bias
    logits = head.head.bias.clone()
    for c in range(3):
        scores = q @ q[parts[:, c].argmax()] / 4
        torch.testing.assert_close(out.scores[c], scores)
        pooled = scores.softmax(0) @ x
        logits = logits + head.head.weight[:, c] @ pooled
    torch.testing.assert_close(out.logits[0], logits)
    torch.testing.assert_close(out.parts, parts)
    best = parts.amax(0)
    expected = 0.5 * best.softmax(0) + 0.5 * out.logits[0].softmax(0)
    torch.testing.assert_close(bag_probabilities(out)[0], expected)
    losses = aem_losses(out, torch.tensor([1]), 0.2)
    bag_loss = -0.5 * best.log_softmax(0)[1] - 0.5 * out.logits[0].log_softmax(0)[1]
    p = out.scores.softmax(-1)
    torch.testing.assert_close(losses["bag"], bag_loss)
    torch.testing.assert_close(losses["div"], (p * p.log()).sum() / 3)
    torch.testing.assert_close(losses["total"], bag_loss + 0.2 * losses["div"])


def test_entropy_is_least_where_attention_is_even():
    even = torch.zeros(1, 1, 8, dtype=torch.float64)
    assert attention_entropy(even).item() == pytest.approx(-math.log(8))
    assert attention_entropy(even, top_k=4).item() == pytest.approx(-math.log(4))
    assert attention_entropy(inputs(1, 1, 8)) > attention_entropy(even)


def test_aem_counts_heads_and_rows():
    out = HEADS["mha"]().double().eval()(inputs(1, 9, 12))
    losses = aem_losses(out, torch.tensor([0]), 0.5)
    p = out.scores.softmax(-1)
    torch.testing.assert_close(losses["div"], (p * p.log()).sum() / 8)
    torch.testing.assert_close(losses["eval_div"], losses["div"])
    assert torch.equal(bag_probabilities(out), out.logits.softmax(-1))
