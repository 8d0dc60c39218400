"""Context broadcasting alone, as a mixer and in the hosts, against the paper's equations in float64."""

import pytest
import torch

from zoo.backbones.hosts import HostBlock, Pyramid, ViT
from zoo.layers.context_broadcast import ContextBroadcast
from zoo.mixers.context_broadcast import ContextBroadcastMixer
from zoo.mixers.window import WindowAttention

C = 8


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Of ``[N, C]``: (x_i + sum_j x_j / N) / 2, or x_i + scale * sum_j x_j / N."""
    mean = sum(x[j] for j in range(len(x))) / len(x)
    return torch.stack([(t + mean) / 2 if scale is None else t + scale * mean for t in x])


@pytest.mark.parametrize("mode", ["cb", "cb_s"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_adds_the_mean_of_all_tokens(mode, prefix):
    layer = ContextBroadcast(C, mode).double()
    if mode == "cb_s":
        torch.nn.init.normal_(layer.scale)
    x, p = tokens(2, 3, 4, C), tokens(2, prefix, C, seed=1)
    got = layer(x, p) if prefix else (layer(x), p)
    for b in range(2):
        want = expected(torch.cat([p[b], x[b].flatten(0, 1)]), layer.scale)
        torch.testing.assert_close(got[0][b].flatten(0, 1), want[prefix:])
        if prefix:
            torch.testing.assert_close(got[1][b], want[:prefix])


@pytest.mark.parametrize("mode", ["cb", "cb_s"])
def test_wraps_any_mixer(mode):
    m = ContextBroadcastMixer(C, 2, mixer=dict(type="window", window_size=4), mode=mode, input_size=(6, 5)).double()
    assert isinstance(m.mixer, WindowAttention)
    assert (m.growth, m.takes_prefix) == ("linear", False)
    x = tokens(1, 6, 5, C)
    want = expected(m.mixer(x).flatten(0, 2), m.broadcast.scale)
    torch.testing.assert_close(m(x).flatten(0, 2), want)
    torch.testing.assert_close(m.attention_map(x), m.mixer.attention_map(x))
    assert m.flops(6, 5) == m.mixer.flops(6, 5) + 2 * 30 * C


@pytest.mark.parametrize("prefix", [False, True])
def test_host_block_broadcasts_at_the_end_of_the_mlp(prefix):
    torch.manual_seed(0)
    block = HostBlock(C, 2, "softmax", (3, 4), prefix=prefix, context_broadcast="cb").double().eval()
    plain = HostBlock(C, 2, "softmax", (3, 4), prefix=prefix).double().eval()
    plain.load_state_dict(block.state_dict())
    x, p = tokens(1, 3, 4, C), tokens(1, 1, C, seed=1)
    before = []
    plain.norm2.register_forward_pre_hook(lambda _, args: before.append(args[0].reshape(-1, C)))
    if prefix:
        plain(x, p)
        middle = torch.cat([before[1], before[0]])  # the token first
        got = torch.cat([t.reshape(-1, C) for t in block(x, p)[::-1]])
    else:
        plain(x)
        middle, got = before[0], block(x).reshape(-1, C)
    torch.testing.assert_close(got, middle + expected(plain.mlp(plain.norm2(middle)), None))


@pytest.mark.parametrize("mode, added", [("cb", 0), ("cb_s", 1)])
def test_hosts_take_it_by_config(mode, added):
    for make, blocks in (
        (
            lambda **k: ViT(
                num_classes=3, input_size=32, patch_size=8, dim=C, depth=2, num_heads=2, class_token=True, **k
            ),
            2,
        ),
        (
            lambda **k: Pyramid(num_classes=3, depths=(1,) * 4, dims=(C,) * 4, num_heads=(2,) * 4, mixer="window", **k),
            4,
        ),
    ):
        model = make(context_broadcast=mode)
        assert len(model.state_dict()) - len(make().state_dict()) == added * blocks
        model(torch.randn(2, 3, 37, 33)).sum().backward()
        assert [n for n, q in model.named_parameters() if q.grad is None] == []
    with pytest.raises(ValueError, match="mode='uniform'"):
        make(context_broadcast="uniform")
