import pytest
import torch
import torch.nn.functional as F

from zoo.medical.additive_gate_unet import AdditiveGate, AdditiveGateUNet
from zoo.medical.deep_supervised_unet import DeepSupervisedUNet, StridedGate


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def unit(sequential, x):
    """Convolution and normalisation of evaluation by hand; the convolution has one tap."""
    conv, norm = sequential
    y = torch.einsum("oc,bc...->bo...", conv.weight.flatten(1), x).movedim(1, -1) + conv.bias
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return y.movedim(-1, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_additive_gate_is_the_papers_equation(dims):
    gate = AdditiveGate(5, 4, 3, dims).double()
    for part in (gate.W_g, gate.W_x, gate.psi):
        part[1].running_mean.normal_()
        part[1].running_var.uniform_(0.5, 2)
    gate.eval()
    g, x = inputs(2, 5, *(3, 4, 2)[:dims]), inputs(2, 4, *(3, 4, 2)[:dims])
    attention = unit(gate.psi, (unit(gate.W_g, g) + unit(gate.W_x, x)).clamp_min(0)).sigmoid()
    torch.testing.assert_close(gate(g, x), x * attention)


@pytest.mark.parametrize("leaky", [True, False])
def test_strided_gate_is_the_papers_equation(leaky):
    gate = StridedGate(6, 5, leaky).double().eval()
    if leaky:
        gate.act.weight.data.uniform_(-1, 1)
    x, g = inputs(2, 6, 8, 6), inputs(2, 5, 4, 3)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, 4, 3, 2, 2]
    theta = torch.einsum("ocij,bchwij->bohw", gate.theta.weight, patches) + gate.theta.bias[:, None, None]
    total = theta + F.conv2d(g, gate.phi.weight, gate.phi.bias)
    slope = gate.act.weight.view(1, -1, 1, 1) if leaky else 0.0
    scores = F.conv2d(total.clamp_min(0) + slope * total.clamp_max(0), gate.psi.weight, gate.psi.bias)
    larger = F.interpolate(1 / (1 + (-scores).exp()), size=(8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(gate(x, g), unit(gate.W, larger * x))


def test_published_sizes():
    with torch.device("meta"):
        assert parameters(DeepSupervisedUNet()) == 8155591
        assert parameters(AdditiveGateUNet()) == 103887981


@pytest.mark.parametrize("dims", [2, 3])
def test_gated_unet_in_both_dimensions(dims):
    model = AdditiveGateUNet(2, 3, dims, (2, 4, 6, 8, 10))
    out = model(inputs(2, 2, *(16, 32, 16)[:dims], dtype=torch.float32))
    assert out.shape == (2, 3, *(16, 32, 16)[:dims])
    out.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with pytest.raises(ValueError, match="multiples of"):
        model(torch.zeros(1, 2, *(16, 24, 16)[:dims]))


def test_gates_decide_what_comes_across():
    model = AdditiveGateUNet(1, 1, 2, (8, 8, 8, 8, 8)).eval()
    for gate in model.gates:  # a closed gate
        gate.psi[1].bias.data.fill_(-50)
    seen = {}
    model.decoder[0].register_forward_pre_hook(lambda _, args: seen.__setitem__("joined", args[0]))
    model(inputs(1, 1, 16, 16, dtype=torch.float32))
    assert seen["joined"][:, :8].abs().max() < 1e-6
    assert seen["joined"][:, 8:].abs().max() > 1e-3


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
def test_four_predictions_from_coarse_to_fine(activation):
    model = DeepSupervisedUNet(1, 3, (4, 8, 12, 16, 20), activation=activation)
    found = model(inputs(2, 1, 32, 48, dtype=torch.float32))
    assert [tuple(p.shape) for p in found] == [(2, 3, 32 // k, 48 // k) for k in (8, 4, 2, 1)]
    if activation == "softmax":
        for p in found:
            torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    elif activation == "sigmoid":
        assert all(p.min() > 0 and p.max() < 1 for p in found)
    else:
        assert any(p.min() < 0 for p in found)
    sum(p.square().mean() for p in found).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_the_image_enters_at_every_scale():
    model = DeepSupervisedUNet(1, 1, (4, 8, 12, 16, 20)).eval()
    x = inputs(1, 1, 32, 32, dtype=torch.float32)
    seen = []
    for scale in model.scales:
        scale.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    for k, small in zip((2, 4, 8), seen):
        torch.testing.assert_close(small, x.unfold(2, k, k).unfold(3, k, k).mean((-1, -2)))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"activation": "relu"}, "activation='relu'"),
        ({"widths": (4, 8)}, "five even"),
        ({"widths": (3, 8, 8, 8, 8)}, "five even"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        DeepSupervisedUNet(**arguments)
    with pytest.raises(ValueError, match="widths"):
        AdditiveGateUNet(widths=(1, 2))
