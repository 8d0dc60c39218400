"""Runs the jobs of a comparison in processes of their own, keeps their rows, and goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.arena.grid import TASKS, Job, Settings, expand
from zoo.arena.store import Row, Store
from zoo.arena.worker import data_path

#: The file of results in the folder of a comparison.
RESULTS = "results.sqlite"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a job's process left."""

    job: Job
    rows: list[Row]
    error: str | None
    seconds: float


def run(
    settings: Settings,
    folder: str | os.PathLike[str],
    *,
    workers: int = 2,
    timeout: float = 900.0,
    retry: bool = False,
    report: Report = print,
) -> Store:
    """Run every job that is not finished; a job that fails, hangs or is killed is a row with the reason.

    Jobs that train run ``workers`` at a time; those that measure time run one at a time, after them.

    Args:
        settings: what is compared and how.
        folder: for the results and the data that jobs share.
        workers: jobs at a time.
        timeout: seconds after which a job is killed.
        retry: run jobs again that ended with an error.
        report: gets a line of text for each job.

    Raises:
        ValueError: the folder has results of other settings; ``workers`` or ``timeout`` is not positive.
    """
    if workers < 1 or timeout <= 0:
        raise ValueError(f"workers={workers} and timeout={timeout} must be positive")
    folder = Path(folder).resolve()
    jobs = expand(settings)
    store = Store(folder / RESULTS, settings.recipe)
    done = store.finished(with_errors=not retry)
    left = [job for job in jobs if job.key not in done]
    if len(left) < len(jobs):
        report(f"{len(jobs) - len(left)} of {len(jobs)} jobs are finished already")
    for name in {job.task for job in left if job.kind == "quality"}:
        task: Any = TASKS.get(name)
        task.prepare(settings, data_path(folder, name))
    counter = _Counter(len(left), report)
    for phase, count in ((False, workers), (True, 1)):
        _run_phase(settings, folder, store, [j for j in left if j.alone is phase], count, timeout, counter)
    return store


class _Counter:
    """Says which job is finished, how many are left and how long that may take."""

    def __init__(self, total: int, report: Report):
        self.total, self.report = total, report
        self.done = 0
        self.started = time.monotonic()

    def finished(self, outcome: Outcome) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        note = f"  {outcome.error}" if outcome.error else _headline(outcome.rows)
        self.report(
            f"[{self.done}/{self.total}] {outcome.job.key}  {outcome.seconds:.1f} s{note}"
            + (f"  (about {left / 60:.0f} min left)" if self.done < self.total else "")
        )


def _headline(rows: Sequence[Row]) -> str:
    """The most telling values of a job, for its line of progress."""
    shown = []
    for name, unit in (
        ("top1", "%"),
        ("mIoU", "%"),
        ("AP", "%"),
        ("latency_ms", "ms"),
        ("mixer_time_exponent", ""),
        ("onnx", ""),
    ):
        values = [r.value for r in rows if r.measure == name and r.value is not None]
        if values:
            shown.append(f"{name} {' '.join(f'{v:.3g}' for v in values)} {unit}".rstrip())
    failed = sum(r.error is not None for r in rows)
    return "  " + ", ".join(shown + ([f"{failed} without a value"] if failed else []))


def _run_phase(
    settings: Settings,
    folder: Path,
    store: Store,
    jobs: list[Job],
    workers: int,
    timeout: float,
    counter: _Counter,
) -> None:
    running: set[subprocess.Popen[bytes]] = set()
    stopping = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        pending = {pool.submit(_run_job, settings, folder, job, timeout, running, stopping) for job in jobs}
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    outcome = future.result()
                    store.finish(outcome.job, outcome.rows, outcome.seconds, outcome.error)
                    counter.finished(outcome)
        except BaseException:
            stopping.set()
            for future in pending:
                future.cancel()
            for process in list(running):
                process.kill()
            raise


def _run_job(
    settings: Settings,
    folder: Path,
    job: Job,
    timeout: float,
    running: set[subprocess.Popen[bytes]],
    stopping: threading.Event,
) -> Outcome:
    argument = json.dumps(
        {"settings": dataclasses.asdict(settings), "job": dataclasses.asdict(job), "folder": str(folder)}
    )
    started = time.monotonic()
    # The worker ends when this pipe does, that is with this process, however that ends.
    read_end, write_end = os.pipe()
    try:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "zoo.arena.worker", argument],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(settings, job),
            )
            running.add(process)
            if stopping.is_set():
                process.kill()
            try:
                output, _ = process.communicate(timeout=timeout)
                late = False
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                late = True
            running.discard(process)
            errors.seek(0)
            said = errors.read().decode(errors="replace")
    finally:
        os.close(read_end)
        os.close(write_end)
    seconds = time.monotonic() - started
    rows = [Row(**json.loads(line)) for line in output.decode().splitlines() if line.endswith("}")]
    error = None
    if late:
        error = f"killed after {timeout:g} s"
    elif process.returncode:
        error = _why(process.returncode, said)
    return Outcome(job, rows, error, seconds)


def environment(settings: Settings, job: Job) -> dict[str, str]:
    """Environment variables of a job's process.

    A growth job's process keeps the memory that it has freed. Otherwise the C library gives large blocks back and
    faults them in again, which large maps pay for and small ones do not: that would count as growth of the mixer.
    """
    threads = str(settings.threads)
    given = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if job.kind == "growth":
        given |= {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    return given


def _why(status: int, said: str) -> str:
    """Why a process failed, in one line."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"killed by {name}"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"exit status {status} without a message"
