"""Write ``docs/mixers_table.md``: what every mixer does in both hosts, by the checks that also test it.

    python tools/mixer_table.py [--jobs 2]      # check everything again
    python tools/mixer_table.py --missing       # only mixers that the table lacks; drop those that are gone

ONNX export takes some seconds a mixer: a few minutes for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from zoo.arena.status import brief
from zoo.arena.support import CHECKS, HOSTS
from zoo.files import write_file
from zoo.mixers.base import Mixer
from zoo.registry import MIXERS

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "mixers_table.md"

#: Check -> host -> why it failed; no entry where it did not.
Failures = dict[str, dict[str, str]]


def check(mixer: str) -> tuple[str, Failures]:
    """All checks of a mixer in all hosts."""
    torch.set_num_threads(1)
    failures: Failures = {}
    for name, function in CHECKS.items():
        for host in HOSTS:
            try:
                function(host, mixer)
            except Exception as error:
                failures.setdefault(name, {})[host] = brief(error)
    return mixer, failures


def page(found: dict[str, Failures]) -> str:
    """The table in Markdown; what fails is "no" or the host that it fails in, with the reason below."""
    lines = [
        "# What every mixer does",
        "",
        "Each mixer with its default settings in both hosts (one block of a ViT, two stages of a pyramid), by the",
        "checks of `zoo/arena/support.py`, which `tests/mixers/test_every_mixer.py` runs too. This page is written by",
        "`tools/mixer_table.py`.",
        "",
        "- **growth**: how time and memory grow with the number of tokens, as the mixer states it;",
        "- **map**: it gives an attention map between positions; **prefix**: it mixes a class token by itself;",
        *(
            f"- **{name}**: {function.__doc__.splitlines()[0][0].lower()}{function.__doc__.splitlines()[0][1:]}"
            for name, function in CHECKS.items()
        ),
        "",
        "| mixer | growth | map | prefix | " + " | ".join(CHECKS) + " |",
        "|---|---|---|---|" + "---|" * len(CHECKS),
    ]
    notes: list[str] = []
    for mixer in sorted(found):
        cls = MIXERS.get(mixer)
        about = page_of(mixer)
        cells = [
            f"[`{mixer}`]({about})" if about else f"`{mixer}`",
            cls.growth,
            _yes(cls.attention_map is not Mixer.attention_map),
            _yes(cls.takes_prefix),
        ]
        for name in CHECKS:
            failed = found[mixer].get(name, {})
            cells.append("yes" if not failed else "no" if len(failed) == len(HOSTS) else f"not in {next(iter(failed))}")
            for reason in sorted(set(failed.values())):
                text = reason.replace("|", "\\|").replace(str(ROOT), ".")
                notes.append(f"- `{mixer}`, {name} ({', '.join(h for h in failed if failed[h] == reason)}): {text}")
        lines.append("| " + " | ".join(cells) + " |")
    if notes:
        lines += ["", "## What fails, and why", "", *notes]
    return "\n".join(lines) + "\n\n<!-- " + json.dumps(found, sort_keys=True).replace("--", "- -") + " -->\n"


def page_of(mixer: str) -> str:
    """The page on a mixer below docs/, named after it or building it; empty where there is none."""
    folder = TABLE.parent / "models"
    if (folder / f"{mixer}.md").is_file():
        return f"models/{mixer}.md"
    built = (f'mixer="{mixer}"', f'type="{mixer}"')
    # A page that builds several mixers is about the one that it builds first.
    found = [
        (text.index(b), p.name)
        for p in sorted(folder.glob("*.md"))
        for text in [p.read_text(encoding="utf-8")]
        for b in built
        if b in text
    ]
    return f"models/{min(found)[1]}" if found else ""


def read() -> dict[str, Failures]:
    """What the table was made of."""
    if not TABLE.is_file():
        return {}
    text = TABLE.read_text(encoding="utf-8")
    return json.loads(text[text.rindex("<!-- ") + 5 : text.rindex(" -->")])


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="check only mixers that the table lacks")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()
    names = MIXERS.names()
    found = {n: f for n, f in read().items() if n in names} if args.missing else {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for mixer, failures in pool.map(check, [n for n in names if n not in found]):
            found[mixer] = failures
            print(
                f"{mixer}: {'; '.join(f'no {k} ({len(v)})' for k, v in failures.items()) or 'everything'}", flush=True
            )
    write_file(TABLE, page(found))
    print(f"written: {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
