import pytest
import torch

from zoo.medical.guided_context_gating import (
    ContextGate,
    GlobalContext,
    GuidedContextClassifier,
    GuidedContextGating,
)


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_context_is_the_sum_over_places():
    layer = GlobalContext(8, 4, "tanh").double()
    x = inputs(2, 8, 3, 5)
    total = x.flatten(2).sum(-1)
    hidden = (total @ layer.squeeze.weight.flatten(1).T).clamp_min(0)
    change = (hidden @ layer.expand.weight.flatten(1).T).tanh()
    torch.testing.assert_close(layer(x), x + change[..., None, None])
    assert not layer.context.weight.requires_grad


def test_normalised_context_is_a_weighted_mean():
    layer = GlobalContext(8, 4, normalised_context=True).double()
    x = inputs(2, 8, 3, 5)
    scores = torch.einsum("c,bchw->bhw", layer.context.weight.flatten(), x).flatten(1)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    context = torch.einsum("bn,bcn->bc", weights, x.flatten(2))
    hidden = (context @ layer.squeeze.weight.flatten(1).T).clamp_min(0)
    change = hidden @ layer.expand.weight.flatten(1).T
    torch.testing.assert_close(layer(x), x + change[..., None, None])
    layer(x).sum().backward()
    assert layer.context.weight.grad.abs().max() > 0


def test_gate_normalises_over_channels():
    gate = ContextGate(6).double()
    for p in gate.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(p.numel()))
    x, g = inputs(2, 6, 4, 3), inputs(2, 6, 4, 3).flip(0)
    a, b = (v.movedim(1, -1) for v in (x, g))  # channels last, as the authors have them
    left = (a @ gate.W_x.weight.flatten(1).T + gate.W_x.bias).clamp_min(0)
    right = (b @ gate.W_g.weight.flatten(1).T + gate.W_g.bias).clamp_min(0)
    total = (left + right + gate.bias).clamp_min(0)
    total = total - total.mean(-1, keepdim=True)
    total = total / (total.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gate.norm.weight + gate.norm.bias
    scores = total @ gate.psi.weight.flatten() + gate.psi.bias + gate.psi_bias
    torch.testing.assert_close(gate(x, g), (a / (1 + (-scores).exp())[..., None]).movedim(-1, 1))


def test_gating_multiplies_the_map_without_its_context():
    layer = GuidedContextGating(8, 4).double()
    x = inputs(2, 8, 3, 5)
    context, gated = layer.maps(x)
    torch.testing.assert_close(context, layer.context(x))
    torch.testing.assert_close(gated, x * layer.gate.attention(x, context))
    torch.testing.assert_close(layer(x), gated.flatten(2).mean(-1))


def test_classifier_takes_any_backbone():
    torch.manual_seed(0)
    model = GuidedContextClassifier("davit_nano", 7, normalised_context=True)
    logits = model(inputs(3, 3, 32, 32, dtype=torch.float32))
    assert logits.shape == (3, 7)
    logits.square().mean().backward()
    assert [n for n, p in model.gating.named_parameters() if p.grad is None] == []
    assert model.head[0].in_features == model.backbone.out_channels[-1]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="reduction=9"):
        GlobalContext(8, 9)
    with pytest.raises(ValueError, match="activation='cubic'"):
        GlobalContext(8, 4, "cubic")
