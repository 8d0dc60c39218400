"""Triton's interpreter where there is no GPU, and every operator's cases as parameters.

A test with the argument ``case`` runs for each case of each operator's ``cases.py``; with ``backend`` too, for each
backend of that operator; with ``operator`` alone, for each operator that has a ``triton.py``.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "zoo_kernels"


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


# Triton reads this when it and the kernels are imported. This file is read before any test is collected.
if "triton" not in sys.modules and not has_cuda():
    os.environ["TRITON_INTERPRET"] = "1"


def operators(part: str) -> list[str]:
    """The operators whose folder has ``<part>.py``."""
    return sorted(p.parent.name for p in ROOT.glob(f"*/{part}.py"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    if "case" in names:
        params, ids = [], []
        for operator in operators("cases"):
            module = importlib.import_module(f"zoo_kernels.{operator}")
            backends = module.OPERATOR.backends if "backend" in names else (None,)
            for name, case in importlib.import_module(f"zoo_kernels.{operator}.cases").cases().items():
                for backend in (case.backends or backends) if "backend" in names else backends:
                    params.append((case, backend) if backend else case)
                    ids.append("-".join(filter(None, (operator, name, backend))))
        metafunc.parametrize("case,backend" if "backend" in names else "case", params, ids=ids)
    elif "built_operator" in names:
        metafunc.parametrize("built_operator", operators("triton"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where the triton backend runs: a GPU, or the CPU under Triton's interpreter."""
    return "cuda" if has_cuda() else "cpu"


@pytest.fixture(scope="session")
def triton_works(device: str) -> None:
    """Fails, rather than skips, where triton was imported without its interpreter before these tests."""
    import triton.language as tl

    if device == "cpu":
        assert type(tl.sum).__name__ == "InterpretedFunction", "triton was imported before TRITON_INTERPRET was set"


@pytest.fixture
def triton_ready(request: pytest.FixtureRequest) -> None:
    """For a test that may run the triton backend."""
    backend = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else "triton"
    if backend == "triton":
        request.getfixturevalue("triton_works")
