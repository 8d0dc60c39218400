"""Serial training: stages of one config, each of which starts from the weights that the one before ended with.

A config names its stages; a stage is a name and changes to the config::

    stages = [
        dict(name="liver", train_cfg=dict(max_epochs=20)),
        dict(name="spleen", model=dict(num_classes=3), freeze=["network.encoder.*"], optim_wrapper=dict(...)),
    ]

Stage n works in ``<work_dir>/<n>_<name>``; ``<work_dir>/stages.json`` says which are finished and what with.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.dist import barrier, get_rank
from torch import nn

from zoo.engine import checkpoint as files
from zoo.engine.config import ConfigError, check_config, config_text, known_keys
from zoo.files import write_file
from zoo.registry import did_you_mean
from zoo.weights.adapt import is_head
from zoo.weights.errors import CheckpointError
from zoo.weights.load import LoadReport

if TYPE_CHECKING:
    from zoo.engine.runner import Runner

#: The file in the work directory that says how far the stages are.
STATE = "stages.json"
#: Keys of a stage that are no keys of a config.
OWN_KEYS = ("name", "start_from")
#: What the training itself decides for each stage.
RESERVED = frozenset({"stages", "work_dir", "resume", "load_from", "load_strict", "launcher", "experiment_name"})
STARTS = ("last", "best")
#: Keys whose values are about the run, not about what is trained.
_RUN_KEYS = (*RESERVED, "cfg", "log_level", "visualizer", "log_processor", "env_cfg")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FORMAT = 1


@dataclass
class Stage:
    """One stage, as it is trained.

    Attributes:
        number: from 1.
        name: of the stage.
        start_from: which weights of the stage before it starts from: "last", or "best", those with the best metric.
        config: the whole config, without ``stages``.
    """

    number: int
    name: str
    start_from: str
    config: Config

    @property
    def folder(self) -> str:
        """Name of its work directory inside that of the training."""
        return f"{self.number}_{self.name}"

    def settings(self) -> dict[str, Any]:
        """What it trains and how, as flat JSON-ready pairs; a finished stage must not be resumed with others."""
        values = {k: v for k, v in self.config.to_dict().items() if not k.startswith("_") and k not in _RUN_KEYS}
        return {"start_from": self.start_from, **_flat(values)}


@dataclass
class StageState:
    """What ``stages.json`` says of a stage: begun, and with ``weights`` (a file in its folder) finished."""

    name: str
    settings: dict[str, Any]
    weights: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def stages_of(config: Config) -> list[Stage]:
    """The stages of a config, each with its whole config.

    Dicts of a stage are merged into the config's, at any depth; a dict whose ``type`` is another, or that has
    ``_delete_=True``, replaces the config's. Everything else replaces.

    Raises:
        ConfigError: there are none, a name is missing, unfit for a folder or used twice, or a key is unknown or not a
            stage's to say; the message names the stage.
    """
    where = config.filename or "config"
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    given = values.pop("stages", None)
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(f"{where}: stages={given!r}: accepted is a list of dict(name=..., and changes to the config)")
    found: list[Stage] = []
    for number, changes in enumerate(given, 1):
        at = f"{where}: stage {number}"
        if not isinstance(changes, Mapping) or not isinstance(changes.get("name"), str):
            raise ConfigError(f"{at} has no name: accepted is dict(name=..., and changes to the config)")
        name, start = changes["name"], changes.get("start_from", "last")
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"{at}: name={name!r} is no folder's name; accepted are letters, digits and . _ -")
        if name.lower() in (s.name.lower() for s in found):
            raise ConfigError(f"{at}: name={name!r} is that of an earlier stage; each needs its own")
        at = f"{at} ({name!r})"
        if start not in STARTS:
            raise ConfigError(f"{at}: start_from={start!r}: accepted are {', '.join(map(repr, STARTS))}")
        merged = copy.deepcopy(values)
        for key, value in changes.items():
            if key in OWN_KEYS:
                continue
            if key in RESERVED:
                raise ConfigError(f"{at}: {key!r} is not a stage's to say; set it for the whole training")
            if key not in known_keys():
                raise ConfigError(f"{at}: unknown key {key!r}{did_you_mean(key, [*known_keys(), *OWN_KEYS])}")
            merged[key] = _merged(merged.get(key), value)
        whole = Config(merged, filename=config.filename, cfg_text="", format_python_code=False)
        found.append(Stage(number, name, start, whole))
    return found


def check_stages(config: Config) -> None:
    """Raise ConfigError for the first key of a stage's whole config that nothing takes."""
    for stage in stages_of(config):
        try:
            check_config(stage.config)
        except ConfigError as error:
            raise ConfigError(f"in stage {stage.number} ({stage.name!r}): {error}") from error


