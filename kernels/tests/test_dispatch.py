"""Which backend runs, why not the others, and what the package needs."""

import subprocess
import sys

import pytest
import torch

from zoo_kernels import dispatch
from zoo_kernels.channel_attention import channel_attention
from zoo_kernels.dense_attention import dense_attention
from zoo_kernels.dispatch import BackendError, Operator, explain, use_backend
from zoo_kernels.window_attention import OPERATOR, window_attention

QKV = torch.randn(1, 4, 4, 24, generator=torch.Generator().manual_seed(0))
CALL = {"num_heads": 2, "window": (2, 2)}


def test_cpu_tensors_run_eager():
    verdicts = {v.backend: v for v in explain("window_attention", QKV, **CALL)}
    assert [b for b, v in verdicts.items() if v.chosen] == ["eager"]
    assert verdicts["reference"].reason is None
    assert str(verdicts["eager"]) == "eager: runs"


def test_triton_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch.triton_missing.cache_clear()
    try:
        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        with pytest.raises(BackendError, match="window_attention: backend 'triton' cannot run: .*(driver|triton)"):
            window_attention(QKV, **CALL, backend="triton")
    finally:
        monkeypatch.undo()
        dispatch.triton_missing.cache_clear()


@pytest.mark.usefixtures("triton_works")
def test_limits_of_the_kernels_are_reasons():
    with pytest.raises(BackendError, match="head_dim 160, the kernels take at most 128"):
        window_attention(torch.zeros(1, 2, 2, 480), num_heads=1, window=2, backend="triton")
    with pytest.raises(BackendError, match="float64 is not float32, float16 or bfloat16"):
        window_attention(QKV.double(), **CALL, backend="triton")
    with pytest.raises(BackendError, match="softmax.* is PyTorch's own"):
        dense_attention(*(torch.zeros(1, 1, 2, 8) for _ in range(3)), backend="triton")


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend='fast': accepted are 'auto', 'reference', 'eager', 'triton'"):
        window_attention(QKV, **CALL, backend="fast")
    with pytest.raises(ValueError, match="accepted are"), use_backend("fast"):
        pass
    with pytest.raises(ValueError, match="'cuda' is not one of"):
        Operator("window_attention", ("cuda",))


def test_use_backend_is_local():
    with use_backend("reference"):
        assert OPERATOR.choose("auto", QKV, **CALL) == "reference"
        assert OPERATOR.choose("eager", QKV, **CALL) == "eager"
    assert OPERATOR.choose("auto", QKV, **CALL) == "eager"


def test_autocast_casts_once_and_keeps_what_is_float32():
    x = torch.randn(2, 128, 32, generator=torch.Generator().manual_seed(0))
    weights = (torch.randn(96, 32) / 6, torch.randn(96), torch.randn(32, 32) / 6, torch.randn(32))
    want = channel_attention(x, *weights, num_heads=2, scale=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = channel_attention(x, *weights, num_heads=2, scale=0.01)
        mixed = channel_attention(x.bfloat16(), *weights, num_heads=2, scale=0.01)
    assert got.dtype == mixed.dtype == torch.bfloat16
    assert float((got - want).norm() / want.norm()) < 2e-2
    assert float((mixed - want).norm() / want.norm()) < 2e-2
    with pytest.raises(ValueError, match="qkv_weight has dtype torch.float32: accepted is the dtype of x"):
        channel_attention(x.bfloat16(), *weights, num_heads=2)


def test_needs_torch_alone():
    """Neither importing every operator nor calling one on the CPU needs triton."""
    code = """
import sys, importlib, pkgutil
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'triton':
            raise ModuleNotFoundError('triton is not to be had')
import torch  # which looks for triton itself
sys.meta_path.insert(0, Refuse())
import zoo_kernels
from zoo_kernels import dispatch
for found in pkgutil.iter_modules(zoo_kernels.__path__):
    if found.ispkg:
        importlib.import_module(f'zoo_kernels.{found.name}')
from zoo_kernels.window_attention import window_attention
print(window_attention(torch.zeros(1, 4, 4, 24), num_heads=2, window=2).shape)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "torch.Size([1, 4, 4, 8])" in run.stdout


def test_an_absent_package_is_the_reason(monkeypatch):
    dispatch.triton_missing.cache_clear()
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    try:
        assert dispatch.triton_missing() == "the package triton is not installed"
    finally:
        dispatch.triton_missing.cache_clear()
