"""What importers share: arguments of the authors' constructors, and key names that map both ways."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from zoo.registry import did_you_mean


def official_arguments(entry: str, kwargs: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' arguments with their defaults filled in.

    Raises:
        TypeError: an argument that the authors' constructor does not have; the message has the nearest.
    """
    for key in kwargs:
        if key not in defaults:
            raise TypeError(f"{entry} has no argument {key!r}{did_you_mean(key, defaults)}")
    return {**defaults, **kwargs}


def refuse(entry: str, argument: str, value: Any, accepted: str) -> ValueError:
    """The error for an authors' argument whose value is not supported."""
    return ValueError(f"{entry}: {argument}={value!r} is not supported; accepted: {accepted}")


def parse_class(text: str) -> tuple[str, dict[str, Any]]:
    """Read a class written as text: ``"LayerNorm(eps=1e-6)"`` -> ``("LayerNorm", {"eps": 1e-6})``.

    Raises:
        ValueError: it is not a (dotted) name with literal keyword arguments.
    """
    error = ValueError(f"{text!r} is not a class name with literal keyword arguments, such as 'LayerNorm(eps=1e-6)'")
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise error from None
    arguments: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if node.args or any(k.arg is None for k in node.keywords):
            raise error
        try:
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        except ValueError:
            raise error from None
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr, arguments
    if isinstance(node, ast.Name):
        return node.id, arguments
    raise error


def layer_norm_eps(entry: str, argument: str, value: Any, default: float = 1e-5) -> float:
    """The epsilon of a LayerNorm given as text.

    Raises:
        ValueError: another class, or arguments besides ``eps``.
    """
    name, arguments = parse_class(str(value))
    if name != "LayerNorm" or set(arguments) - {"eps"}:
        raise refuse(entry, argument, value, "'LayerNorm' or 'LayerNorm(eps=...)'")
    return float(arguments.get("eps", default))


class KeyMap:
    """A one-to-one renaming of state-dict keys, from pairs of templates.

    ``{s}`` in a template stands for a number and ``{p}``, like every name that starts with p, for the last part of a
    key (weight, bias, ...). The first pair that matches is taken.

    Args:
        pairs: (official template, our template).
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        self._pairs = [(self._pattern(a), a, self._pattern(b), b) for a, b in pairs]

    @staticmethod
    def _pattern(template: str) -> re.Pattern[str]:
        text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        text = re.sub(r"\{(p\w*)\}", r"(?P<\1>[A-Za-z_]\\w*)", text)
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", text))

    def _rename(self, state: Mapping[str, Tensor], back: bool) -> dict[str, Tensor]:
        renamed: dict[str, Tensor] = {}
        unknown = []
        for key, value in state.items():
            for official, official_template, own, own_template in self._pairs:
                match = (own if back else official).fullmatch(key)
                if match:
                    new = (official_template if back else own_template).format(**match.groupdict())
                    if new in renamed:
                        raise KeyError(f"two keys of the state dict become {new!r}; one of them is {key!r}")
                    renamed[new] = value
                    break
            else:
                unknown.append(key)
        if unknown:
            raise KeyError(f"{len(unknown)} unexpected keys in the state dict: {', '.join(unknown[:8])}")
        return renamed

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official names to ours.

        Raises:
            KeyError: a key that no pair matches; the message lists the first ones.
        """
        return self._rename(state, back=False)

    def revert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names to official ones; raises KeyError like :meth:`convert`."""
        return self._rename(state, back=True)
