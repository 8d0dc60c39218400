#!/usr/bin/env python
"""Run recorded outputs of the authors' implementations against this project's models.

    python tools/conformance.py DIR [--json FILE] [--system NAME]... [--backend NAME] [--modules]

``DIR/<system>/<case>.safetensors`` holds an entry (the authors' class or function), its arguments, its state dict,
inputs and outputs. ``tests/conformance/adapters/<system>.py`` names our counterpart: its
``run(entry, kwargs, state, inputs)`` gives the outputs, and it sees neither the case's name nor the expected outputs.
Exit status: 0 if no case failed, 1 if one did, 2 if the arguments make no sense.

Tolerance: ``|a - b| / |b|`` (2-norms) at most 1e-5 for one module and 1e-4 for a whole network, which are the entries
that an adapter lists in ``NETWORKS``; integers and booleans exactly. Outputs that are zero but for float32's rounding
(no value above 1e-6) are compared by their absolute error. Nothing changes it for a case.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zoo_kernels.dispatch import BACKENDS, BackendError, use_backend

ADAPTERS = Path(__file__).resolve().parent.parent / "tests" / "conformance" / "adapters"
MODULE_TOLERANCE = 1e-5
NETWORK_TOLERANCE = 1e-4
ZERO = 1e-6


@dataclass
class Result:
    """The outcome of one case; ``output``, ``max_abs`` and ``rel`` are those of the output that agrees least."""

    system: str
    case: str
    status: str  # "pass" | "fail" | "missing"
    output: str | None = None
    max_abs: float | None = None
    rel: float | None = None
    message: str = ""

    def line(self) -> str:
        """The line that is printed for this case."""
        text = f"{self.status:7s} {self.system}/{self.case}"
        if self.status == "fail" and self.output is not None:
            text += f"  {self.output}: max abs {self.max_abs:.3g}, rel {self.rel:.3g}"
        return f"{text}  {self.message}" if self.message else text


@dataclass
class Fixture:
    """What a fixture file holds."""

    entry: str
    source: str
    kwargs: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Any]
    outputs: dict[str, Tensor]


def nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Names with "/" become nested dictionaries; a level named 0, 1, ... becomes a list."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value

    def listed(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        node = {k: listed(v) for k, v in node.items()}
        if node and set(node) == {str(i) for i in range(len(node))}:
            return [node[str(i)] for i in range(len(node))]
        return node

    return {k: listed(v) for k, v in tree.items()}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The inverse of :func:`nest`."""
    if isinstance(tree, Mapping):
        items: Any = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        yield prefix, tree
        return
    for key, value in items:
        yield from flatten(value, f"{prefix}/{key}" if prefix else str(key))


def load(path: Path) -> Fixture:
    """Read a fixture file."""
    with safe_open(path, "pt") as f:
        meta = f.metadata() or {}
        parts: dict[str, dict[str, Tensor]] = {"state": {}, "input": {}, "output": {}}
        for key in f.keys():  # noqa: SIM118 (not a mapping)
            kind, _, name = key.partition("/")
            parts[kind][name] = f.get_tensor(key)
    kwargs = json.loads(meta.get("kwargs") or "{}")
    return Fixture(meta["entry"], meta.get("source", ""), kwargs, parts["state"], nest(parts["input"]), parts["output"])


@cache
def adapter(system: str, folder: Path = ADAPTERS) -> ModuleType | None:
    """The adapter module of a system, or None if there is none."""
    path = folder / f"{system}.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"conformance_adapter_{system}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference(ours: Any, expected: Tensor) -> tuple[float, float, str]:
    """Largest absolute and relative error of one output, and what makes them incomparable ("" if nothing does)."""
    inf = float("inf")
    if not isinstance(ours, Tensor):
        ours = torch.as_tensor(ours)
    ours = ours.detach().cpu()
    if ours.shape != expected.shape:
        return inf, inf, f"shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
    if not expected.is_floating_point():
        if ours.is_floating_point():
            return inf, inf, f"dtype {ours.dtype}, expected {expected.dtype}"
        wrong = int((ours.long() != expected.long()).sum())
        if wrong:
            gap = float((ours.long() - expected.long()).abs().max())
            return gap, inf, f"{wrong} of {expected.numel()} integers differ"
        return 0.0, 0.0, ""
    a, b = ours.double(), expected.double()
    finite = b.isfinite()
    same = torch.where(b.isnan(), a.isnan(), a == b)
    if not bool((finite | same).all()) or not bool(a[finite].isfinite().all()):
        return inf, inf, "infinities or NaNs at other places than expected"
    a, b = a[finite], b[finite]
    gap = float((a - b).abs().max()) if a.numel() else 0.0
    size = float(b.norm())
    error = float((a - b).norm())
    # What is zero but for float32's rounding (the gradient of a bias before a normalisation, say) has no relative error
    # that says anything; its absolute one stands in.
    zero = b.numel() == 0 or float(b.abs().max()) <= ZERO
    return gap, error if zero else error / size, ""


