"""What all tests share: one thread unless a test says otherwise, and where the conformance fixtures are."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def conformance_dir() -> Path:
    """The folder of fixtures of the authors' implementations; tests that need it skip where it is absent."""
    path = Path(os.environ.get("ZOO_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
    if not path.is_dir():
        pytest.skip(f"the conformance fixtures are not at {path}; ZOO_CONFORMANCE names another place")
    return path