def config_of_stage(config: Config, checkpoint: str | Path | None = None) -> Config:
    """The config of the stage in whose folder a checkpoint lies; of the last stage for any other file."""
    stages = stages_of(config)
    folder = Path(checkpoint).resolve().parent.name if checkpoint is not None else ""
    return next((s for s in stages if s.folder == folder), stages[-1]).config


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(new, Mapping):
        return copy.deepcopy(new)
    changes = {k: v for k, v in new.items() if k != "_delete_"}
    other = "type" in changes and isinstance(old, Mapping) and changes["type"] != old.get("type")
    if not isinstance(old, Mapping) or new.get("_delete_") or other:
        return {k: _merged(None, v) for k, v in changes.items()}
    return {**old, **{k: _merged(old.get(k), v) for k, v in changes.items()}}


class StagedTraining:
    """Trains the stages of a config one after the other.

    A stage starts from the weights of the one before (averaged ones where it kept an average). What does not fit may
    only be the classifier, or what the stage lists as ``load_except``; the log says what was left as initialised.

    Args:
        config: a config with ``stages`` and ``work_dir``; ``load_from`` is where the first stage starts.
        resume: go on where the work directory stands: finished stages are passed over, the one that was interrupted
            continues from its last good checkpoint.

    Raises:
        ConfigError: a stage is wrong (see :func:`stages_of`), the work directory holds a training that ``resume``
            does not continue, or a finished stage's config has changed; the message names the stage and the keys.
        CheckpointError: the state file is damaged.
    """

    def __init__(self, config: Config, *, resume: bool = False):
        self.work_dir = Path(config.work_dir)
        self.load_from = config.get("load_from")
        self.load_strict = config.get("load_strict", True)
        self.stages = stages_of(config)
        self.states = self._read_state(resume)
        self._check_folders()

    @property
    def finished(self) -> int:
        """How many stages are finished."""
        return sum(s.weights is not None for s in self.states)

    def run(self) -> Runner:
        """Train what is left; gives the last stage's runner.

        Raises:
            ConfigError: weights of a stage do not fit the next, beyond its classifier and ``load_except``.
            CheckpointError: the weights of a finished stage are gone or damaged.
            SystemExit: 143 after SIGTERM, when the stage is saved.
        """
        runner: Runner | None = None
        for stage in self.stages[min(self.finished, len(self.stages) - 1) :]:
            del runner  # and with it the model of the stage before
            runner = self._train(stage)
        assert runner is not None
        return runner

    def weights_of(self, stage: Stage) -> Path:
        """The file that a finished stage ended with, as the next one starts from it.

        Raises:
            CheckpointError: it is gone or damaged.
        """
        following = self.stages[stage.number] if stage.number < len(self.stages) else None
        folder = self.work_dir / stage.folder
        if following is not None and following.start_from == "best":
            best = sorted(folder.glob("best_*.pth"))
            if len(best) != 1:
                raise CheckpointError(
                    f"stage {following.number} ({following.name!r}) starts from the best weights of {stage.name!r}, "
                    f"and {folder} has {len(best)} files best_*.pth; the checkpoint hook of that stage needs save_best"
                )
            file = best[0]
        else:
            name = self.states[stage.number - 1].weights
            assert name is not None
            file = folder / name
        wrong = files.what_is_wrong(file)
        if wrong is not None:
            raise CheckpointError(f"the weights of stage {stage.number} ({stage.name!r}), {file}: {wrong}")
        return file

    def _train(self, stage: Stage) -> Runner:
        from zoo.engine.runner import Runner

        config = copy.deepcopy(stage.config)
        config.work_dir = str(self.work_dir / stage.folder)
        begun = stage.number <= len(self.states)
        config.resume = begun and files.find_last_good(config.work_dir) is not None
        config.load_from = None
        if not config.resume:
            before = self.stages[stage.number - 2] if stage.number > 1 else None
            config.load_from = self.load_from if before is None else str(self.weights_of(before))
            config.load_strict = self.load_strict if before is None else False
        runner = Runner.from_cfg(config)
        runner.logger.info(f"stage {stage.number} of {len(self.stages)}: {stage.name}")
        if stage.number > 1 and runner.load_report is not None:
            _check_report(runner.load_report, runner.bare_model, stage)
        state = StageState(stage.name, stage.settings())
        if begun and (changed := _differences(self.states[stage.number - 1].settings, state.settings)):
            runner.logger.warning(f"stage {stage.number} ({stage.name!r}) goes on with another config: {changed}")
        self.states[stage.number - 1 :] = [state]
        self._write_state()
        runner.train()
        barrier()  # rank 0 writes the checkpoint that every rank reads next
        state.weights = (Path(config.work_dir) / files.POINTER).read_text(encoding="utf-8").strip()
        state.metrics = _last_metrics(runner)
        self._write_state()
        return runner

    # -- state ----------------------------------------------------------------------------------------------------

    def _read_state(self, resume: bool) -> list[StageState]:
        file = self.work_dir / STATE
        if not file.is_file():
            return []
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            states = [StageState(**s) for s in content["stages"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}); delete it and the stages' folders to start anew"
            ) from None
        if not resume:
            done = sum(s.weights is not None for s in states)
            raise ConfigError(
                f"{self.work_dir} holds a training with {done} of {len(self.stages)} stages finished: go on with "
                f"resume, or choose another work directory"
            )
        if len(states) > len(self.stages):
            raise ConfigError(f"{file} has {len(states)} stages and the config {len(self.stages)}: stages are missing")
        for state, stage in zip(states, self.stages):
            if state.name != stage.name:
                raise ConfigError(
                    f"stage {stage.number} of {self.work_dir} is {state.name!r}, the config has {stage.name!r}"
                )
            changed = _differences(state.settings, stage.settings())
            if state.weights is not None and changed:
                raise ConfigError(
                    f"stage {stage.number} ({stage.name!r}) is finished, but its config has changed since: {changed}; "
                    f"undo that, or start anew in another work directory"
                )
        return states

    def _check_folders(self) -> None:
        for stage in self.stages[len(self.states) :]:
            folder = self.work_dir / stage.folder
            if files.checkpoint_files(folder):
                raise ConfigError(
                    f"{folder} holds checkpoints, but {STATE} does not know that stage as begun; move them"
                )

    def _write_state(self) -> None:
        if get_rank() == 0:
            content = {"format": _FORMAT, "stages": [vars(s) for s in self.states]}
            write_file(self.work_dir / STATE, json.dumps(content, indent=1) + "\n")


def _check_report(report: LoadReport, model: nn.Module, stage: Stage) -> None:
    """Refuse what does not fit and is neither the classifier nor listed: it would silently begin from noise."""
    different = [*report.missing, *report.unexpected, *report.mismatched, *report.other_dtype]
    wrong = [k for k in different if not is_head(model, k)]
    if wrong:
        raise ConfigError(
            f"stage {stage.number} ({stage.name!r}) cannot start from the stage before: {len(wrong)} tensors do not "
            f"fit, {', '.join(wrong[:5])}; list what may begin anew as load_except (patterns of names)\n{report}"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first keys that differ, as text; empty where none does."""
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    shown = [f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in changed[:3]]
    return "; ".join(shown) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys of nested dicts and lists; what JSON does not know becomes text."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    if items:
        return {k: v for key, item in items for k, v in _flat(item, f"{path}.{key}" if path else str(key)).items()}
    plain = value is None or isinstance(value, bool | int | float | str)
    return {path: value if plain else config_text(Config({"value": value}))[8:-1]}


def _last_metrics(runner: Runner) -> dict[str, float]:
    scalars = runner.message_hub.log_scalars
    return {k.partition("/")[2]: float(v.current()) for k, v in scalars.items() if k.startswith("val/")}
