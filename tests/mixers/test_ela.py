"""Efficient local attention against the paper's equations, in float64."""

import pytest
import torch

from zoo.mixers.ela import EfficientLocalAttention, StripGate


def strip_gate(gate: StripGate, strip: torch.Tensor) -> torch.Tensor:
    """sigmoid(GN(F(z))) of one strip [C, L], the convolution and the norm written out."""
    C, L = strip.shape
    weight = gate.conv.weight  # [C, C / groups, k]
    size, half = weight.shape[1], weight.shape[2] // 2
    out = torch.zeros_like(strip)
    for c in range(C):
        first = (c // (C // gate.conv.groups)) * size
        for i in range(L):
            for tap in range(weight.shape[2]):
                if 0 <= i + tap - half < L:
                    out[c, i] += weight[c, :, tap] @ strip[first : first + size, i + tap - half]
    group = C // gate.norm.num_groups
    for g in range(gate.norm.num_groups):
        part = out[g * group : (g + 1) * group]
        part = (part - part.mean()) / torch.sqrt(part.var(correction=0) + gate.norm.eps)
        out[g * group : (g + 1) * group] = part
    return torch.sigmoid(out * gate.norm.weight[:, None] + gate.norm.bias[:, None])


@pytest.mark.parametrize("version", ["tiny", "base", "small", "large"])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_equations(version, shared):
    torch.manual_seed(0)
    mixer = EfficientLocalAttention(16, version=version, shared=shared).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
        x = torch.randn(2, 6, 9, 16, dtype=torch.float64)
        out = mixer(x)
        for b in range(2):
            rows = strip_gate(mixer.rows, x[b].sum(1).T / 9)
            columns = strip_gate(mixer.rows if shared else mixer.columns, x[b].sum(0).T / 6)
            for c in range(16):
                expected = x[b, :, :, c] * torch.outer(rows[c], columns[c])
                torch.testing.assert_close(out[b, :, :, c], expected, rtol=1e-10, atol=1e-12)


def test_versions_differ_as_the_paper_says():
    kernels, groups = {}, {}
    for version in ("tiny", "base", "small", "large"):
        gate = EfficientLocalAttention(64, version=version).rows
        kernels[version], groups[version] = gate.conv.kernel_size[0], (gate.conv.groups, gate.norm.num_groups)
    assert kernels == dict(tiny=5, base=7, small=5, large=7)
    assert groups == dict(tiny=(64, 32), base=(64, 16), small=(8, 16), large=(8, 16))


def test_any_width_and_one_image_of_one_place_trains():
    for dim in (1, 5, 16, 44):
        mixer = EfficientLocalAttention(dim, version="large").train()
        mixer(torch.randn(1, 1, 1, dim)).sum().backward()
        assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_unknown_version():
    with pytest.raises(ValueError, match="version='huge'"):
        EfficientLocalAttention(8, version="huge")
