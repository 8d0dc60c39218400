import itertools

import pytest
import torch
import torch.nn.functional as F

from zoo.medical.unet import UNet
from zoo.medical.wau import WindowAttentionUpsample, relative_index


def inputs(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layer_norm(norm, x):
    x = x - x.mean()
    return x / (x.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def by_hand(layer, lateral, coarse):
    """The equations place by place: y = U c + A(LN l, LN c), out = y + MLP(LN y)."""
    sizes, small = lateral.shape[2:], coarse.shape[2:]
    linear = "bilinear" if len(sizes) == 2 else "trilinear"
    residual = torch.einsum("oc,bc...->bo...", layer.residual.weight.flatten(1), coarse)
    residual = residual + layer.residual.bias.view(1, -1, *[1] * len(sizes))
    residual = F.interpolate(residual, size=sizes, mode=linear, align_corners=False)
    bias = layer.bias()
    heads = layer.num_heads
    out = torch.empty_like(residual)
    for b in range(lateral.shape[0]):
        for place in itertools.product(*map(range, sizes)):
            window = [p // w for p, w in zip(place, layer.window)]
            query = 0  # its number in the window, row by row
            for p, w in zip(place, layer.window):
                query = query * w + p % w
            ranges = [range(n * w, (n + 1) * w) for n, w in zip(window, layer.kv_window)]
            q = layer.q(layer_norm(layer.norm_q, lateral[(b, slice(None), *place)])).view(heads, -1)
            keys, values, offsets = [], [], []
            for number, key in enumerate(itertools.product(*ranges)):
                if all(k < n for k, n in zip(key, small)):  # what fills up a window is not seen
                    k, v = layer.kv(layer_norm(layer.norm_kv, coarse[(b, slice(None), *key)])).chunk(2)
                    keys.append(k.view(heads, -1))
                    values.append(v.view(heads, -1))
                    offsets.append(bias[:, query, number])
            logits = torch.einsum("hd,nhd->hn", q, torch.stack(keys)) / q.shape[1] ** 0.5 + torch.stack(offsets, 1)
            attended = torch.einsum("hn,nhd->hd", logits.softmax(1), torch.stack(values)).flatten()
            y = residual[(b, slice(None), *place)] + layer.proj(attended)
            if layer.mlp is not None:
                norm, up, _, down = layer.mlp
                hidden = up(layer_norm(norm, y))
                y = y + down(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
            out[(b, slice(None), *place)] = y
    return out


@pytest.mark.parametrize(
    "dims, sizes, window, stride, mlp",
    [
        (2, (8, 12), 2, 2, 2.0),
        (2, (7, 9), 3, 2, 0.0),
        (2, (5, 8), (2, 1), (1, 4), 0.0),
        (3, (4, 6, 4), 2, 2, 2.0),
        (3, (3, 5, 7), (2, 2, 3), (1, 2, 2), 0.0),
    ],
)
@torch.no_grad()
def test_block_is_its_equation(dims, sizes, window, stride, mlp):
    torch.manual_seed(0)
    layer = WindowAttentionUpsample(5, 6, 8, 2, window, stride, dims, mlp).double()
    for p in layer.parameters():
        p.add_(0.3 * torch.randn_like(p))
    lateral = inputs(2, 5, *sizes)
    coarse = inputs(2, 6, *(-(-n // s) for n, s in zip(sizes, layer.stride)), seed=2)
    torch.testing.assert_close(layer(lateral, coarse), by_hand(layer, lateral, coarse))


def test_distances_share_their_bias():
    index, entries = relative_index((2, 3), (2, 1))
    assert index.shape == (4 * 3, 2 * 3)
    seen = {}
    for (n, q), (m, k) in itertools.product(
        enumerate(itertools.product(range(4), range(3))), enumerate(itertools.product(range(2), range(3)))
    ):
        distance = (q[0] - 2 * k[0], q[1] - k[1])
        assert seen.setdefault(distance, int(index[n, m])) == int(index[n, m])
    assert sorted(seen.values()) == list(range(entries))  # each distance has an entry of its own, and all are used


def test_gradients_reach_both_maps():
    torch.manual_seed(0)
    for dims in (2, 3):
        layer = WindowAttentionUpsample(3, 3, 4, 2, 2, 2, dims).double()
        maps = inputs(1, 3, *(4, 3, 4)[:dims]).requires_grad_(), inputs(1, 3, *(2, 2, 2)[:dims]).requires_grad_()
        assert torch.autograd.gradcheck(layer, maps)
        layer(*maps).sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None] == []


def test_a_window_sees_nothing_beyond():
    layer = WindowAttentionUpsample(3, 3, 4, 2, 2, 2).double()
    lateral, coarse = inputs(1, 3, 8, 8), inputs(1, 3, 4, 4)
    moved = coarse.clone()
    moved[:, 0, 3, 3] += 5
    changed = (layer(lateral, coarse) - layer(lateral, moved)).abs().amax((0, 1)) > 1e-9
    assert changed[4:, 4:].all()
    # outside its window the residual alone carries it, one interpolated place far
    assert not changed[:4, :4].any()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"num_heads": 3}, "num_heads=3"),
        ({"window": 0}, "window=0"),
        ({"stride": (2, 2, 2)}, "stride"),
        ({"dims": 1}, "dims=1"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        WindowAttentionUpsample(4, 4, 8, **arguments)


def test_maps_that_do_not_belong_together_are_refused():
    layer = WindowAttentionUpsample(4, 4, 8)
    with pytest.raises(ValueError, match=r"the coarse one has to be 1/\(2, 2\)"):
        layer(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 5, 4))


@pytest.mark.parametrize("upsample", ["wau", "linear", "transposed", {"type": "wau", "window": 3, "num_heads": 2}])
@pytest.mark.parametrize("dims, sizes", [(2, (21, 18)), (3, (5, 12, 9))])
def test_unet_of_any_size(upsample, dims, sizes):
    torch.manual_seed(0)
    strides = None if dims == 2 else [(1, 2, 2), 2]
    model = UNet(2, 3, dims, (8, 12, 16), strides, upsample)
    out = model(inputs(1, 2, *sizes, dtype=torch.float32))
    assert out.shape == (1, 3, *sizes)
    out.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_unets_differ_in_their_upsampling_alone():
    torch.manual_seed(0)
    shapes = {}
    for upsample in ("wau", "linear", "transposed"):
        model = UNet(1, 2, 2, (8, 16), upsample=upsample, norm="batch")
        shapes[upsample] = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("up.")}
    assert shapes["wau"] == shapes["linear"] == shapes["transposed"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"upsample": "nearest"}, "upsample='nearest'"),
        ({"upsample": {"type": "linear", "window": 2}}, "takes no options"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"widths": (8,)}, "widths"),
        ({"strides": [2]}, "strides"),
    ],
)
def test_unets_name_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        UNet(**arguments)


def test_one_step_lowers_the_loss():
    torch.manual_seed(0)
    model = UNet(1, 2, 2, (8, 16, 16), upsample={"type": "wau", "num_heads": 2})
    x = inputs(2, 1, 16, 16, dtype=torch.float32)
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
