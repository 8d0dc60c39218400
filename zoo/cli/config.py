"""``zoo config``: the configs by name, what one resolves to, and whether its keys are right."""

from __future__ import annotations

import argparse

from zoo.cli.output import print_json, print_table

HELP = "list configs, show one with all it inherits, or check that every key in it is known"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="names of the configs")
    listing.add_argument("pattern", nargs="?", default="*", help="glob pattern")
    listing.add_argument("--json", action="store_true", help="print JSON")
    show = actions.add_parser("show", help="a config with everything it inherits")
    show.add_argument("config")
    show.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")
    check = actions.add_parser("check", help="fail on the first key that nothing takes")
    check.add_argument("config", nargs="+")


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "show": _show, "check": _check}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    import fnmatch

    from zoo.engine.config import config_doc, list_configs

    found = {n: p for n, p in sorted(list_configs().items()) if fnmatch.fnmatch(n, args.pattern)}
    docs = {n: (config_doc(p).splitlines() or [""])[0] for n, p in found.items()}
    if args.json:
        print_json([{"name": n, "file": str(p), "summary": docs[n]} for n, p in found.items()])
    else:
        print_table(("config", "what it trains"), docs.items())
    return 0


def _show(args: argparse.Namespace) -> int:
    from zoo.engine.config import config_text, load_config

    print(config_text(load_config(args.config, args.cfg_options)), end="")
    return 0


def _check(args: argparse.Namespace) -> int:
    from zoo.engine.config import load_config

    for config in args.config:
        load_config(config)
        print(f"{config}: every key is known")
    return 0
