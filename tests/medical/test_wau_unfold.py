"""The formulation by unfold that the benchmark compares with computes the same."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from zoo.medical.wau import WindowAttentionUpsample

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch):
    """The module tools/bench_wau.py."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("bench_wau", TOOLS / "bench_wau.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_wau", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "dims, sizes, window, stride, mlp",
    [
        (2, (16, 24), 4, 2, 2.0),
        (2, (7, 9), 3, 2, 0.0),
        (2, (12, 40), 6, 2, 0.0),  # 36 keys in a window: the other forward
        (3, (8, 6, 4), 2, 2, 2.0),
        (3, (3, 5, 7), (2, 2, 3), (1, 2, 2), 0.0),
    ],
)
def test_values_and_gradients_are_the_same(bench, dims, sizes, window, stride, mlp):
    torch.manual_seed(0)
    layer = WindowAttentionUpsample(6, 8, 8, 2, window, stride, dims, mlp).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    lateral = torch.randn(3, 6, *sizes, dtype=torch.float64)
    coarse = torch.randn(3, 8, *(-(-n // s) for n, s in zip(sizes, layer.stride)), dtype=torch.float64)
    peer = bench.with_unfold(layer)
    ours, theirs = bench.gradients(layer, lateral, coarse), bench.gradients(peer, lateral, coarse)
    assert len(ours) == 3 + len(list(layer.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    bench.check_equal(bench.forward(layer, lateral, coarse), ours[:1], "forward", 1e-12)


def test_a_difference_is_noticed(bench):
    with pytest.raises(AssertionError, match="here: results differ by 1"):
        bench.check_equal([torch.ones(3)], [torch.full((3,), 0.5)], "here")


def test_chunks_do_not_matter(bench, monkeypatch):
    from zoo_kernels.window_attention import cross_cpu

    layer, _, lateral, coarse = bench.blocks("3-D 32^3, window 2", 0.0)
    lateral, coarse = lateral[..., :8], coarse[..., :4]
    whole = bench.gradients(layer, lateral, coarse)
    monkeypatch.setattr(cross_cpu, "CHUNK_BYTES", 1)  # one window at a time
    bench.check_equal(bench.gradients(layer, lateral, coarse), whole, "chunks", 1e-5)


def test_benchmark_runs(bench, capsys):
    row = bench.measure("2-D 64 x 64, 64 channels", 0.0, "forward and backward", 1, torch.get_num_threads())
    assert row["ratio"] > 0
    assert row["target"] == 1.5
