import pytest
import torch
import torch.nn.functional as F

from zoo.medical.dual_attention import ChannelAttention, FuseConvs, GuidedAttention, PositionAttention
from zoo.medical.ms_dual_guided import MSDualGuided, SemanticModule, guided_losses

SMALL = dict(stem=4, planes=(2, 3, 4, 4), layers=(1, 1, 1, 1), groups=1, base_width=64)


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def parameters(model, trained=False):
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = MSDualGuided(1, 3, 8, SMALL)
    for stack in net.stacks:  # they start without attention
        for layer in [*stack.position, *stack.channel]:
            layer[3].gamma.data.fill_(0.5)
    return net


def test_position_attention_is_the_papers_equation():
    layer = PositionAttention(16).double()
    layer.gamma.data.fill_(0.7)
    x = inputs(2, 16, 3, 5)
    q, k, v = (F.conv2d(x, c.weight, c.bias).flatten(2) for c in (layer.query_conv, layer.key_conv, layer.value_conv))
    energy = torch.einsum("bcn,bcm->bnm", q, k)
    weights = energy.exp() / energy.exp().sum(-1, keepdim=True)
    out = torch.einsum("bnm,bcm->bcn", weights, v).view_as(x)
    torch.testing.assert_close(layer(x), 0.7 * out + x)


def test_channel_attention_prefers_the_unlike():
    layer = ChannelAttention().double()
    layer.gamma.data.fill_(0.7)
    x = inputs(2, 6, 3, 5)
    flat = x.flatten(2)
    energy = torch.einsum("bcn,bdn->bcd", flat, flat)
    weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
    torch.testing.assert_close(layer(x), 0.7 * (weights @ flat).view_as(x) + x)
    assert (weights.diagonal(dim1=1, dim2=2) < 1 / 6).all()


def test_attention_starts_as_identity():
    x = inputs(1, 8, 4, 4)
    assert torch.equal(PositionAttention(8).double()(x), x)
    assert torch.equal(ChannelAttention().double()(x), x)
    assert GuidedAttention(8, False)[3].gamma.item() == 0
    with pytest.raises(ValueError, match="at least 8"):
        PositionAttention(7)


def test_softmax_of_fused_maps_is_over_channels():
    out = FuseConvs(6, 4, softmax=True)(inputs(2, 6, 5, 5, dtype=torch.float32))
    torch.testing.assert_close(out.sum(1), torch.ones(2, 5, 5))


def test_semantic_code_is_a_quarter_of_the_size():
    vector, decoded = SemanticModule(4)(inputs(2, 4, 10, 14, dtype=torch.float32))
    assert vector.shape == (2 * 16 * 2 * 3,)
    assert decoded.shape == (2, 4, 10, 14)


def test_published_sizes():
    with torch.device("meta"):
        whole = MSDualGuided(1, 5, keep_unused=True)
    assert parameters(whole) == 104511475
    assert parameters(whole, trained=True) == 103556063
    assert parameters(whole.backbone) == 86736064


def test_evaluation_is_the_mean_of_the_second_stack(model):
    x = inputs(1, 1, 32, 24, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(x)
        out = model.outputs(x)
    assert logits.shape == (1, 3, 32, 24)
    torch.testing.assert_close(logits, sum(out["logits"][4:]) / 4)
    assert {k: len(v) for k, v in out.items()} == {"logits": 8, "codes": 8, "inputs": 8, "decoded": 8}
    # the first half of what a scale shows the semantic modules is the scale, in both stacks
    torch.testing.assert_close(out["inputs"][1][:, :8], out["inputs"][5][:, :8])
    assert (out["inputs"][1][:, 8:] - out["inputs"][5][:, 8:]).abs().max() > 1e-4


def test_losses_and_gradients(model):
    target = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    out = model.train()(inputs(2, 1, 32, 32, dtype=torch.float32))
    found = guided_losses(out, target)
    ce = [-p.log_softmax(1).gather(1, target[:, None]).mean() for p in out["logits"]]
    guide = [(a - b).square().mean() for a, b in zip(out["codes"][:4], out["codes"][4:])]
    back = [(a - b).square().mean() for a, b in zip(out["inputs"], out["decoded"])]
    torch.testing.assert_close(found["ce"], torch.stack(ce))
    torch.testing.assert_close(found["semantic"], torch.stack(guide))
    torch.testing.assert_close(found["reconstruction"], torch.stack(back))
    torch.testing.assert_close(found["total"], sum(ce) + 0.25 * sum(guide) + 0.1 * sum(back))
    found["total"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_sizes_are_checked(model):
    with pytest.raises(ValueError, match=r"multiples of \(8, 8\)"):
        model(torch.zeros(1, 1, 32, 36))
