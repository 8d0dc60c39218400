"""The error of everything that reads checkpoints."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, refused, or of another model. The message says which and why."""
