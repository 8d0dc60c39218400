"""Where TaylorShift's linear form becomes cheaper than its direct one on this machine, beside the paper's formula.

    OMP_NUM_THREADS=1 python kernels/benchmarks/taylor_crossover.py [--page docs/models/taylorshift.md] [--rounds 9]

Both forms run in turn on the same tensors; a ratio is the median over rounds of (direct's time / linear's). From the
formula's number of tokens on, tokens are raised or lowered by a factor of 2^(1/2), then 2^(1/8), until the ratio passes
1, and where it passes is interpolated. With ``--page`` the table replaces what is between the markers there.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import write

from zoo_kernels.linear_attention import taylor_attention

ROOT = Path(__file__).resolve().parents[2]
START, END = "<!-- crossover: start -->", "<!-- crossover: end -->"
#: channels of all heads together, so that every head_dim does the same work in its projections
WIDTH = 256
#: the direct form's weights of all heads may take so many bytes
MAX_BYTES = 2 * 10**9


def formula(d: int) -> float:
    """Tokens at which the paper's counts of operations are the same: 4 N^2 d + 6 N^2 = N (4 d^3 + 10 d^2 + 9 d + 4)."""
    return (4 * d**3 + 10 * d**2 + 9 * d + 4) / (4 * d + 6)


def ratio(d: int, tokens: int, training: bool, rounds: int) -> float:
    """Direct's time over linear's, median of interleaved rounds."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, WIDTH // d, tokens, d, generator=generator).requires_grad_(training) for _ in range(3))

    def call(form: str) -> Callable[[], None]:
        def run() -> None:
            with torch.set_grad_enabled(training):
                out = taylor_attention(q, k, v, form=form)
                if training:
                    out.sum().backward()

        return run

    forms = [call("direct"), call("linear")]
    for run in forms:
        run()
    begin = time.process_time()
    forms[0]()
    repeats = max(1, math.ceil(0.02 / max(1e-6, time.process_time() - begin)))
    found = []
    for _ in range(rounds):
        times = []
        for run in forms:
            begin = time.process_time()
            for _ in range(repeats):
                run()
            times.append(time.process_time() - begin)
        found.append(times[0] / times[1])
    return statistics.median(found)


def crossing(d: int, training: bool, rounds: int) -> float | None:
    """Tokens at which both forms take the same time; None if that is beyond what memory allows."""
    tokens = float(d * d + d + 1)
    here = ratio(d, round(tokens), training, rounds)
    for step in (2**0.5, 2**0.125):
        while True:
            following = tokens * (step if here < 1 else 1 / step)
            if WIDTH // d * following**2 * 4 * (3 if training else 2) > MAX_BYTES:
                return None
            there = ratio(d, round(following), training, rounds)
            if (here < 1) != (there < 1):
                break
            tokens, here = following, there
    share = math.log(here) / (math.log(here) - math.log(there))
    return tokens * (following / tokens) ** share


def table(dims: list[int], rounds: int) -> str:
    """The table in Markdown, with what it was measured on."""
    rows = [
        "| head_dim | formula | measured, forward | of the formula | measured, forward + backward | of the formula |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for d in dims:
        cells = [str(d), f"{formula(d):.0f}"]
        for training in (False, True):
            found = crossing(d, training, rounds)
            cells += ["beyond memory", "-"] if found is None else [f"{found:.0f}", f"{found / formula(d):.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    threads = torch.get_num_threads()
    version = torch.__version__.split("+")[0]
    rows += [
        "",
        f"Tokens at which both forms take the same time. {platform.processor() or platform.machine()}, {threads} "
        f"thread{'s' if threads > 1 else ''}, float32, {WIDTH} channels in all heads, torch {version}, "
        f"{datetime.date.today()}, {rounds} interleaved rounds.",
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help=f"write the table there, between {START} and {END}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 32, 64])
    args = parser.parse_args()
    text = table(args.dims, args.rounds)
    if args.page is None:
        print(text)
        return
    old = args.page.read_text(encoding="utf-8")
    before, found, rest = old.partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        parser.error(f"{args.page} has no markers {START} and {END}")
    write(args.page, f"{before}{START}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
