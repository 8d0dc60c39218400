import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from zoo.medical.ct_scroll import CTScroll, ScrollBlock, SlabEncoder, prepare_chest_ct, visible_slabs

SMALL = dict(stem=4, planes=(4, 4, 8, 16), layers=(1, 1, 1, 1), num_heads=4)


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("direction", ["caudal_cranial", "cranial_caudal"])
def test_windows_look_one_way(direction):
    seen = visible_slabs(7, direction, 3)
    for i in range(7):
        window = range(i - 2, i + 1) if direction == "caudal_cranial" else range(i, i + 3)
        assert seen[i].nonzero().flatten().tolist() == [j for j in window if 0 <= j < 7]


@pytest.mark.parametrize("direction", ["global", "caudal_cranial", "cranial_caudal"])
def test_block_equals_torchs_attention(direction):
    block = ScrollBlock(16, 4, direction, window=3).double().eval()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.proj.weight,
            "out_proj.bias": block.proj.bias,
        }
    )
    x = inputs(2, 7, 16)
    mask = None if direction == "global" else ~visible_slabs(7, direction, 3)
    y = block.norm1(x)
    y = x + theirs(y, y, y, attn_mask=mask)[0]
    hidden = block.norm2(y) @ block.gated.weight.T
    gate = hidden[..., 16:]
    expected = y + hidden[..., :16] * gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    torch.testing.assert_close(block(x), expected)


def test_dropout_is_of_the_weights_in_training_alone():
    torch.manual_seed(0)
    block = ScrollBlock(16, 4, dropout=0.5)
    x = inputs(1, 9, 16, dtype=torch.float32)
    assert (block(x) - block(x)).abs().max() > 1e-3
    block.eval()
    assert torch.equal(block(x), block(x))


def test_encoder_is_torchvisions_resnet18():
    ours, theirs = SlabEncoder().eval(), resnet18(weights=None).eval()
    body = nn.Sequential(*list(theirs.children())[:-2])
    ours.load_state_dict(body.state_dict())
    x = inputs(1, 3, 40, 33, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), body(x))


def test_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in CTScroll().parameters()) == 16239058


def test_slabs_are_three_consecutive_slices():
    model = CTScroll(5, windows=(2, 1), **SMALL)
    seen = []
    model.features.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = inputs(2, 1, 12, 32, 48, dtype=torch.float32)
    logits = model(x)
    assert torch.equal(seen[0][5], x[1, 0, 3:6])  # the second slab of the second volume
    assert logits.shape == (2, 5)
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_volume_alone_equals_one_in_a_batch():
    model = CTScroll(5, windows=(2,), **SMALL).eval()
    x = inputs(2, 1, 9, 32, 32, dtype=torch.float32)
    torch.testing.assert_close(model(x)[1:], model(x[1:]))


@pytest.mark.parametrize("shape", [(1, 1, 10, 32, 32), (1, 2, 9, 32, 32), (1, 9, 32, 32)])
def test_other_volumes_are_refused(shape):
    with pytest.raises(ValueError, match="a multiple of 3"):
        CTScroll(5, **SMALL)(torch.zeros(shape))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_heads=3"):
        ScrollBlock(16, 3)
    with pytest.raises(ValueError, match="direction='up'"):
        ScrollBlock(16, 4, "up")
    with pytest.raises(ValueError, match="window=0"):
        ScrollBlock(16, 4, window=0)


def test_preparation_crops_and_pads_around_the_centre():
    volume = torch.full((5, 4, 3), 200, dtype=torch.int16)
    volume[0], volume[1, 0, 0] = 3000, -2000
    out = prepare_chest_ct(volume, (2, 4, 6))
    assert out.shape == (1, 2, 4, 6)
    assert out.dtype == torch.float32
    # slices 1 and 2 of 5 are left; columns have one before and two behind
    assert out[0, 0, 0].tolist() == pytest.approx([-0.449, -0.449, 0.551, 0.551, -0.449, -0.449])
    assert out[0, 1, 3].tolist() == pytest.approx([-0.449, 0.551, 0.551, 0.551, -0.449, -0.449])
    with pytest.raises(ValueError, match="three dimensions"):
        prepare_chest_ct(volume[None])
