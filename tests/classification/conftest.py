"""The toy backbone of the engine's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _toy_parts() -> None:
    """Make ``toy_engine_parts`` importable."""
    parts = str(Path(__file__).parents[1] / "engine" / "parts")
    if parts not in sys.path:
        sys.path.insert(0, parts)
