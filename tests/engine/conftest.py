"""Runs of the toy model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PARTS = Path(__file__).parent / "parts"


@pytest.fixture(scope="session", autouse=True)
def _toy_parts() -> None:
    """Make ``toy_engine_parts`` importable, for the tests and for the configs."""
    if str(PARTS) not in sys.path:
        sys.path.insert(0, str(PARTS))


@pytest.fixture
def toy_config() -> Path:
    """The toy training's config file."""
    return PARTS / "toy_config.py"


@pytest.fixture
def toy(tmp_path: Path, toy_config: Path) -> Callable[..., Any]:
    """``toy(options, name=..., **choices of zoo.engine.launch.prepare)``: a runner of the toy config."""

    def make(options: dict[str, Any] | None = None, *, name: str = "run", **choices: Any) -> Any:
        from zoo.engine.launch import prepare
        from zoo.engine.runner import Runner

        return Runner.from_cfg(prepare(toy_config, work_dir=tmp_path / name, options=options or {}, **choices))

    return make
