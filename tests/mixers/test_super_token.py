"""Super token attention as a mixer against a dense float64 form of its equations."""

import pytest
import torch
from torch.nn import functional as F

from zoo.mixers.super_token import SuperTokenAttention, TokenAttention


def randomised(mixer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    mixer = mixer.double().eval()
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return mixer


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(mixer: SuperTokenAttention, x: torch.Tensor) -> torch.Tensor:
    """Equations 3-9 with a full matrix of pixels and tokens (one image)."""
    (ch, cw), (H, W, C) = mixer.cell, x.shape[1:]
    x = F.pad(x, (0, 0, 0, -W % cw, 0, -H % ch))[0]
    h, w = x.shape[0] // ch, x.shape[1] // cw
    pixels = x.reshape(-1, C)
    row, column = torch.arange(h * ch) // ch, torch.arange(w * cw) // cw
    row, column = row.repeat_interleave(w * cw), column.repeat(h * ch)  # cell of each pixel
    token_row, token_column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    near = ((row[:, None] - token_row).abs() <= 1) & ((column[:, None] - token_column).abs() <= 1)
    member = F.one_hot(row * w + column, h * w).double()
    tokens = member.T @ pixels / (ch * cw)
    for _ in range(mixer.iterations):
        logits = (C**-0.5 * pixels @ tokens.T).masked_fill(~near, float("-inf"))
        # tokens beyond the edge are zero vectors: 9 less the real ones, each with logit 0
        beyond = (9 - near.sum(1)).double()
        share = logits.exp() / (logits.exp().sum(1) + beyond)[:, None]
        tokens = share.T @ pixels / share.sum(0)[:, None]
    if isinstance(mixer.refine, TokenAttention):
        q, k, v = mixer.refine.qkv(tokens).reshape(h * w, mixer.num_heads, 3, -1).permute(2, 1, 0, 3)
        weights = (q @ k.transpose(1, 2) * mixer.head_dim**-0.5).softmax(-1)
        tokens = mixer.refine.proj((weights @ v).transpose(0, 1).reshape(h * w, C))
    return (share @ tokens).reshape(1, h * ch, w * cw, C)[:, :H, :W]


@pytest.mark.parametrize(
    "size, options",
    [
        ((8, 12), dict(token_size=4)),
        ((7, 10), dict(token_size=(3, 4), iterations=3, qkv_bias=False)),
        ((5, 6), dict(token_size=2, refine="none")),
        ((1, 1), dict(token_size=4)),
    ],
)
def test_equals_the_equations(size, options):
    mixer = randomised(SuperTokenAttention(12, 3, **options))
    x = image(1, *size, 12)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), dense(mixer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [dict(token_size=3), dict(token_size=1), dict(token_size=2, refine="none")])
def test_attention_map_weighs_the_values(options):
    mixer = randomised(SuperTokenAttention(12, 3, **options))
    x = image(2, 6, 9, 12)
    with torch.no_grad():
        maps = mixer.attention_map(x)
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
        assert maps.shape[2:] == (54, 54)
        if options["token_size"] == 1:
            v = mixer.refine.heads(x)[2]
            out = mixer.refine.proj((maps @ v).transpose(1, 2).reshape(2, 6, 9, 12))
            torch.testing.assert_close(out, mixer(x))
        elif options.get("refine") == "none":
            # away from edge and padding nothing is lost
            got = (maps[:, 0] @ x.reshape(2, 54, 12)).reshape(2, 6, 9, 12)
            torch.testing.assert_close(got[:, 2:4, 2:4], mixer(x)[:, 2:4, 2:4])


def test_gradients_of_the_association_are_optional():
    x = image(1, 8, 8, 12).requires_grad_()
    free = randomised(SuperTokenAttention(12, 3, token_size=4))
    assert torch.autograd.gradcheck(lambda t: free(t).square().sum(), (x,))
    held = SuperTokenAttention(12, 3, token_size=4, affinity_grad=False).double()
    held.load_state_dict(free.state_dict())
    torch.testing.assert_close(held(x), free(x))
    (a,), (b,) = (torch.autograd.grad(m(x).square().sum(), x) for m in (held, free))
    assert (a - b).abs().max() > 1e-6


def test_refused():
    with pytest.raises(ValueError, match="refine='mlp'"):
        SuperTokenAttention(8, 2, refine="mlp")
    with pytest.raises(ValueError, match="iterations=0"):
        SuperTokenAttention(8, 2, iterations=0)
    with pytest.raises(ValueError, match="token_size=0"):
        SuperTokenAttention(8, 2, token_size=0)
    with pytest.raises(TypeError, match="convolution"):
        SuperTokenAttention(8, 2, refine="conv").attention_map(torch.zeros(1, 4, 4, 8))
