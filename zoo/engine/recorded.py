"""The config that a checkpoint records, read as data: a checkpoint may come from anyone, and a config is a program.

:func:`zoo.engine.config.config_text` writes nothing but literals and ``dict(...)``; anything else in such a text is
refused, and what is built of it may be named only by modules that hold models and their parts.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from typing import Any

from mmengine.config import Config

from zoo.engine.config import check_config
from zoo.registry import MIXERS, MODELS
from zoo.weights.errors import CheckpointError

#: Modules whose classes a recorded model may be made of.
_PARTS = (
    "zoo.backbones.",
    "zoo.mixers.",
    "zoo.layers.",
    "zoo.classification.",
    "zoo.detection.",
    "zoo.segmentation.",
    "zoo.medical.",
    "timm.loss.",
    "torch.nn.",
)
_PACKAGES = ("zoo.", "timm.", "torch.", "mmengine.")
_DEPTH, _LENGTH = 40, 1 << 20


def recorded_config(text: Any) -> Config | None:
    """The config of a checkpoint of our runner, or None where it records none, or that of another program.

    Raises:
        CheckpointError: it is no text that our runner writes, or names something that is no part of a model.
        ConfigError: a key in it is unknown to this version.
    """
    if not isinstance(text, str) or re.search(r"type\s*=\s*['\"]zoo\.", text) is None:
        return None
    values = _assignments(text)
    _check_types(values)
    config = Config(values)
    for key in ("model", "test_dataloader"):
        if not isinstance(config.get(key), dict):
            raise CheckpointError(f"the config that the checkpoint records has no {key!r}")
    _check_parts(config.model.to_dict())
    _check_parts(config.test_dataloader.get("dataset", {}).get("transform", {}))
    check_config(config)
    return config


def _assignments(text: str) -> dict[str, Any]:
    """``name = literal`` for each line of a program of literals."""
    if len(text) > _LENGTH:
        raise CheckpointError(f"the config that the checkpoint records has {len(text):,} characters")
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"the config that the checkpoint records is damaged: {error}") from error
    found = {}
    for node in body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise _program(node)
        found[node.targets[0].id] = _value(node.value, _DEPTH)
    return found


def _value(node: ast.expr, depth: int) -> Any:
    """What an expression of literals, containers and ``dict(...)`` stands for."""
    if depth <= 0:
        raise CheckpointError("the config that the checkpoint records is nested too deeply")
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, depth - 1)
        if not isinstance(value, int | float | complex):
            raise _program(node)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        values = [_value(n, depth - 1) for n in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        pairs = [
            (k and _value(k, depth - 1), _value(v, depth - 1)) for k, v in zip(node.keys, node.values, strict=True)
        ]
        if not all(isinstance(k, str | int | float | bool) for k, _ in pairs):
            raise _program(node)
        return dict(pairs)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        if node.func.id == "dict" and all(k.arg for k in node.keywords):
            return {str(k.arg): _value(k.value, depth - 1) for k in node.keywords}
        if node.func.id == "set" and not node.keywords:
            return set()
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "float"
        and len(node.args) == 1
    ):
        word = node.args[0]
        if isinstance(word, ast.Constant) and word.value in ("inf", "-inf", "nan"):
            return float(word.value)
    raise _program(node)


def _program(node: ast.AST) -> CheckpointError:
    return CheckpointError(
        f"the config that the checkpoint records is a program (line {getattr(node, 'lineno', '?')}: "
        f"{ast.unparse(node)[:80]!r}); it was not run"
    )


def _found(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _check_types(value: Any) -> None:
    """Refuse types of packages that our runner makes nothing of: to check a config is to import them."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list | tuple):
            _check_types(item)
        elif key == "type" and isinstance(item, str) and "." in item and not item.startswith(_PACKAGES):
            raise CheckpointError(
                f"the config that the checkpoint records names {item!r}, which our runner does not use"
            )


def _check_parts(value: Any) -> None:
    """Refuse names of things that no model is made of; every dotted word could be taken for one."""
    if isinstance(value, dict):
        for item in value.values():
            _check_parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_parts(item)
    elif isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.\w+)+", value):
        module, _, name = value.rpartition(".")
        made = _found(module, name) if value.startswith(_PARTS) else None
        registered = any(name in r and r.get(name) is made for r in (MODELS, MIXERS))
        at_home = f"{getattr(made, '__module__', '')}.".startswith(_PARTS)
        if not registered and not (inspect.isclass(made) and at_home):
            raise CheckpointError(
                f"the config that the checkpoint records names {value!r}, which is no part of a model"
            )
