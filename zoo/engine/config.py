"""Configs: found by path or name, read, overridden from the command line, and checked before anything is built.

A config is a Python file of plain assignments (mmengine's dialect with lazy imports)::

    '''What it trains, the command, the hardware, the time and the score.'''
    from mmengine.config import read_base
    from zoo.classification.model import ImageClassifier

    with read_base():
        from .._base_.default_runtime import *

    model = dict(type=ImageClassifier, backbone="davit_tiny", num_classes=10)

Names that start with an underscore are the file's own; every other name must be a key that the runner knows.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject

import zoo.engine.compat  # noqa: F401  (before anything of mmengine that looks for optimizers)
from zoo.registry import MIXERS, MODELS, UnknownNameError, accepted_arguments, did_you_mean

#: Top-level keys besides the arguments of mmengine's Runner.
EXTRA_KEYS = frozenset(
    {"compile", "find_unused_parameters", "freeze", "load_except", "load_strict", "stages", "strategy", "sync_bn"}
)


class ConfigError(ValueError):
    """A config that cannot be read, or a key in it that nothing takes; the message names file, key and the nearest."""


# -- finding ------------------------------------------------------------------------------------------------------


def config_roots() -> list[Path]:
    """Folders in which configs are found by name: the checkout's ``configs`` and the installed package's."""
    package = Path(__file__).resolve().parents[1]
    roots = [package.parent / "configs", package / "_data" / "configs"]
    return [r for r in roots if r.is_dir() and (r.parent != package.parent or (r.parent / "pyproject.toml").is_file())]


def list_configs() -> dict[str, Path]:
    """Every config that has a name: its file's stem -> its path. What starts with an underscore is a part, no config.

    Raises:
        ConfigError: two configs have one name.
    """
    found: dict[str, Path] = {}
    for root in config_roots():
        own: dict[str, Path] = {}
        for file in sorted(root.rglob("*.py")):
            if any(part.startswith("_") for part in file.relative_to(root).parts):
                continue
            if file.stem in own:
                raise ConfigError(f"two configs are named {file.stem!r}: {own[file.stem]} and {file}")
            own[file.stem] = file
        found = {**own, **found}
    return found


def find_config(name: str | Path) -> Path:
    """The file of a config given by path or by name.

    Raises:
        UnknownNameError: there is neither; the message has the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path.resolve()
    configs = list_configs()
    stem = str(name).removesuffix(".py")
    if stem in configs:
        return configs[stem]
    raise UnknownNameError(
        f"no config file {str(name)!r}, and no config of that name{did_you_mean(stem, configs)} "
        f"({len(configs)} configs have a name)"
    )


def require_known(name: str | Path) -> None:
    """Raise UnknownNameError, with the nearest names, unless ``name`` is a model, a config's name or a config file."""
    configs = list_configs()
    if str(name) not in MODELS and str(name) not in configs and not Path(name).is_file():
        hint = did_you_mean(str(name), [*MODELS.names(), *configs])
        raise UnknownNameError(f"no model, config name or config file {str(name)!r}{hint}")


# -- reading ------------------------------------------------------------------------------------------------------


def load_config(
    path_or_name: str | Path,
    options: Mapping[str, Any] | Iterable[str] | None = None,
    *,
    check: bool = True,
) -> Config:
    """Read a config, apply ``options`` and check every key.

    Args:
        path_or_name: a file, or the name (file stem) of a config of the checkout or the installed package.
        options: overrides, ``{"train_cfg.max_epochs": 3}`` or ``["train_cfg.max_epochs=3"]``.
        check: call :func:`check_config`.

    Raises:
        UnknownNameError: there is no such config.
        ConfigError: it cannot be read, or a key is unknown.
    """
    path = find_config(path_or_name)
    _check_source(path)
    try:
        config = Config.fromfile(str(path), lazy_import=True, format_python_code=False)
    except ConfigError:
        raise
    except Exception as e:  # a config is a program: whatever it raises is told with its file
        raise ConfigError(f"{path}: {type(e).__name__}: {e}") from e
    if options:
        apply_options(config, options)
    if check:
        check_config(config)
    return config


