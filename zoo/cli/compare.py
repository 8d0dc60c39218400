"""``zoo compare``: which attention for my data and my latency budget; every mixer by one recipe and one ruler."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HELP = "compare mixers in the same hosts: accuracy, robustness, latency, memory, growth, export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is compared")
    what.add_argument("--mixers", help="names or glob patterns, comma-separated, or dotted paths of classes")
    what.add_argument("--all", action="store_true", help="every registered mixer")
    what.add_argument("--hosts", help="comma-separated (default: all)")
    what.add_argument(
        "--tasks", default="classification", help="of classification, segmentation, detection (default: the first)"
    )
    what.add_argument("--data", help="folder of your images, one folder a class (default: the embedded digits)")
    what.add_argument("--quick", action="store_true", help="12 mixers, fewer seeds, epochs and sizes: 10 minutes")
    recipe = parser.add_argument_group("how")
    recipe.add_argument("--seeds", help="comma-separated (default: 0,1,2)")
    recipe.add_argument("--epochs", type=int, help="default 6")
    recipe.add_argument("--image-size", type=int, help="pixels a side of training images (default 28; 64 with --data)")
    recipe.add_argument("--max-train", type=int, help="training images at most (default 5000)")
    recipe.add_argument("--max-test", type=int, help="test images at most (default 1000)")
    recipe.add_argument("--sizes", help="pixels a side that cost is measured at (default: 224,384,512,1024)")
    recipe.add_argument("--severities", help="of the corruptions, 1 to 5 (default: 3)")
    recipe.add_argument("--time-limit", type=float, help="seconds a forward pass may take (default 3)")
    recipe.add_argument("--memory-limit", type=float, help="MiB a forward pass may add (default 3000)")
    recipe.add_argument("--threads", type=int, help="CPU threads of a job (default 1)")
    recipe.add_argument("--no-train", action="store_true", help="no training")
    recipe.add_argument("--no-cost", action="store_true", help="no latency and memory")
    recipe.add_argument("--no-status", action="store_true", help="no torch.export and ONNX")
    recipe.add_argument("--no-growth", action="store_true", help="no growth of mixers by themselves")
    recipe.add_argument(
        "--growth", action="store_true", help="growth alone; exit status 1 if a mixer grows faster than it claims"
    )
    running = parser.add_argument_group("running")
    running.add_argument("--out", default="work_dirs/arena", help="folder of the results (default work_dirs/arena)")
    running.add_argument("--report", help="folder of the report (default: that of --out)")
    running.add_argument("--report-only", action="store_true", help="run nothing; report what is there")
    running.add_argument("--jobs", type=int, default=2, help="trainings at a time (default 2)")
    running.add_argument("--timeout", type=float, default=900, help="seconds after which a job is killed (default 900)")
    running.add_argument("--retry", action="store_true", help="run again what ended with an error")
    running.add_argument("--budget-ms", type=float, help="name the most accurate that are at most so slow")
    running.add_argument("--budget-size", type=int, default=224, help="image size of the budget (default 224)")


def run(args: argparse.Namespace) -> int:
    from zoo.arena.report import growth_table, machine, write_report
    from zoo.arena.run import RESULTS
    from zoo.arena.run import run as run_jobs
    from zoo.arena.store import Store

    out = Path(args.out)
    if args.report_only:
        store = Store(out / RESULTS)
    else:
        settings = settings_of(args)
        print(f"{len(settings.mixers)} mixers: {', '.join(settings.mixers)}", flush=True)
        store = run_jobs(
            settings,
            out,
            workers=args.jobs,
            timeout=args.timeout,
            retry=args.retry,
            report=lambda line: print(line, flush=True),
        )
        store.set_meta("machine", machine())
    if args.growth:
        table, kept = growth_table(store)
        for mixer, claim, fitted, verdict in table:
            print(f"{mixer}\t{claim}\t{'-' if fitted is None else f'{fitted:.3f}'}\t{verdict}")
        return 0 if kept else 1
    page = write_report(store, args.report or out)
    print(f"the report is {page}")
    if args.budget_ms is not None:
        _print_budget(store, args.budget_ms, args.budget_size)
    return 0


def settings_of(args: argparse.Namespace) -> Any:
    """The settings that the command line asks for.

    Raises:
        ValueError: an option cannot be read, or neither mixers nor ``--all`` nor ``--quick`` are given.
        UnknownNameError: no mixer matches.
    """
    from zoo.arena.grid import HOSTS, Settings

    given: dict[str, Any] = {
        "mixers": tuple(_mixers(args)),
        "hosts": tuple(_words(args.hosts)) or tuple(HOSTS.names()),
        "tasks": tuple(_words(args.tasks)),
    }
    if args.quick:
        given |= {"seeds": (0, 1), "epochs": 4, "sizes": (224, 384, 512), "time_limit": 1.5, "growth": False}
    for name in ("seeds", "sizes", "severities"):
        if getattr(args, name) is not None:
            given[name] = _numbers(name, getattr(args, name))
    for name in ("epochs", "image_size", "max_train", "max_test", "time_limit", "memory_limit", "threads"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    if args.data is not None:
        given["data"] = str(Path(args.data).resolve())
        given.setdefault("image_size", 64)
    for name in ("train", "cost", "status", "growth"):
        if getattr(args, f"no_{name}"):
            given[name] = False
    if args.growth:
        given |= {"train": False, "cost": False, "status": False, "growth": True}
    return Settings(**given)


def _mixers(args: argparse.Namespace) -> list[str]:
    from zoo.arena.grid import spread
    from zoo.registry import MIXERS

    if args.mixers:
        chosen: list[str] = []
        for word in _words(args.mixers):
            found = [word] if "." in word else MIXERS.names(word) or [MIXERS.entry(word).name]
            chosen += [name for name in found if name not in chosen]
        return chosen
    if args.quick and not args.all:
        return spread(MIXERS.names())
    if args.all or args.growth:
        return MIXERS.names()
    raise ValueError("nothing to compare: give --mixers NAME,NAME, --quick (12 mixers) or --all")


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _numbers(name: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"--{name} {text!r}: accepted are comma-separated whole numbers")
    return tuple(int(word) for word in words)


def _print_budget(store: Any, milliseconds: float, size: int) -> None:
    from zoo.arena.report import within_budget
    from zoo.cli.output import print_table

    found = within_budget(store, milliseconds, size)
    if not found:
        print(f"nothing takes at most {milliseconds:g} ms at {size} px", file=sys.stderr)
        return
    header = ("mixer", "host", "top-1 %", f"ms at {size} px")
    print_table(header, [(m, h, f"{top1:.1f}", f"{ms:.1f}") for m, h, top1, ms in found[:10]])
