"""The process of one job: reads it from its arguments, writes rows as JSON lines to standard output.

    python -m zoo.arena.worker '{"settings": {...}, "job": {...}, "folder": "..."}'

It ends by itself when the process that started it does: standard input, which that one holds open, then ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.arena.grid import TASKS, Job, Settings
from zoo.arena.store import Row


def main(argument: str) -> int:
    """Run a job; its rows are on standard output when this returns. An error of the job itself is raised."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Rows alone go to standard output; what libraries print goes where errors go.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)
        given = json.loads(argument)
        settings, job = Settings.from_dict(given["settings"]), Job(**given["job"])
        import torch

        torch.set_num_threads(settings.threads)
        if not torch.cuda.is_available():  # its driver maps more than it uses
            _limit_memory(settings)
        for row in rows(settings, job, Path(given["folder"])):
            results.write(json.dumps(dataclasses.asdict(row)) + "\n")
            results.flush()
    return 0


def rows(settings: Settings, job: Job, folder: Path) -> Iterator[Row]:
    """All rows of a job."""
    if job.kind == "quality":
        task: Any = TASKS.get(job.task)
        return task.rows(settings, job, data_path(folder, job.task))
    if job.kind == "status":
        from zoo.arena.status import status_rows

        return status_rows(settings, job)
    if job.kind == "cost":
        from zoo.arena.measure import cost_rows

        return cost_rows(settings, job)
    if job.kind == "growth":
        from zoo.arena.growth import growth_rows

        return growth_rows(settings, job)
    raise ValueError(f"job {job.key!r}: accepted kinds are quality, status, cost and growth")


def data_path(folder: Path, task: str) -> Path:
    """Where the data is that all jobs of a task share."""
    return folder / f"{task}.npz"


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(3)


def _limit_memory(settings: Settings) -> None:
    """Refuse memory far beyond the limit, so that one mixer cannot take the machine down (where the system can)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    if sys.platform != "linux":
        return
    limit = int((2 * settings.memory_limit + 4096) * 2**20)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
