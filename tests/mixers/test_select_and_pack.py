"""Select-and-pack attention in float64: its equations image by image, and the packed form."""

import pytest
import torch
from torch.nn import functional as F

from zoo.mixers.select_and_pack import SelectAndPackAttention


def make(**options):
    generator = torch.Generator().manual_seed(0)
    mixer = SelectAndPackAttention(12, 3, **options).double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return mixer, torch.randn(5, 4, 6, 12, generator=generator, dtype=torch.float64)


def one_by_one(mixer, x):
    """Each image: softmax attention between its selected tokens alone; the others by themselves."""
    outs = []
    for tokens in x.flatten(1, 2):
        score = (tokens @ mixer.gate.weight[0] + mixer.gate.bias).sigmoid()
        chosen = score > mixer.threshold
        q, k, v = mixer.qkv(tokens).chunk(3, -1)
        out = v.clone() if mixer.pass_unselected else torch.zeros_like(v)
        for h in range(mixer.num_heads):
            at = slice(h * 4, h * 4 + 4)
            weights = (mixer.scale * q[chosen, at] @ k[chosen, at].T).softmax(-1)
            out[chosen, at] = weights @ v[chosen, at]
        outs.append(mixer.proj(torch.where(chosen, score, 1 - score)[:, None] * out))
    return torch.stack(outs).view(x.shape)


@pytest.mark.parametrize("options", [{}, dict(pass_unselected=False), dict(threshold=0.8, qkv_bias=False)])
def test_equals_the_equations_and_the_packed_form(options):
    mixer, x = make(**options)
    with torch.no_grad():
        selected = mixer.select(x.flatten(1, 2))[0].sum(1)
        assert len(set(selected.tolist())) > 2  # another number in each image
        want = one_by_one(mixer, x)
        torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mixer.forward_packed(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias, count", [(-100.0, 0), (100.0, 24)])
def test_nothing_or_everything_selected(bias, count):
    mixer, x = make()
    with torch.no_grad():
        mixer.gate.bias.fill_(bias)
        assert mixer.select(x.flatten(1, 2))[0].sum(1).tolist() == [count] * 5
        want = one_by_one(mixer, x)
        torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mixer.forward_packed(x), want, rtol=1e-10, atol=1e-10)


def test_gate_learns_from_labels_and_without():
    mixer, x = make()
    labels = torch.zeros(5, 8, 12)
    labels[:, 0, 0] = 1.0  # one pixel of the first token is enough
    loss = mixer.selection_loss(x, labels)
    target = torch.zeros(5, 4, 6, dtype=torch.float64)
    target[:, 0, 0] = 1.0
    want = F.binary_cross_entropy((x @ mixer.gate.weight[0] + mixer.gate.bias).sigmoid(), target)
    torch.testing.assert_close(loss, want)
    assert torch.autograd.grad(loss, mixer.gate.weight)[0].abs().max() > 0
    assert torch.autograd.grad(mixer(x).square().sum(), mixer.gate.weight)[0].abs().max() > 0
    with pytest.raises(ValueError, match="labels"):
        mixer.selection_loss(x, labels[:2])


def test_gradient_is_that_of_the_function():
    mixer, x = make()
    x = x[:1, :2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: mixer(t).square().sum(), (x,))


def test_attention_map():
    mixer, x = make()
    maps = mixer.attention_map(x)
    selected = mixer.select(x.flatten(1, 2))[0]
    assert ((maps > 0).sum(-1) == torch.where(selected, selected.sum(1, keepdim=True), 1)[:, None]).all()
    zero, _ = make(pass_unselected=False)
    assert not zero.normalised_rows
    assert (zero.attention_map(x).sum(-1) > 0).eq(selected[:, None]).all()
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        SelectAndPackAttention(8, 2, threshold=1.5)