def config_doc(path_or_name: str | Path) -> str:
    """The docstring of a config file, or the empty string."""
    return ast.get_docstring(ast.parse(find_config(path_or_name).read_text(encoding="utf-8"))) or ""


def _check_source(path: Path) -> None:
    """Refuse what mmengine would read wrongly or only with packages that are gone."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: {e}") from e
    for node in tree.body:
        if isinstance(node, ast.With):
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and statement.level == 0:
                    raise ConfigError(
                        f"{path}: line {statement.lineno}: under read_base() write a relative import, "
                        f"such as 'from .._base_.default_runtime import *'"
                    )
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "_base_" for t in targets):
            raise ConfigError(f"{path}: line {node.lineno}: '_base_ =' is not supported; use 'with read_base():'")


def parse_option(text: str) -> tuple[str, Any]:
    """Split ``"a.b=value"``; the value is read as a Python literal where it is one, as text otherwise."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"option {text!r} is not of the form key=value")
    words = {"true": True, "false": False, "none": None}
    value = value.strip()
    if value.lower() in words:
        return key.strip(), words[value.lower()]
    try:
        return key.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key.strip(), value


def apply_options(config: Config, options: Mapping[str, Any] | Iterable[str]) -> None:
    """Override values of a config by dotted keys; list elements by their number (``param_scheduler.0.begin=3``).

    Raises:
        ConfigError: the path leads through something that is no dict or list, or to an unknown top-level key.
    """
    pairs = dict(options) if isinstance(options, Mapping) else dict(parse_option(o) for o in options)
    for key, value in pairs.items():
        parts = key.split(".")
        if parts[0] not in known_keys():
            raise ConfigError(f"option {key!r}: no config key {parts[0]!r}{did_you_mean(parts[0], known_keys())}")
        node: Any = config._cfg_dict
        for i, part in enumerate(parts[:-1]):
            where = ".".join(parts[: i + 1])
            if isinstance(node, list | tuple):
                node = node[_index(part, node, key)]
            else:
                if part not in node or node[part] is None:
                    near = did_you_mean(part, node)
                    if near:
                        raise ConfigError(f"option {key!r}: the config has no {where!r}{near}")
                    node[part] = ConfigDict()
                node = node[part]
            if not isinstance(node, dict | list | tuple):
                raise ConfigError(f"option {key!r}: {where!r} is {node!r}, which has no keys")
        if isinstance(node, list):
            node[_index(parts[-1], node, key)] = value
        elif isinstance(node, dict):
            node[parts[-1]] = ConfigDict(value) if isinstance(value, dict) else value
        else:
            raise ConfigError(f"option {key!r}: an element of a tuple cannot be set; set the whole tuple")


def _index(part: str, items: list[Any] | tuple[Any, ...], key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"option {key!r}: {part!r} is no element of a list of {len(items)}")
    return int(part)


# -- writing ------------------------------------------------------------------------------------------------------


def dotted_name(value: Any) -> str:
    """``module.name`` of a class or function, as a dumped config refers to it."""
    return f"{value.__module__}.{value.__qualname__}"


