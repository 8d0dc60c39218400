"""What is compared: mixers x hosts x tasks, and the jobs that this makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoo.registry import MIXERS, Registry, resolve

#: Hosts by name: ``build(mixer, *, num_classes, image_size, small) -> Backbone``.
HOSTS = Registry("arena host", ("zoo.arena",))

#: Tasks by name: classes with ``prepare(settings, path)`` and ``rows(settings, job, path)``; see zoo.arena.train.
TASKS = Registry("arena task", ("zoo.arena",))

#: The host of jobs that measure a mixer by itself.
ALONE = "mixer alone"

#: What "quick" leaves of the grid: so many mixers.
QUICK_MIXERS = 12

#: Images up to this many pixels a side are trained on with small patches.
SMALL_IMAGES = 96


@dataclass(frozen=True)
class Settings:
    """How a comparison is done; two results are comparable when all but the lists of what is compared agree.

    Attributes:
        mixers, hosts, tasks: what is compared; a mixer is a registered name or the dotted path of a class.
        seeds: of the weights, the order of the images and the augmentation; one training each.
        epochs, batch_size, learning_rate: of the recipe.
        image_size: pixels a side of the training images.
        data: folder of the user's images; None for the embedded digits.
        max_train, max_test: images that are used at most, a stratified share of each class.
        severities: of the corruptions, 1 to 5.
        sizes: pixels a side of the images that cost is measured on.
        time_limit: seconds that one forward pass may take; larger ones are skipped.
        memory_limit: MiB that one forward pass may add; larger ones are skipped.
        threads: CPU threads of a job.
        train, cost, growth, status: which jobs there are.
    """

    mixers: tuple[str, ...]
    hosts: tuple[str, ...] = ("vit", "pyramid")
    tasks: tuple[str, ...] = ("classification",)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 6
    batch_size: int = 32
    learning_rate: float = 4e-3
    image_size: int = 28
    data: str | None = None
    max_train: int = 5000
    max_test: int = 1000
    severities: tuple[int, ...] = (3,)
    sizes: tuple[int, ...] = (224, 384, 512, 1024)
    time_limit: float = 3.0
    memory_limit: float = 3000.0
    threads: int = 1
    train: bool = True
    cost: bool = True
    growth: bool = True
    status: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "threads", "max_train", "max_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: accepted are 1 and above")
        if any(not 1 <= s <= 5 for s in self.severities) or not self.severities:
            raise ValueError(f"severities={self.severities}: accepted are 1 to 5")
        if not self.seeds or not self.sizes or min(self.sizes) < 64:
            raise ValueError(f"seeds={self.seeds}, sizes={self.sizes}: one of each is needed, sizes from 64 pixels")

    @property
    def recipe(self) -> dict[str, Any]:
        """All that must agree for results to be comparable (tuples as lists, as JSON gives them back)."""
        lists = ("mixers", "hosts", "tasks", "train", "cost", "growth", "status")
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in lists}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of ``dataclasses.asdict``, also after a trip through JSON."""
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        kind: "quality" (training, robustness), "status" (export), "cost" (latency, memory) or "growth" (of a mixer).
        task: empty where it does not matter.
    """

    kind: str
    host: str
    mixer: str
    task: str = ""

    @property
    def key(self) -> str:
        """Names the job in the results."""
        return "/".join(part for part in (self.kind, self.task, self.host, self.mixer) if part)

    @property
    def alone(self) -> bool:
        """Whether nothing else may run at the same time: it measures time."""
        return self.kind in ("cost", "growth")


def expand(settings: Settings) -> list[Job]:
    """All jobs, those that may run side by side first.

    Raises:
        UnknownNameError: a mixer, host or task that is not registered.
    """
    for registry, names in ((MIXERS, settings.mixers), (HOSTS, settings.hosts), (TASKS, settings.tasks)):
        for name in names:
            resolve(name, registry)
    pairs = [(host, mixer) for mixer in settings.mixers for host in settings.hosts]
    jobs: list[Job] = []
    if settings.train:
        jobs += [Job("quality", host, mixer, task) for task in settings.tasks for host, mixer in pairs]
    if settings.status:
        jobs += [Job("status", host, mixer) for host, mixer in pairs]
    if settings.cost:
        jobs += [Job("cost", host, mixer) for host, mixer in pairs]
    if settings.growth:
        jobs += [Job("growth", ALONE, mixer) for mixer in settings.mixers]
    return jobs


def spread(names: Sequence[str], count: int = QUICK_MIXERS, first: str = "softmax") -> list[str]:
    """``count`` names evenly out of a sorted list, and ``first``, the yardstick, where the list has it."""
    rest = sorted(n for n in names if n != first)
    chosen = [first] if first in names else []
    count -= len(chosen)
    if count >= len(rest):
        return chosen + rest
    return chosen + [rest[i * len(rest) // count] for i in range(count)]


def build_host(
    host: str, mixer: Any, *, num_classes: int = 10, image_size: int = 224, small: bool | None = None
) -> Any:
    """A host with a mixer in it.

    Args:
        host: name of an arena host.
        mixer: spec of a mixer.
        num_classes: of the classifier.
        image_size: that tables are made for.
        small: the narrow host for small images; by default for images up to ``SMALL_IMAGES`` pixels.
    """
    small = image_size <= SMALL_IMAGES if small is None else small
    return HOSTS.get(host)(mixer, num_classes=num_classes, image_size=image_size, small=small)


@HOSTS.register(name="vit")
def vit(mixer: Any, *, num_classes: int, image_size: int, small: bool) -> Any:
    """Plain ViT of two blocks: patches of 4 and 64 channels for small images, of 16 and 192 channels otherwise."""
    from zoo.backbones.hosts import ViT

    shape: dict[str, Any] = dict(patch_size=4, dim=64) if small else dict(patch_size=16, dim=192)
    return ViT(num_classes=num_classes, input_size=image_size, depth=2, num_heads=4, mixer=mixer, **shape)


@HOSTS.register(name="pyramid")
def pyramid(mixer: Any, *, num_classes: int, image_size: int, small: bool) -> Any:
    """Four stages of one block: stride 2 and 16 to 64 channels for small images, 4 and 32 to 192 otherwise."""
    from zoo.backbones.hosts import Pyramid

    shape: dict[str, Any] = (
        dict(dims=(16, 32, 48, 64), stem_stride=2) if small else dict(dims=(32, 64, 128, 192), stem_stride=4)
    )
    return Pyramid(
        num_classes=num_classes,
        input_size=image_size,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 4, 4),
        mixer=mixer,
        **shape,
    )
