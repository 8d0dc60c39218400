import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.medical.attention_unet import AttentionUNet, GridAttentionUNet
from zoo.medical.grid_attention import GridGate, ScoreGate, normalise_scores
from zoo.medical.sononet import AGSononet

WIDTHS = (2, 4, 8, 16, 32)


def shaken(model):
    """A model in evaluation whose statistics and weights are away from where they started."""
    g = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=g, dtype=value.dtype)
            value += 0.3 * noise if "running_var" in name else 0.2 * (noise - 0.5)
    return model.eval()


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def batch_norm(norm, x):
    """The normalisation of evaluation by hand."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def pointwise(conv, x):
    out = torch.einsum("oc,bc...->bo...", conv.weight.flatten(1), x)
    return out if conv.bias is None else out + conv.bias.view(1, -1, *[1] * (x.dim() - 2))


@pytest.mark.parametrize("dims, mode", [(2, "sigmoid"), (3, "softplus"), (2, "softmax")])
def test_gate_is_the_papers_equation(dims, mode):
    gate = shaken(GridGate(6, 5, 4, dims, mode, stride=2).double())
    x, g = inputs(2, 6, *(5, 8, 6)[:dims]), inputs(2, 5, *(2, 2, 3)[:dims])
    out, attention = gate(x, g)
    # theta with kernel and stride 2 is a product of weights with the patches of x; the odd row is lost
    cut = x[:, :, :4]
    for axis in range(2, 2 + dims):
        cut = cut.unfold(axis, 2, 2)
    letters = "xyz"[:dims]
    theta = torch.einsum(f"oc{letters},bc{'hwd'[:dims]}{letters}->bo{'hwd'[:dims]}", gate.theta.weight, cut)
    linear = "bilinear" if dims == 2 else "trilinear"
    phi = F.interpolate(pointwise(gate.phi, g), size=theta.shape[2:], mode=linear, align_corners=False)
    total = theta + phi
    scores = pointwise(gate.psi, F.softplus(total) if mode == "softplus" else total.clamp_min(0))
    a = scores.flatten(1).softmax(1).view_as(scores) if mode == "softmax" else 1 / (1 + (-scores).exp())
    a = F.interpolate(a, size=x.shape[2:], mode=linear, align_corners=False)
    torch.testing.assert_close(attention, a)
    torch.testing.assert_close(out, batch_norm(gate.W[1], pointwise(gate.W[0], a * x)))


def test_scores_are_normalised_image_by_image():
    scores = torch.tensor([[1.0, 2.0, 5.0], [4.0, 4.0, 8.0]], dtype=torch.float64).view(2, 1, 1, 3)
    expected = {
        "mean": [[1 / 8, 2 / 8, 5 / 8], [0.25, 0.25, 0.5]],
        "mean_flow": [[0, 1 / 5, 4 / 5], [0, 0, 1]],
        "range_normalise": [[0, 1 / 4, 1], [0, 0, 1]],
        "softmax": scores.flatten(1).softmax(1).tolist(),
        "sigmoid": scores.flatten(1).sigmoid().tolist(),
    }
    for mode, values in expected.items():
        want = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(normalise_scores(scores, mode).flatten(1), want)


def test_score_gate_without_output_is_a_product():
    gate = shaken(ScoreGate(6, 5, 4, 2, "range_normalise", output=False).double())
    x, g = inputs(2, 6, 7, 5), inputs(2, 5, 3, 2)
    out, attention = gate(x, g)
    torch.testing.assert_close(out, x * attention)
    assert (attention.amin().item(), attention.amax().item()) == (0, 1)
    assert not any(k.startswith("W") for k in gate.state_dict())


def test_score_gate_starts_where_the_authors_start_it():
    assert ScoreGate(6, 5, mode="sigmoid").psi.bias.item() == 3
    assert ScoreGate(6, 5, mode="softmax").psi.bias.item() == 10


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: GridGate(4, 4, mode="sigmoidal"), "mode='sigmoidal'"),
        (lambda: GridGate(4, 4, dims=4), "dims=4"),
        (lambda: GridGate(4, 4, stride=(2, 2)), "stride"),
        (lambda: ScoreGate(4, 6, 4, phi=False), "phi=False"),
        (lambda: ScoreGate(4, 6, 3, psi=False), "psi=False"),
        (lambda: AttentionUNet(widths=(2, 4)), "widths"),
        (lambda: AttentionUNet(gates=-1), "gates=-1"),
        (lambda: AGSononet(aggregation="max"), "aggregation='max'"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("gates, count", [(2, 6473322), (1, 6214151), (0, 5888004)])
def test_published_sizes(gates, count):
    with torch.device("meta"):
        assert parameters(AttentionUNet(1, 4, 3, gates=gates)) == count


def test_published_sizes_of_the_others():
    with torch.device("meta"):
        assert parameters(GridAttentionUNet(1, 4, 3)) == 2221815
        assert parameters(AGSononet(1, 14, aggregation="mean")) == 177068


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("gates", [0, 1, 2])
def test_unet_reaches_all_parameters(dims, gates):
    model = AttentionUNet(2, 3, dims, WIDTHS, gates)
    x = inputs(2, 2, *(16, 32, 16)[:dims], dtype=torch.float32)
    logits, attention = model(x, return_attention=True)
    assert logits.shape == (2, 3, *x.shape[2:])
    assert [a.shape[1] for a in attention] == [gates] * 3 * bool(gates)
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_deep_supervision_joins_all_levels():
    model = shaken(AttentionUNet(1, 2, 2, WIDTHS))
    maps = {}
    for i, up in enumerate(model.up):
        up.register_forward_hook(lambda _, __, out, i=i: maps.__setitem__(i, out))
    logits = model(inputs(1, 1, 32, 16, dtype=torch.float32))
    heads = [pointwise(model.heads[0], maps[0])]
    heads += [
        F.interpolate(pointwise(model.heads[i][0], maps[i]), scale_factor=2**i, mode="bilinear") for i in (1, 2, 3)
    ]
    torch.testing.assert_close(logits, pointwise(model.final, torch.cat(heads, 1)))


def test_grid_network_works_on_slices():
    model = shaken(GridAttentionUNet(1, 2, 3, WIDTHS, stride=(2, 2, 1)))
    x = inputs(1, 1, 16, 32, 3, dtype=torch.float32)
    changed = x.clone()
    changed[..., 1] += 1
    difference = (model(x) - model(changed)).abs().amax((0, 1, 2, 3))
    assert difference[1] > 1e-4
    assert difference[[0, 2]].max() < 1e-6


@pytest.mark.parametrize("transposed", [False, True])
def test_grid_network_in_two_dimensions(transposed):
    model = GridAttentionUNet(3, 2, 2, WIDTHS, transposed=transposed, norm=False)
    logits, attention = model(inputs(1, 3, 32, 16, dtype=torch.float32), return_attention=True)
    assert logits.shape == (1, 2, 32, 16)
    assert [a.shape[2:] for a in attention] == [(16, 8), (8, 4), (4, 2)]


def test_sizes_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match=r"multiples of \(16, 16, 16\)"):
        AttentionUNet(1, 2, 3, WIDTHS)(torch.zeros(1, 1, 16, 16, 24))
    with pytest.raises(ValueError, match=r"\[B, 1\] and 3 sizes"):
        GridAttentionUNet(1, 2, 3, WIDTHS)(torch.zeros(1, 2, 16, 16, 3))
    GridAttentionUNet(1, 2, 3, WIDTHS, stride=(2, 2, 1)).eval()(torch.zeros(1, 1, 16, 16, 5))


@pytest.mark.parametrize("aggregation", ["concat", "mean", "deep_sup", "ft"])
def test_sononet_aggregates_sums_and_a_mean(aggregation):
    model = shaken(AGSononet(1, 5, (2, 4, 6, 8), aggregation=aggregation))
    maps = {}
    for name, module in (("g3", model.gates[0]), ("g4", model.gates[1]), ("s5", model.stages[4])):
        module.register_forward_hook(lambda _, __, out, name=name: maps.__setitem__(name, out))
    out = model(inputs(2, 1, 32, 48, dtype=torch.float32))
    vectors = [maps["g3"][0].flatten(2).sum(-1), maps["g4"][0].flatten(2).sum(-1), maps["s5"].flatten(2).mean(-1)]
    single = [v @ c.weight.T + c.bias for v, c in zip(vectors, model.classifiers)]
    if aggregation == "mean":
        expected = single
    else:
        joined = torch.cat(single if aggregation == "ft" else vectors, 1)
        logits = joined @ model.classifier.weight.T + model.classifier.bias
        expected = [logits, *single] if aggregation == "deep_sup" else logits
    torch.testing.assert_close(out, expected)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="16 x 16"):
        AGSononet()(torch.zeros(1, 1, 12, 32))
    assert isinstance(AGSononet(norm=False).stages[0][0][1], nn.ReLU)
