"""What a file of the index may say, checked with messages that name the file and the key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.registry import did_you_mean

STATUSES = ("trained", "converted", "published", "none")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,119}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _size(value: Any) -> bool:
    one = lambda v: _count(v) and 0 < v < 1 << 20  # noqa: E731
    return one(value) or (isinstance(value, list) and len(value) in (2, 3) and all(one(v) for v in value))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(v) for v in value)


def _channels(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 16 and all(_number(v) for v in value)


def _deviations(value: Any) -> bool:
    return _channels(value) and all(v > 0 for v in value)


def _url(value: Any) -> bool:
    return _text(value) and re.fullmatch(r"https?://[^\s<>\"]+", value) is not None


def _file(value: Any) -> bool:
    return isinstance(value, str) and _FILE.fullmatch(value) is not None


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


#: key -> (check, what is accepted, whether it has to be there)
_Rules = Mapping[str, tuple[Callable[[Any], bool], str, bool]]

SYSTEM: _Rules = {
    "system": (_text, "text", True),
    "title": (_text, "text", True),
    "task": (_text, "text", True),
    "models": (lambda v: isinstance(v, dict), "a mapping of model names", True),
    "paper": (_or_null(_text), "text or null", False),
    "source": (_or_null(_text), "text or null", False),
    "licence": (_or_null(_text), "text or null", False),
    "importer": (_or_null(_text), "the name of an importer or null", False),
    "page": (_or_null(_text), "text or null", False),
    "notes": (_or_null(_text), "text or null", False),
    "mixers": (_texts, "list of names", False),
    "mean": (_channels, "list of numbers", False),
    "std": (_deviations, "list of positive numbers", False),
}
MODEL: _Rules = {
    "params": (_count, "int", True),
    "flops": (_or_null(_count), "int or null", False),
    "input_size": (_size, "int or list of ints", True),
    "num_classes": (_count, "int", True),
    "mixers": (_texts, "list of names", False),
    "mean": (_channels, "list of numbers", False),
    "std": (_deviations, "list of positive numbers", False),
    "config": (_or_null(_text), "the name of a config or null", False),
    "metrics": (_or_null(lambda v: isinstance(v, list)), "list", False),
    "weights": (_or_null(lambda v: isinstance(v, dict)), "mapping", False),
    "licence": (_or_null(_text), "text or null", False),
    "paper": (_or_null(_text), "text or null", False),
    "notes": (_or_null(_text), "text or null", False),
}
WEIGHTS: _Rules = {
    "status": (lambda v: v in STATUSES, f"one of {', '.join(STATUSES)}", True),
    "url": (_or_null(_url), "an address of http(s) or null", False),
    "file": (_or_null(_file), "a plain file name or null", False),
    "size": (_or_null(lambda v: _count(v) and v > 0), "bytes or null", False),
    "sha256": (_or_null(_sha256), "64 hexadecimal digits or null", False),
    "entry": (_or_null(_text), "the authors' class or null", False),
    "licence": (_or_null(_text), "text or null", False),
    "notes": (_or_null(_text), "text or null", False),
}


def check_system(path: Path, data: Any) -> None:
    """Check what a file of the index holds.

    Raises:
        ValueError: a key is missing, unknown or of the wrong kind; the message names file, model and key.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a mapping with system, title, task and models is expected")
    _check(path, "", data, SYSTEM)
    for name, model in data["models"].items():
        if not isinstance(name, str) or re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is None:
            raise ValueError(f"{path}: {name!r} is no name of a model (letters, digits, underscores)")
        if not isinstance(model, dict):
            raise ValueError(f"{path}: {name} is {_shown(model)}; a mapping is expected")
        _check(path, f"{name}.", model, MODEL)
        if "mixers" not in model and "mixers" not in data:
            raise ValueError(f"{path}: {name}.mixers is missing; list of names is expected")
        for i, metric in enumerate(model.get("metrics") or []):
            _check_metric(path, f"{name}.metrics[{i}]", metric)
        _check_weights(path, f"{name}.weights.", model.get("weights") or {"status": "none"})


def _check(path: Path, where: str, data: Mapping[Any, Any], rules: _Rules) -> None:
    for key, (check, accepted, required) in rules.items():
        if key not in data:
            if required:
                raise ValueError(f"{path}: the key {where + key!r} is missing; {accepted} is expected")
        elif not check(data[key]):
            raise ValueError(f"{path}: {where}{key} is {_shown(data[key])}; {accepted} is expected")
    for key in data:
        if key not in rules:
            raise ValueError(f"{path}: there is no key {where + str(key)!r}{did_you_mean(str(key), rules)}")


def _check_metric(path: Path, where: str, metric: Any) -> None:
    if not isinstance(metric, dict):
        raise ValueError(f"{path}: {where} is {_shown(metric)}; a mapping is expected")
    for key in ("dataset", "source"):
        if not _or_null(_text)(metric.get(key)) or (key == "dataset" and metric.get(key) is None):
            raise ValueError(f"{path}: {where}.{key} is {_shown(metric.get(key))}; text is expected")
    for key, value in metric.items():
        if not isinstance(key, str) or not (value is None or isinstance(value, bool) or _number(value) or _text(value)):
            raise ValueError(f"{path}: {where}.{key} is {_shown(value)}; a number or text is expected")


def _check_weights(path: Path, where: str, weights: Mapping[Any, Any]) -> None:
    _check(path, where, weights, WEIGHTS)
    status = weights["status"]
    if status == "published" and not weights.get("url"):
        raise ValueError(f"{path}: {where}url is missing; published weights have an address")
    if status in ("trained", "converted"):
        for key in ("file", "sha256"):
            if not weights.get(key):
                raise ValueError(f"{path}: {where}{key} is missing; weights that are {status} here have one")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
