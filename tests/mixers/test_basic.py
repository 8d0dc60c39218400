"""The softmax, window and channel mixers against independent implementations."""

import subprocess
import sys

import pytest
import timm
import torch
from torchvision.models.swin_transformer import shifted_window_attention

from zoo.layers.relative_position import relative_position_index
from zoo.mixers.channel import ChannelAttention
from zoo.mixers.softmax import SoftmaxAttention
from zoo.mixers.window import WindowAttention

C, HEADS = 24, 3


def filled(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return module.eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_softmax_is_timms_attention(qk_norm):
    ours = filled(SoftmaxAttention(C, HEADS, qk_norm=qk_norm))
    norm = torch.nn.LayerNorm
    theirs = timm.layers.Attention(C, HEADS, qkv_bias=True, qk_norm=qk_norm, norm_layer=norm).eval()
    theirs.load_state_dict(ours.state_dict())
    x, prefix = tokens(2, 5, 7, C), tokens(2, 2, C)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)))
        expected = theirs(torch.cat([prefix, x.flatten(1, 2)], 1))
        out, out_prefix = ours(x, prefix)
        torch.testing.assert_close(torch.cat([out_prefix, out.flatten(1, 2)], 1), expected)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (0, 2)])
@pytest.mark.parametrize("size", [(8, 12), (7, 13), (3, 9), (4, 4)])
def test_window_is_torchvisions_shifted_window_attention(size, shift, qkv_bias):
    window = (4, 3)
    ours = filled(WindowAttention(C, HEADS, window, shift, qkv_bias=qkv_bias))
    x = tokens(2, *size, C)
    with torch.no_grad():
        expected = shifted_window_attention(
            x,
            ours.qkv.weight,
            ours.proj.weight,
            ours.rel_pos_bias()[None],
            list(window),
            HEADS,
            shift_size=list(shift),
            qkv_bias=ours.qkv.bias,
            proj_bias=ours.proj.bias,
            training=False,
        )
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (7, 13)])
def test_window_cut_before_or_after_the_projection_is_the_same(size):
    # What runs on a CPU without a shift, and what runs elsewhere.
    from zoo_kernels.window_attention import window_attention

    ours = filled(WindowAttention(C, HEADS, 4))
    x = tokens(2, *size, C)
    with torch.no_grad():
        whole = window_attention(
            ours.qkv(x), num_heads=HEADS, window=(4, 4), bias=ours.rel_pos_bias(), pad_value=ours.qkv.bias
        )
        torch.testing.assert_close(ours(x), ours.proj(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias, shift, scale", [(True, 0, None), (True, 2, None), (False, 1, 0.1)])
def test_window_attention_map_gives_the_output(bias, shift, scale):
    # Where nothing is padded, values weighted by the map are what the mixer puts out.
    ours = filled(WindowAttention(C, HEADS, 4, shift, rel_pos_bias=bias, qk_scale=scale))
    x = tokens(2, 8, 12, C)
    maps = ours.attention_map(x)
    with torch.no_grad():
        v = ours.qkv(x)[..., 2 * C :].reshape(2, 96, HEADS, C // HEADS).transpose(1, 2)
        out = ours.proj((maps @ v).transpose(1, 2).reshape(2, 8, 12, C))
        torch.testing.assert_close(out, ours(x), rtol=1e-4, atol=1e-5)
    assert (maps[0, 0] == 0).sum() >= 96 * (96 - 16)


def test_softmax_attention_map_gives_the_output():
    ours = filled(SoftmaxAttention(C, HEADS))
    x = tokens(2, 4, 5, C)
    with torch.no_grad():
        v = ours.qkv(x)[..., 2 * C :].reshape(2, 20, HEADS, C // HEADS).transpose(1, 2)
        out = ours.proj((ours.attention_map(x) @ v).transpose(1, 2).reshape(2, 4, 5, C))
        torch.testing.assert_close(out, ours(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("size", [(12, 11), (3, 4)])  # more and fewer tokens than 2C: both forms of the operator
def test_channel_is_timms_channel_attention(size, qkv_bias):
    ours = filled(ChannelAttention(C, HEADS, qkv_bias=qkv_bias))
    theirs = timm.models.davit.ChannelAttention(C, HEADS, qkv_bias=qkv_bias).eval()
    theirs.load_state_dict(ours.state_dict())
    x = tokens(2, *size, C)
    with torch.no_grad():
        expected = theirs(x.flatten(1, 2))
        assert (ours(x).flatten(1, 2) - expected).norm() < 1e-5 * expected.norm()
    with pytest.raises(TypeError, match="no attention map"):
        ours.attention_map(x)


def test_costs_by_hand():
    # 6 x 8 tokens: 48 projections to 3C and to C; full attention 2 * 48 * 48 * C; windows of 4: 2 * 48 * 16 * C.
    projections = 48 * 4 * C * C
    assert SoftmaxAttention(C, HEADS).flops(6, 8) == projections + 2 * 48 * 48 * C
    assert WindowAttention(C, HEADS, (3, 4)).flops(6, 8) == projections + 2 * 48 * 12 * C
    assert WindowAttention(C, HEADS, 4).flops(6, 7) == 64 * 4 * C * C + 2 * 64 * 16 * C  # padded to 8 x 8
    assert ChannelAttention(C, HEADS).flops(6, 8) == projections + 2 * 48 * C * (C // HEADS)


def test_relative_position_index_tells_offsets_apart():
    index = relative_position_index((2, 3))
    assert index.shape == (6, 6)
    assert index.unique().tolist() == list(range(15))
    assert (index.diagonal() == 7).all()
    # Swin's own table has the same order, so that its checkpoints fit.
    theirs = timm.layers.gen_relative_position_index((2, 3), None)
    assert torch.equal(index, theirs)


@pytest.mark.parametrize("kwargs", [dict(window_size=0), dict(window_size=4, shift_size=4), dict(shift_size=(1, 2, 3))])
def test_window_refuses_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="_size"):
        WindowAttention(C, HEADS, **kwargs)


def test_a_first_call_may_be_a_compiled_one():
    # In a process of its own: here, other tests have loaded the operators' backends.
    code = (
        "import torch\n"
        "from zoo.registry import MIXERS\n"
        "for name in ('softmax', 'window', 'channel'):\n"
        "    mixer, x = MIXERS.get(name)(8, 2), torch.randn(1, 5, 6, 8)\n"
        "    out = torch.compile(mixer, fullgraph=True, backend='eager')(x)\n"
        "    torch.testing.assert_close(out, mixer(x))\n"
        "print('compiled')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "compiled", run.stderr[-2000:]
