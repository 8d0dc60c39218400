"""What all tests share: one thread unless a test says otherwise, and where the conformance fixtures are."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
#: the oldest release that is supported
OLD_TORCH = torch.__version__.startswith("2.6.")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def onnx_exporter() -> None:
    """Tests that write ONNX skip without its packages, and with torch 2.6: its exporter and today's onnxscript disagree
    about BatchNorm, and about maps of an open number of images."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if OLD_TORCH:
        pytest.skip("torch 2.6 writes ONNX of some models only")


@pytest.fixture(scope="session")
def rounds_as_recorded() -> Callable[[str], bool]:
    """Whether a system's results can be told from its recordings by no more than the tolerance: Co-DETR magnifies the
    rounding of matrix products 300 times, and torch 2.6 brings another library for them."""
    return lambda system: not (OLD_TORCH and system == "co_detr")


@pytest.fixture(scope="session")
def conformance_dir() -> Path:
    """The folder of fixtures of the authors' implementations; tests that need it skip where it is absent."""
    path = Path(os.environ.get("ZOO_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
    if not path.is_dir():
        pytest.skip(f"the conformance fixtures are not at {path}; ZOO_CONFORMANCE names another place")
    return path