def compare(produced: Mapping[str, Any], expected: Mapping[str, Tensor], tolerance: float) -> dict[str, Any]:
    """Compare outputs by name: the fields of a :class:`Result` beside system and case."""
    produced = dict(flatten(produced))
    if not expected:
        return {"status": "fail", "message": "the fixture records no output"}
    worst: dict[str, Any] = {"status": "pass", "output": None, "max_abs": 0.0, "rel": -1.0, "message": ""}
    for name, want in expected.items():
        if name not in produced:
            have = ", ".join(sorted(produced)) or "none"
            return {
                "status": "fail",
                "output": name,
                "max_abs": float("inf"),
                "rel": float("inf"),
                "message": f"no such output; there are: {have}",
            }
        max_abs, rel, message = difference(produced[name], want)
        if rel > worst["rel"]:
            status = "pass" if rel <= tolerance and not message else "fail"
            worst = {"status": status, "output": name, "max_abs": max_abs, "rel": rel, "message": message}
    if worst["status"] == "fail" and not worst["message"]:
        worst["message"] = f"tolerance {tolerance:g}"
    return worst


def run_case(path: Path, adapters: Path = ADAPTERS, backend: str = "auto", modules_only: bool = False) -> Result | None:
    """Run one fixture file; an exception on the way is a failure with its message.

    With a ``backend`` all operators run by it, and a case that has a call which it cannot serve is missing; with
    ``modules_only`` whole networks give None.
    """
    system, case = path.parent.name, path.stem
    try:
        module = adapter(system, adapters)
        if module is None:
            return Result(system, case, "missing", message="no importer")
        fixture = load(path)
        if modules_only and fixture.entry in getattr(module, "NETWORKS", ()):
            return None
        torch.manual_seed(0)
        # Some functions have one name in several repositories; their adapters ask which repository it is.
        named = {"source": fixture.source} if "source" in inspect.signature(module.run).parameters else {}
        with contextlib.nullcontext() if backend == "auto" else use_backend(backend):
            produced = module.run(fixture.entry, fixture.kwargs, fixture.state, fixture.inputs, **named)
        whole = fixture.entry in getattr(module, "NETWORKS", ())
        found = compare(produced, fixture.outputs, NETWORK_TOLERANCE if whole else MODULE_TOLERANCE)
    except Exception as e:  # whatever goes wrong in a case is that case's result
        # A bare LookupError is how an adapter says that it has no such entry; its subclasses (KeyError ...) are bugs.
        if type(e) is LookupError or (backend != "auto" and isinstance(e, BackendError)):
            return Result(system, case, "missing", message=str(e))
        return Result(system, case, "fail", message=f"{type(e).__name__}: {e}".replace("\n", " ")[:1000])
    return Result(system, case, **found)


def cases(directory: Path, systems: list[str] | None = None) -> list[Path]:
    """The fixture files of some systems (all by default).

    Raises:
        FileNotFoundError: the directory has no fixtures, or none of a system that was asked for.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a folder")
    found = sorted(directory.glob("*/*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{directory} has no <system>/<case>.safetensors")
    if systems:
        present = sorted({p.parent.name for p in found})
        unknown = [s for s in systems if s not in present]
        if unknown:
            raise FileNotFoundError(f"{directory} has no system {', '.join(unknown)}; it has {', '.join(present)}")
        found = [p for p in found if p.parent.name in systems]
    return found


def write_json(path: Path, results: list[Result]) -> None:
    """Write the results as a JSON list (numbers that JSON cannot hold as null), all or nothing."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value

    rows = [{k: plain(v) for k, v in asdict(r).items()} for r in results]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compare this project's models with recorded outputs of the authors' implementations."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="holds <system>/<case>.safetensors")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here as a JSON list")
    parser.add_argument("--system", metavar="NAME", action="append", help="only this system (may be repeated)")
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="run all operators by this one")
    parser.add_argument("--modules", action="store_true", help="single modules only, no whole networks")
    args = parser.parse_args(argv)
    try:
        paths = cases(args.directory, args.system)
    except FileNotFoundError as e:
        print(f"conformance: {e}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    results = []
    for path in paths:
        result = run_case(path, backend=args.backend, modules_only=args.modules)
        if result is not None:
            results.append(result)
            print(result.line(), flush=True)
    counts = Counter(r.status for r in results)
    print(
        f"{len(results)} cases: {counts['pass']} pass, {counts['fail']} fail, {counts['missing']} missing"
        f" ({time.perf_counter() - start:.0f} s)"
    )
    if args.json:
        write_json(args.json, results)
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