def config_text(config: Config) -> str:
    """The config as a Python file that :func:`load_config` reads back; classes become dotted names."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(v) for v in value)
        if inspect.isclass(value) or inspect.isroutine(value):
            return dotted_name(value)
        if value is None or isinstance(value, str | bool | int | float):
            return value
        return f"<{type(value).__name__}>"

    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    return "\n".join(f"{k} = {_formatted(plain(v))}" for k, v in values.items()) + "\n"


def _formatted(value: Any, indent: int = 0) -> str:
    """A literal on one line where it fits, otherwise one element a line."""
    flat = _flat(value)
    if len(flat) + indent <= 100 or not isinstance(value, dict | list | tuple) or not value:
        return flat
    pad = " " * (indent + 4)
    if isinstance(value, dict):
        if all(isinstance(k, str) and k.isidentifier() for k in value):
            body = [f"{pad}{k}={_formatted(v, indent + 4)},\n" for k, v in value.items()]
            return f"dict(\n{''.join(body)}{' ' * indent})"
        body = [f"{pad}{k!r}: {_formatted(v, indent + 4)},\n" for k, v in value.items()]
        return f"{{\n{''.join(body)}{' ' * indent}}}"
    left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
    body = [f"{pad}{_formatted(v, indent + 4)},\n" for v in value]
    return f"{left}\n{''.join(body)}{' ' * indent}{right}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        if all(isinstance(k, str) and k.isidentifier() for k in value):
            return f"dict({', '.join(f'{k}={_flat(v)}' for k, v in value.items())})"
        return f"{{{', '.join(f'{k!r}: {_flat(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_flat(v) for v in value)}]"
    if isinstance(value, tuple):
        return f"({', '.join(_flat(v) for v in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f"float('{value}')"
    return repr(value)


# -- checking -----------------------------------------------------------------------------------------------------


@functools.cache
def known_keys() -> frozenset[str]:
    """Every top-level key that the runner takes."""
    from mmengine.runner import Runner

    return (frozenset(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}) | EXTRA_KEYS


@functools.cache
def _parts() -> dict[str, tuple[Callable[..., Any] | None, frozenset[str]]]:
    """Dicts that need no ``type``: key -> (what takes the values by default, further names that are accepted)."""
    from mmengine.evaluator import Evaluator
    from mmengine.optim import OptimWrapper
    from mmengine.runner import LogProcessor
    from torch.utils.data import DataLoader

    from zoo.engine.loops import ValLoop
    from zoo.engine.optim import ParamGroups
    from zoo.engine.strategy import Strategy

    loader = (DataLoader, frozenset({"dataset", "sampler", "batch_sampler", "num_batch_per_epoch"}))
    evaluator = (Evaluator, frozenset({"metrics"}))
    wrapper_keys = frozenset({"constructor", "paramwise_cfg", "optimizer"})
    return {
        "train_dataloader": loader,
        "val_dataloader": loader,
        "test_dataloader": loader,
        "val_cfg": (ValLoop, frozenset()),
        "test_cfg": (ValLoop, frozenset()),
        "val_evaluator": evaluator,
        "test_evaluator": evaluator,
        "optim_wrapper": (OptimWrapper, wrapper_keys),
        "optim_wrapper.paramwise_cfg": (ParamGroups.settings, frozenset()),
        "randomness": (None, frozenset({"seed", "deterministic"})),
        "env_cfg": (None, frozenset({"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"})),
        "env_cfg.mp_cfg": (None, frozenset({"mp_start_method", "opencv_num_threads"})),
        "env_cfg.dist_cfg": (None, frozenset({"backend", "timeout"})),
        "log_processor": (LogProcessor, frozenset()),
        "auto_scale_lr": (None, frozenset({"base_batch_size", "enable"})),
        "strategy": (Strategy, frozenset()),
    }


def check_config(config: Config) -> None:
    """Raise ConfigError for the first key that nothing takes; nothing is built.

    The message names the file, the path of the key, and the nearest key that would be accepted. A class says what takes
    the dicts among its arguments that have no ``type`` by ``config_parts = {"argument": class, function or its name}``.
    """
    file = config.filename or "config"
    top = {k: v for k, v in _items(config._cfg_dict, file, "") if k not in getattr(config, "_imported_names", ())}
    for key, value in top.items():
        if key.startswith("_"):
            continue
        if key not in known_keys():
            raise ConfigError(f"{file}: unknown key {key!r}{did_you_mean(key, known_keys())}")
        if key != "stages":
            _check(file, key, value)
    if top.get("stages") is not None:
        from zoo.engine.staged import check_stages

        check_stages(config)


def _check(file: str, path: str, value: Any, expected: Any = None) -> None:
    """Check a value and what is in it; ``expected`` takes the values of a dict that has no ``type``."""
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(file, f"{path}.{i}", item)
        return
    if isinstance(value, str) and path.rpartition(".")[2] in ("backbone", "mixer"):
        _resolve(file, path, value)
        return
    if not isinstance(value, dict):
        return
    items = dict(_items(value, file, path))
    parts = _check_names(file, path, items, expected)
    for key, item in items.items():
        _check(file, f"{path}.{key}", item, parts.get(key))


def _check_names(file: str, path: str, items: dict[str, Any], expected: Any) -> dict[str, Any]:
    """Check the keys of one dict; returns what takes the dicts among its values that have no ``type``."""
    target, more = _parts().get(path, (expected, frozenset()))
    is_part = path in _parts() or expected is not None
    if isinstance(target, str):
        target = _resolve(file, path, target)
    if path == "train_cfg" and "type" not in items:
        from zoo.engine.loops import EpochTrainLoop, IterTrainLoop

        if "by_epoch" not in items:
            raise ConfigError(f"{file}: {path} needs by_epoch=True or False")
        target, more, is_part = (EpochTrainLoop if items["by_epoch"] else IterTrainLoop), frozenset({"by_epoch"}), True
    if items.get("type") is not None:
        target, is_part = _resolve(file, f"{path}.type", items["type"]), True
        if path.startswith(("custom_hooks.", "default_hooks.")):
            more |= {"priority"}
        if path.startswith("param_scheduler"):
            more |= {"convert_to_iter_based"}
    elif path in ("model", "visualizer", "optim_wrapper.optimizer") or re.fullmatch(
        r"(custom_hooks|param_scheduler)\.\d+", path
    ):
        raise ConfigError(f"{file}: {path} needs a 'type'")
    if not is_part:
        return {}
    names, is_open = accepted_arguments(target) if target is not None else (set(), False)
    names = (names | more) - {"self"}
    for key in items:
        if key != "type" and not is_open and key not in names:
            label = f" {getattr(target, '__qualname__', target)} has no argument" if target else " unknown key"
            hint = did_you_mean(str(key), names) or f"; accepted are {', '.join(sorted(names))}"
            raise ConfigError(f"{file}: {path}.{key}:{label} {key!r}{hint}")
    return getattr(getattr(target, "builds", target), "config_parts", {})


def _items(value: Any, file: str, path: str) -> Iterable[tuple[str, Any]]:
    """Key and value of a dict whose lazy imports are carried out, with the place told when one fails."""
    for key in list(dict.keys(value)):
        item = dict.__getitem__(value, key)
        if isinstance(item, LazyObject | LazyAttr):
            if not path:  # a name that a base file imported; used through the dicts that hold it
                continue
            try:
                item = item.build()
            except Exception as e:
                raise ConfigError(f"{file}: {path}.{key}: {e}") from e
        yield key, item


def _resolve(file: str, path: str, kind: Any) -> Callable[..., Any] | None:
    """The class or function that a ``type`` names."""
    if not isinstance(kind, str):
        if not callable(kind):
            raise ConfigError(f"{file}: {path} is {kind!r}; a class, a function or a name is expected")
        return kind
    if "segmenter." in path:  # names of heads, "timm:..." and "torchvision:..."
        from zoo.segmentation.backbone import PREFIXES
        from zoo.segmentation.segmenter import HEADS

        prefix, colon, _ = kind.partition(":")
        kind = PREFIXES[prefix][0] if colon and prefix in PREFIXES else HEADS.get(kind, kind)
    if "." in kind:
        from mmengine.utils import get_object_from_string

        found = get_object_from_string(kind)
        if found is None:
            raise ConfigError(f"{file}: {path}: there is no {kind!r}")
        return found
    for registry in (MODELS, MIXERS):
        if kind in registry:
            return registry.get(kind)
    import mmengine.registry as known

    for name in dir(known):
        registry = getattr(known, name)
        if isinstance(registry, known.Registry) and kind in registry.module_dict:
            return registry.module_dict[kind]
    if path.startswith("model.loss"):
        from zoo.segmentation.losses import LOSSES

        if kind in LOSSES:
            return LOSSES.get(kind)
    names = [*MODELS.names(), *MIXERS.names()]
    raise ConfigError(f"{file}: {path}: unknown name {kind!r}{did_you_mean(kind, names)}")
