"""One SQLite file of results: a row a measurement, and which jobs are finished."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, host TEXT NOT NULL, mixer TEXT NOT NULL,
    seconds REAL NOT NULL, error TEXT, finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS results (
    job TEXT NOT NULL REFERENCES jobs (key) ON DELETE CASCADE,
    task TEXT NOT NULL, host TEXT NOT NULL, mixer TEXT NOT NULL,
    measure TEXT NOT NULL, seed INTEGER, size INTEGER, device TEXT NOT NULL, value REAL, error TEXT,
    CHECK ((value IS NULL) <> (error IS NULL))
);
CREATE INDEX IF NOT EXISTS results_by_mixer ON results (mixer, host, measure);
"""


@dataclass(frozen=True)
class Row:
    """A measurement: a value, or the error that there is instead.

    Attributes:
        measure: what was measured, with its unit at the end where it has one ("latency_ms").
        seed: of a training.
        size: pixels a side of the image, or tokens for a mixer by itself.
        device: "cpu" or the name of a GPU.
    """

    measure: str
    value: float | None = None
    error: str | None = None
    seed: int | None = None
    size: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if (self.value is None) == (self.error is None):
            raise ValueError(f"row {self.measure!r} has value={self.value} and error={self.error!r}: one is needed")


class Store:
    """Results in a file; a job's rows are written together with the note that it is finished, or not at all.

    Args:
        path: of the file, made if missing.
        recipe: how results are measured. A file whose results were measured otherwise is refused.

    Raises:
        ValueError: the file has results of another recipe; the message names what differs.
    """

    def __init__(self, path: str | os.PathLike[str], recipe: dict[str, Any] | None = None):
        self.path = Path(path)
        if recipe is None and not self.path.is_file():
            raise FileNotFoundError(f"there are no results at {str(path)!r}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.path, timeout=30)
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA journal_mode = WAL")  # a killed writer leaves the last whole transaction
        with self._db:
            self._db.executescript(_SCHEMA)
        if recipe is not None:
            self._check(recipe)

    def _check(self, recipe: dict[str, Any]) -> None:
        old = self.meta("recipe")
        if old is None:
            self.set_meta("recipe", recipe)
            return
        differ = [f"{k}={recipe.get(k)!r} (there {old.get(k)!r})" for k in recipe if recipe.get(k) != old.get(k)]
        if differ:
            raise ValueError(
                f"{self.path} has results that were measured otherwise: {', '.join(differ)}; "
                f"give the same options or another --out"
            )

    def meta(self, name: str) -> Any:
        """A note by name; None where there is none."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a note (anything that JSON holds)."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def finish(self, job: Any, rows: Iterable[Row], seconds: float, error: str | None = None) -> None:
        """Keep a job's rows in place of those of an earlier attempt; ``error`` becomes a row too."""
        rows = list(rows)
        if error is not None:
            rows.append(Row("job", error=error))
        with self._db:
            self._db.execute("DELETE FROM jobs WHERE key = ?", (job.key,))
            self._db.execute(
                "INSERT INTO jobs (key, kind, task, host, mixer, seconds, error) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job.key, job.kind, job.task, job.host, job.mixer, seconds, error),
            )
            self._db.executemany(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (job.key, job.task, job.host, job.mixer, r.measure, r.seed, r.size, r.device, r.value, r.error)
                    for r in rows
                ],
            )

    def finished(self, with_errors: bool = True) -> set[str]:
        """Keys of the jobs that are finished; ``with_errors=False`` leaves out those that failed."""
        where = "" if with_errors else " WHERE error IS NULL"
        return {key for (key,) in self._db.execute(f"SELECT key FROM jobs{where}")}

    def rows(self, **equal: Any) -> list[dict[str, Any]]:
        """All results, as dicts, whose columns have the given values."""
        self._db.row_factory = sqlite3.Row
        where = " AND ".join(f"{column} IS :{column}" for column in equal)
        found = self._db.execute(f"SELECT * FROM results{' WHERE ' + where if where else ''} ORDER BY rowid", equal)
        result = [dict(row) for row in found]
        self._db.row_factory = None
        return result

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
