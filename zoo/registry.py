"""Names -> builders, for models and mixers: filled by importing a package, a duplicate is an error."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class UnknownNameError(LookupError):
    """A name that nothing is registered under; the message has the nearest names."""


def nearest(name: str, names: Iterable[str], n: int = 5) -> list[str]:
    """The ``n`` names most like ``name``, best first."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.5)
    return close or [x for x in names if name.lower() in x.lower()][:n]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """'; did you mean a, b?' or, when nothing is near, the empty string."""
    close = nearest(name, names)
    return f"; did you mean {', '.join(close)}?" if close else ""


@dataclass(frozen=True)
class Entry:
    """A registered builder and what is known of it without building it."""

    name: str
    builder: Callable[..., Any]
    module: str
    meta: dict[str, Any] = field(default_factory=dict)


class Registry:
    """Builders of one kind.

    Args:
        kind: what is registered, for messages ("model").
        packages: their modules are imported at the first look-up, which is what fills the registry.
    """

    def __init__(self, kind: str, packages: tuple[str, ...]):
        self.kind = kind
        self.packages = packages
        self._entries: dict[str, Entry] = {}
        self._filled = False

    def register(self, builder: Callable[..., Any] | None = None, /, *, name: str | None = None, **meta: Any) -> Any:
        """Decorator: register a class or function under ``name`` (its own name by default).

        Raises:
            ValueError: the name is taken.
        """

        def add(fn: Callable[..., Any]) -> Callable[..., Any]:
            key = name or fn.__name__
            old = self._entries.get(key)
            if old is not None and (old.module, old.builder.__qualname__) != (fn.__module__, fn.__qualname__):
                raise ValueError(
                    f"{self.kind} name {key!r} is registered twice: in {old.module} and in {fn.__module__}"
                )
            self._entries[key] = Entry(key, fn, fn.__module__, meta)
            return fn

        return add if builder is None else add(builder)

    def _fill(self) -> None:
        if self._filled:
            return
        for package in self.packages:
            pkg = importlib.import_module(package)
            for info in pkgutil.iter_modules(pkg.__path__):
                importlib.import_module(f"{package}.{info.name}")
        self._filled = True

    def entry(self, name: str) -> Entry:
        """The entry of ``name``.

        Raises:
            UnknownNameError: with the nearest names.
        """
        self._fill()
        if name not in self._entries:
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)} "
                f"({len(self._entries)} {self.kind}s are registered)"
            )
        return self._entries[name]

    def get(self, name: str) -> Callable[..., Any]:
        """The builder registered under ``name``."""
        return self.entry(name).builder

    def names(self, pattern: str = "*", **meta: Any) -> list[str]:
        """Names that match a glob pattern and have the given meta values, in natural order."""
        self._fill()
        found = [e for e in self._entries.values() if fnmatch.fnmatch(e.name, pattern)]
        return sorted(e.name for e in found if all(e.meta.get(k) == v for k, v in meta.items()))

    def __contains__(self, name: str) -> bool:
        self._fill()
        return name in self._entries


MODELS = Registry(
    "model", ("zoo.backbones", "zoo.detection.variants", "zoo.medical.variants", "zoo.segmentation.variants")
)
MIXERS = Registry("mixer", ("zoo.mixers",))

register_model = MODELS.register
register_mixer = MIXERS.register


def variant(cls: Callable[..., Any]) -> Callable[[Callable[[], dict[str, Any]]], Callable[..., Any]]:
    """Decorator: a function that returns a named model's arguments becomes its builder.

    The builder takes any argument of ``cls``, and what it is given wins over the named model's own. It keeps ``cls`` as
    ``builds`` and the arguments as ``preset``, so that both can be read without building.

    >>> @register_model(task="classification", family="davit")
    ... @variant(DaViT)
    ... def davit_tiny() -> dict:
    ...     return dict(depths=(1, 1, 3, 1))
    """

    def wrap(fn: Callable[[], dict[str, Any]]) -> Callable[..., Any]:
        preset = fn()

        def build_variant(**kwargs: Any) -> Any:
            return cls(**{**preset, **kwargs})

        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(build_variant, attribute, getattr(fn, attribute))
        build_variant.builds = cls  # type: ignore[attr-defined]
        build_variant.preset = preset  # type: ignore[attr-defined]
        return build_variant

    return wrap


def accepted_arguments(fn: Callable[..., Any]) -> tuple[set[str], bool]:
    """Argument names that a builder accepts, and whether it takes any others too.

    A ``**kwargs`` of a class is followed to its base classes, so that only a builder whose every path ends in an open
    ``**kwargs`` counts as taking anything. A builder whose ``**kwargs`` go to a class names it as ``fn.builds``.
    """
    if not inspect.isclass(fn):
        parameters = inspect.signature(fn).parameters
        names = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return names, False
        target = getattr(fn, "builds", None)
        if target is None:
            return names, True
        more, is_open = accepted_arguments(target)
        return names | more, is_open
    names = set()
    for cls in fn.__mro__:
        if "__init__" not in cls.__dict__ or cls is object:
            continue
        parameters = inspect.signature(cls.__dict__["__init__"]).parameters
        names |= {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return names - {"self"}, False
    return names - {"self"}, True


def check_arguments(fn: Callable[..., Any], given: Iterable[str], where: str = "") -> None:
    """Raise TypeError if ``fn`` accepts not all of the ``given`` argument names; the message has the nearest."""
    names, is_open = accepted_arguments(fn)
    if is_open:
        return
    for key in given:
        if key not in names:
            at = f"{where}: " if where else ""
            label = getattr(fn, "__qualname__", repr(fn))
            hint = did_you_mean(key, names) or f"; accepted are {', '.join(sorted(names))}"
            raise TypeError(f"{at}{label} has no argument {key!r}{hint}")


def resolve(kind: Any, registry: Registry) -> Callable[..., Any]:
    """The builder behind a spec's ``type``: a registered name, a dotted path to a class, or the builder itself."""
    if not isinstance(kind, str):
        return kind
    if "." not in kind:
        return registry.get(kind)
    module, _, attribute = kind.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def build(spec: Any, registry: Registry, /, **defaults: Any) -> Any:
    """Build from a name, a ``dict(type=name or class, **arguments)``, a class or a ready object.

    ``defaults`` are passed too; what the spec itself says wins. Unknown arguments raise TypeError with the nearest.
    """
    if isinstance(spec, str) or inspect.isclass(spec) or inspect.isfunction(spec):
        spec = {"type": spec}
    if not isinstance(spec, dict):
        return spec
    arguments = {**defaults, **spec}
    if "type" not in arguments:
        raise TypeError(f"a {registry.kind} spec needs a 'type', got {spec!r}")
    fn = resolve(arguments.pop("type"), registry)
    check_arguments(fn, arguments, where=registry.kind)
    return fn(**arguments)
