"""Padding, windows, position encodings and prefix readers."""

import pytest
import torch
import torch.nn.functional as F

from zoo.layers.class_attention import ClassAttention
from zoo.layers.mlp import Mlp
from zoo.layers.padding import pad_chw, pad_hwc, to_pair
from zoo.layers.position_encoding import ConvPositionEncoding
from zoo.layers.position_table import PositionTable
from zoo.layers.windows import window_partition, window_reverse


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size, padded", [((5, 7), (8, 9)), ((8, 9), (8, 9)), ((1, 10), (4, 12))])
def test_padding_is_zeros_below_and_on_the_right(size, padded):
    x = tokens(2, *size, 3) + 10
    for out in (pad_hwc(x, (4, 3)), pad_chw(x.permute(0, 3, 1, 2), (4, 3)).permute(0, 2, 3, 1)):
        assert out.shape == (2, *padded, 3)
        assert torch.equal(out[:, : size[0], : size[1]], x)
        assert torch.count_nonzero(out) == x.numel()
    if size == padded:
        assert pad_hwc(x, (4, 3)) is x


def test_pairs():
    assert to_pair(3) == to_pair([3, 3]) == (3, 3)
    for bad in (0, (1, 2, 3), (4, -1), (2.0, 2)):
        with pytest.raises(ValueError, match="window_size="):
            to_pair(bad, "window_size")


@pytest.mark.parametrize("window", [(2, 3), (6, 9), (1, 1), (6, 3)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_windows_hold_what_they_should_and_go_back(window, batch):
    x = tokens(batch, 6, 9, 4)
    windows = window_partition(x, window)
    assert windows.shape == (batch * (6 // window[0]) * (9 // window[1]), *window, 4)
    expected = [
        x[b, i : i + window[0], j : j + window[1]]
        for b in range(batch)
        for i in range(0, 6, window[0])
        for j in range(0, 9, window[1])
    ]
    assert all(torch.equal(a, b) for a, b in zip(windows, expected, strict=True))
    assert torch.equal(window_reverse(windows, 6, 9), x)


@pytest.mark.parametrize("act", [False, True])
def test_convolutional_position_encoding(act):
    layer, x = ConvPositionEncoding(4, act=act), tokens(2, 5, 6, 4)
    y = F.conv2d(x.permute(0, 3, 1, 2), layer.proj.weight, layer.proj.bias, padding=1, groups=4)
    expected = x + (F.gelu(y) if act else y).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)


def test_position_table_adds_its_rows_and_keeps_half_precision():
    table = PositionTable((3, 4), 5)
    x = torch.zeros(2, 3, 4, 5)
    assert torch.equal(table(x), table.table.expand(2, -1, -1, -1))
    half = table.to(torch.bfloat16)(x.bfloat16()[:, :2, :3])
    assert half.dtype == torch.bfloat16
    assert half.shape == (2, 2, 3, 5)
    torch.nn.init.constant_(table.table, 0.5)
    torch.testing.assert_close(table.float()(torch.zeros(1, 7, 9, 5)), torch.full((1, 7, 9, 5), 0.5))


def test_class_attention_by_its_formula():
    layer = ClassAttention(6, 2)
    prefix, x = tokens(2, 3, 6), tokens(2, 4, 5, 6)
    with torch.no_grad():
        tokens_all = torch.cat([prefix, x.reshape(2, 20, 6)], 1)
        expected = torch.empty(2, 3, 6)
        k, v = layer.kv(tokens_all).split(6, -1)
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            logits = layer.q(prefix)[..., part] @ k[..., part].transpose(1, 2) / 3**0.5
            expected[..., part] = logits.softmax(-1) @ v[..., part]
        torch.testing.assert_close(layer(prefix, x), layer.proj(expected))


def test_mlp_by_its_formula():
    layer, x = Mlp(4, 9, torch.nn.ReLU), tokens(3, 4)
    hidden = (x @ layer.fc1.weight.t() + layer.fc1.bias).clamp_min(0)
    torch.testing.assert_close(layer(x), hidden @ layer.fc2.weight.t() + layer.fc2.bias)
