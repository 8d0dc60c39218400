"""``zoo list``: the models, with their sizes, from the index (nothing is built)."""

from __future__ import annotations

import argparse
import fnmatch

from zoo.cli.output import human, print_json, print_table
from zoo.registry import did_you_mean

HELP = "list the models: parameters, FLOPs, input size, mixers, weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="glob pattern of names, e.g. '*agent*'")
    parser.add_argument("--task", help="only models of this task, e.g. classification")
    parser.add_argument("--family", help="only models of this system, e.g. davit")
    parser.add_argument("--mixer", help="only models that use this mixer, e.g. bra; hosts take any")
    parser.add_argument("--weights", action="store_true", help="only models whose weights can be had at once")
    parser.add_argument("--mixers", action="store_true", help="list the mixers instead of the models")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.mixers:
        return _list_mixers(args)
    from zoo.weights.index import load_index, local_weights

    index = load_index()
    for option, known in (
        ("task", {m.task for m in index.values()}),
        ("family", {m.system for m in index.values()}),
        ("mixer", {x for m in index.values() for x in m.mixers}),
    ):
        value = getattr(args, option)
        if value is not None and value not in known:
            raise LookupError(f"--{option} {value}: {'; '.join(sorted(known))} are known{did_you_mean(value, known)}")
    found = [
        m
        for m in sorted(index.values(), key=lambda m: (m.system, m.params))
        if fnmatch.fnmatch(m.name, args.pattern)
        and args.task in (None, m.task)
        and args.family in (None, m.system)
        and (args.mixer is None or args.mixer in m.mixers or "any" in m.mixers)
        and (not args.weights or local_weights(m) is not None)
    ]
    if not found and args.pattern in ("*", ""):
        raise LookupError("no model matches these filters")
    if not found:
        raise LookupError(f"no model matches {args.pattern!r}{did_you_mean(args.pattern.strip('*'), index)}")
    if args.json:
        print_json(
            [
                {
                    "name": m.name,
                    "family": m.system,
                    "task": m.task,
                    "mixers": m.mixers,
                    "params": m.params,
                    "flops": m.flops,
                    "input_size": m.input_size,
                    "num_classes": m.num_classes,
                    "weights": m.weights_status,
                    "metrics": m.metrics,
                }
                for m in found
            ]
        )
    else:
        print_table(
            ("model", "family", "task", "mixers", "params", "FLOPs", "input", "weights"),
            [
                (
                    m.name,
                    m.system,
                    m.task,
                    "+".join(m.mixers),
                    human(m.params),
                    human(m.flops),
                    m.input_size,
                    m.weights_status,
                )
                for m in found
            ],
        )
    return 0


def _list_mixers(args: argparse.Namespace) -> int:
    from zoo.registry import MIXERS

    rows = []
    for name in MIXERS.names(args.pattern):
        cls = MIXERS.get(name)
        rows.append((name, cls.__name__, (cls.__doc__ or "").strip().splitlines()[0]))
    if args.json:
        print_json([{"name": n, "class": c, "summary": s} for n, c, s in rows])
    else:
        print_table(("mixer", "class", "what it is"), rows)
    return 0
