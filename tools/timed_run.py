"""Training for a given CPU time, which can be stopped and gone on with; the training benchmarks are made of it.

Time is the CPU time of the process, of all its threads: what else the machine does then changes little.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import nn

from zoo.data.shapes import Shapes
from zoo.files import save_atomically, write_file


@dataclass(frozen=True)
class Recipe:
    """What a run's steps are like: AdamW with a rate of its own for the backbone, and warm-up.

    Then the rate falls along half a cosine to ``floor`` of itself, or, with ``drop``, to a tenth when that share of the
    time is used. ``amp`` has the network compute in bfloat16.
    """

    lr: float
    backbone_lr: float
    weight_decay: float
    clip: float
    decay: float = 0.999
    warmup: int = 200
    floor: float = 0.02
    drop: float | None = None
    amp: bool = False

    def rate(self, step: int, share: float) -> float:
        """Of the greatest rate, in a step (from 0) when this share of the time is used."""
        warm = min(1.0, (step + 1) / self.warmup)
        if self.drop is not None:
            return warm * (1.0 if share < self.drop else 0.1)
        return warm * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, share))) / 2)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW over what is trained; parameters with "backbone" in their name have the backbone's rate."""
        inner = {id(p) for n, p in model.named_parameters() if "backbone" in n}
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            [
                {"params": [p for p in trained if id(p) not in inner], "base": self.lr},
                {"params": [p for p in trained if id(p) in inner], "base": self.backbone_lr},
            ],
            lr=self.lr,
            weight_decay=self.weight_decay,
        )


