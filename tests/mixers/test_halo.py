"""HaloNet's blocked local attention against timm's module, in float64."""

import pytest
import torch
from torch.nn import functional as F

from zoo.mixers.halo import HaloAttention
from zoo.mixers.softmax import SoftmaxAttention


def randomised(mixer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    mixer = mixer.double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return mixer


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    "size, ours, theirs",
    [
        ((8, 12), dict(block_size=4, halo_size=1), dict(block_size=4, halo_size=1)),
        ((8, 8), dict(block_size=4, halo_size=3, stride=2, qkv_bias=True), dict(block_size=4, halo_size=3, stride=2)),
        (
            (8, 8),
            dict(block_size=4, halo_size=1, stride=2, avg_down=True, scale_position=True),
            dict(block_size=4, halo_size=1, stride=2, avg_down=True, scale_pos_embed=True),
        ),
        ((6, 6), dict(block_size=3, halo_size=2, stride=2), dict(block_size=3, halo_size=2, stride=2)),
        ((8, 8), dict(block_size=4, halo_size=2, qk_head_dim=5), dict(block_size=4, halo_size=2, dim_head=5)),
    ],
)
def test_equals_timm(size, ours, theirs):
    layers = pytest.importorskip("timm.layers.halo_attn")
    mixer = randomised(HaloAttention(16, 2, proj=False, **ours))
    peer = layers.HaloAttn(16, num_heads=2, qkv_bias=ours.get("qkv_bias", False), **theirs).double().eval()
    names = {"q.weight": "q.weight", "kv.weight": "kv.weight", "q.bias": "q.bias", "kv.bias": "kv.bias"}
    names |= {"rel_height": "pos_embed.height_rel", "rel_width": "pos_embed.width_rel"}
    state = {names[k]: v.view(peer.state_dict()[names[k]].shape) for k, v in mixer.state_dict().items()}
    peer.load_state_dict(state)
    x = image(2, *size, 16)
    with torch.no_grad():
        want = peer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(mixer(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size, stride", [((7, 10), 1), ((1, 1), 1), ((7, 9), 2)])
def test_a_map_of_any_size_is_continued_by_zeros(size, stride):
    mixer = randomised(HaloAttention(16, 2, block_size=4, halo_size=1, stride=stride))
    x = image(2, *size, 16)
    padded = F.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    with torch.no_grad():
        out = mixer(x)
        assert out.shape == (2, rows, columns, 16)
        torch.testing.assert_close(out, mixer(padded)[:, :rows, :columns], rtol=1e-10, atol=1e-10)


def test_one_block_without_positions_is_full_attention():
    mixer = randomised(HaloAttention(8, 2, block_size=6, halo_size=0))
    full = SoftmaxAttention(8, 2, qkv_bias=False).double()
    with torch.no_grad():
        mixer.rel_height.zero_()
        mixer.rel_width.zero_()
        k, v = mixer.kv.weight.view(2, 2, 4, 8).unbind(1)  # [heads, d, C] each
        full.qkv.weight.copy_(torch.cat([mixer.q.weight, k.reshape(8, 8), v.reshape(8, 8)]))
        full.proj.load_state_dict(mixer.proj.state_dict())
        x = image(2, 6, 6, 8)
        torch.testing.assert_close(mixer(x), full(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mixer.attention_map(x), full.attention_map(x), rtol=1e-10, atol=1e-10)


def test_refused():
    with pytest.raises(ValueError, match="block_size=0"):
        HaloAttention(8, 2, block_size=0)
    with pytest.raises(ValueError, match="halo_size=-1"):
        HaloAttention(8, 2, halo_size=-1)
    with pytest.raises(TypeError, match="stride=2"):
        HaloAttention(8, 2, stride=2).attention_map(torch.zeros(1, 8, 8, 8))
