"""The attention map of agent attention in windows against what the mixer does with it."""

import pytest
import torch

from zoo.mixers.agent_window import AgentWindowAttention


@pytest.fixture
def make():
    """A mixer in double precision without the convolution beside attention, and random position biases."""

    def build(window, shift, **kwargs):
        torch.manual_seed(0)
        mixer = AgentWindowAttention(8, 2, window, shift, num_agents=4, **kwargs).double().eval()
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.normal_(std=0.5)
            mixer.core.dwc.weight.zero_()
            mixer.core.dwc.bias.zero_()
        return mixer

    return build


@pytest.mark.parametrize(("shift", "size"), [(0, (4, 8)), (2, (4, 8)), (1, (8, 12)), (3, (8, 3))])
def test_the_map_gives_the_output(make, shift, size):
    mixer = make(4, shift)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        v = mixer.qkv(x).chunk(3, dim=-1)[2].reshape(2, -1, 2, 4).transpose(1, 2)  # [B, heads, N, d]
        expected = mixer.proj((mixer.attention_map(x) @ v).transpose(1, 2).reshape(x.shape))
        torch.testing.assert_close(expected, mixer(x), rtol=1e-9, atol=1e-9)


def test_padded_tokens_are_left_out_and_windows_are_apart(make):
    mixer = make(4, 0)
    maps = mixer.attention_map(torch.randn(1, 5, 7, 8, dtype=torch.float64))
    assert maps.shape == (1, 2, 35, 35)
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 35, dtype=torch.float64))
    window = torch.arange(5)[:, None] // 4 * 2 + torch.arange(7)[None] // 4
    apart = window.flatten()[:, None] != window.flatten()[None]
    assert (maps[:, :, apart] == 0).all()
    assert (maps[:, :, ~apart] > 0).all()