class TimedRun:
    """A model's training for a given time; a subclass builds the model, unless the run is finished, and evaluates it.

    Args:
        name: of the model.
        seconds: of CPU time in training.
        file: where its state is kept.
        point: the class of an evaluation, a dataclass.

    Raises:
        ValueError: ``file`` is of a run of another length.
    """

    #: evaluations, evenly over the time
    evaluations = 10

    def __init__(self, name: str, seconds: float, file: Path, point: type):
        self.name, self.seconds, self.file = name, seconds, file
        self.used, self.steps = 0.0, 0
        self.points: list[Any] = []
        self.average: dict[str, torch.Tensor] = {}
        self.saved = torch.load(file, weights_only=True) if file.is_file() else None
        if self.saved is not None:
            if self.saved["seconds"] != seconds:
                raise ValueError(
                    f"{file} is of a run of {self.saved['seconds']} s, not {seconds} s; use another folder"
                )
            self.average, self.used, self.steps = self.saved["average"], self.saved["used"], self.saved["steps"]
            self.points = [point(**p) for p in self.saved["points"]]

    @property
    def finished(self) -> bool:
        """Whether the time is used up and the last evaluation made."""
        return self.used >= self.seconds and len(self.points) > 0

    def begin(self, model: nn.Module, recipe: Recipe) -> None:
        """Take a model, or go on with it where the run was stopped.

        Args:
            model: called as ``model(**data_preprocessor(batch), mode="loss")``.
            recipe: how it is trained.
        """
        self.model: Any = model
        self.recipe = recipe
        self.optimizer = recipe.optimizer(model)
        if self.saved is None:
            self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        else:
            self.model.load_state_dict(self.saved["model"])
            self.optimizer.load_state_dict(self.saved["optimizer"])
            self.saved = None

    def save(self) -> None:
        """Write everything that going on needs."""
        content = {
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "used": self.used,
            "steps": self.steps,
            "points": [asdict(p) for p in self.points],
        }
        save_atomically(self.file, lambda f: torch.save(content, f))

    def batch(self) -> dict[str, Any]:
        """The batch of the next step: it follows from the step alone."""
        raise NotImplementedError

    def seed(self) -> int:
        """Of what is drawn at random in the next step."""
        return self.steps

    def step(self) -> None:
        """One step of the optimizer; its rate follows from the share of the time that is used.

        Raises:
            FloatingPointError: the loss is no finite number.
        """
        torch.manual_seed(self.seed())
        self.model.train()
        data = self.model.data_preprocessor(self.batch(), True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.amp):
            losses = self.model(**data, mode="loss")
        loss = sum(v for k, v in losses.items() if "loss" in k)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.name}: the loss of step {self.steps} is {float(loss)}")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        rate = self.recipe.rate(self.steps, self.used / self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        self.optimizer.step()
        decay = min(self.recipe.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)
                else:
                    self.average[key].copy_(value)
        self.steps += 1

    @torch.no_grad()
    def evaluate(self) -> Any:
        """:meth:`scored` of the averaged weights."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        try:
            return self.scored()
        finally:
            self.model.load_state_dict(own)

    def scored(self) -> Any:
        """An evaluation of ``self.model`` as it is."""
        raise NotImplementedError

    def run(
        self, note: Callable[[Any], None] = lambda point: None, enough: Callable[[Any], bool] = lambda point: False
    ) -> list[Any]:
        """Train to the end of the time; evaluates and saves on the way, and saves each minute, too.

        Args:
            note: gets each evaluation.
            enough: whether an evaluation is so good that the run may end.

        Returns:
            All evaluations.
        """
        saved = self.used
        while not self.finished and not (self.points and enough(self.points[-1])):
            started = time.process_time()
            self.step()
            self.used += time.process_time() - started
            due = self.seconds * (len(self.points) + 1) / self.evaluations
            if self.used >= min(due, self.seconds):
                self.points.append(self.evaluate())
                note(self.points[-1])
            elif self.used - saved < 60:
                continue
            self.save()
            saved = self.used
        return self.points


def shuffled_batch(data: Any, size: int, step: int, seed: int | None = None) -> dict[str, Any]:
    """The batch of a step; each epoch has an order of its own.

    Args:
        data: with ``set_epoch``.
        size: samples in a batch; no more than there are.
        step: from 0.
        seed: of another order.
    """
    epoch, number = divmod(step, len(data) // size)
    data.set_epoch(epoch)
    rng = np.random.default_rng(epoch if seed is None else (seed, epoch))
    return pseudo_collate([data[int(i)] for i in rng.permutation(len(data))[number * size : (number + 1) * size]])


def predictions(model: Any, data: Any, batch: int = 20) -> list[Any]:
    """What a model predicts for all of a data set."""
    found = []
    for start in range(0, len(data), batch):
        given = pseudo_collate([data[i] for i in range(start, min(start + batch, len(data)))])
        found += model(**model.data_preprocessor(given), mode="predict")
    return found


def prepared_backbone(
    file: Path,
    make: Callable[[], nn.Module],
    minutes: float,
    shapes: Shapes | None = None,
    lr: float = 1e-3,
    warmup: int = 0,
    half_size: float = 0.0,
    amp: bool = False,
) -> Path:
    """The file with a backbone's weights, trained on the classes of single shapes if it is not there.

    Args:
        file: where the weights are kept.
        make: builds the backbone with a classifier of as many classes as there are shapes.
        minutes: of CPU time in training.
        shapes: images with one shape each; 4000 of 64 pixels with all shapes by default.
        lr: of AdamW.
        warmup: steps in which the rate rises to that.
        half_size: share of the time, from the beginning, in which the images are halved: attention sees four times
            as many of them then.
        amp: compute in bfloat16.
    """
    if file.is_file():
        return file
    torch.manual_seed(0)
    data = shapes or Shapes("train", 4000, 64, data_seed=1)
    images = torch.stack([torch.from_numpy(data.load_image(i)).permute(2, 0, 1) for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    started, steps, right = time.process_time(), 0, 0.0
    while (passed := (time.process_time() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (steps + 1) / max(warmup, 1)) * (1 + math.cos(math.pi * passed)) / 2
        chosen = torch.randint(len(labels), (64,), generator=generator)
        x = images[chosen].float().sub(120).div(60)
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(3)
        if passed < half_size:
            x = nn.functional.avg_pool2d(x, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        right = 0.98 * right + 0.02 * float((logits.argmax(1) == labels[chosen]).float().mean())
    print(f"{file.stem}: {100 * right:.1f} % of the last training batches", flush=True)
    save_atomically(file, lambda f: torch.save(model.state_dict(), f))
    return file


def load_backbone(backbone: nn.Module, file: Path) -> None:
    """Put the prepared weights into a backbone without a classifier; all of its tensors must be there.

    Norms that only the maps have (a classifier reads the last map without them) stay as they are.
    """
    state = torch.load(file, weights_only=True)
    own = backbone.state_dict()
    known = {k: v for k, v in state.items() if k in own}
    missing = [k for k in own if k not in known and not k.startswith("norms.")]
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing[:4])}")
    backbone.load_state_dict(known, strict=False)


def write_points(points: Sequence[Any], kind: type, file: Path) -> None:
    """Evaluations, of a dataclass, as a table in CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(p) for p in points)
    write_file(file, text.getvalue())


def read_points(kind: type, file: Path) -> list[Any]:
    """The evaluations of a table that :func:`write_points` wrote; none where there is no file."""
    if not file.is_file():
        return []
    kinds: dict[Any, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    kinds["float | None"] = lambda text: float(text) if text else None
    with file.open(encoding="utf-8", newline="") as opened:
        return [kind(*(kinds[f.type](row[f.name]) for f in fields(kind))) for row in csv.DictReader(opened)]


def with_earlier(points: Sequence[Any], file: Path, run: Callable[[Any], Any]) -> list[Any]:
    """The evaluations that a table has of other runs, then these.

    Args:
        points: at least one.
        file: of :func:`write_points`.
        run: what the run of an evaluation is known by.
    """
    new = {run(p) for p in points}
    return [*(p for p in read_points(type(points[0]), file) if run(p) not in new), *points]
