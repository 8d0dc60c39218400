"""The runner: mmengine's, with resuming that is exact, checkpoints that survive, and today's torch underneath."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zoo.engine.compat import init_process_group, local_device  # before mmengine's runner, see there

# isort: split
import mmengine.runner
from mmengine.config import Config
from mmengine.dist import broadcast, get_dist_info, is_distributed, is_main_process
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.runner.utils import set_random_seed
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn
from torch.utils.data import DataLoader

from zoo import __version__
from zoo.engine import checkpoint as files
from zoo.engine.config import config_text
from zoo.engine.dataloader import build_dataloader
from zoo.engine.hooks import CheckpointHook, FiniteLossHook, NonFiniteLossError, diverged
from zoo.engine.loops import EpochTrainLoop, IterTrainLoop, TestLoop, ValLoop
from zoo.engine.optim import ParamGroups, WarmupCosineLR, WarmupPolyLR, whole_norm
from zoo.engine.partial import KeepFrozen, freeze, frozen_norms, load_except
from zoo.engine.state import gradients, rng_state, seed_everything, set_gradients, set_rng_state, undisturbed_rng
from zoo.engine.strategy import Strategy, is_sharded
from zoo.files import write_file
from zoo.weights.checkpoint import CheckpointError, read_checkpoint
from zoo.weights.load import LoadReport

#: Between looks at whether another process was told to stop, in iterations.
STOP_CHECK = 10

#: Schedules whose length the runner knows, by class and by the names that a config may give them.
_SCHEDULES: dict[Any, Any] = {
    name: c for c in (WarmupCosineLR, WarmupPolyLR) for name in (c, c.__name__, f"{c.__module__}.{c.__name__}")
}

_runs = itertools.count()


class Runner(mmengine.runner.Runner):
    """Trains, validates and tests a model from a config.

    Differences from mmengine's runner, whose arguments it takes:

    - A resumed run ends with the very weights of an uninterrupted one on the CPU, from whichever iteration.
    - Checkpoints appear whole or not at all; a damaged one is passed over for the one before; reading runs no code.
    - SIGTERM saves and exits with status 143; a loss that is not finite stops the training.
    - Several processes need no GPU (gloo); ``strategy=dict(name="fsdp")`` shards the model.
    - Parameters are grouped by :class:`zoo.engine.optim.ParamGroups` unless another constructor is named.
    - ``compile=True`` (or a dict of torch.compile's arguments) compiles the network only.
    - ``load_from`` takes any checkpoint :func:`zoo.weights.load.load_weights` can read; ``load_strict=False`` allows
      parts that do not fit (another classifier), ``load_except`` (patterns of names) are left as they are initialised.
    - ``freeze`` (patterns of names of parameters) are not trained; a normalisation that is frozen keeps its statistics.
    """

    _train_loop: Any
    _val_loop: Any
    optim_wrapper: Any
    param_schedulers: Any

    def __init__(self, *args: Any, **kwargs: Any):
        given = inspect.signature(mmengine.runner.Runner.__init__).bind(None, *args, **kwargs).arguments
        given.pop("self")
        cfg = given.get("cfg")
        if cfg is not None and not isinstance(cfg, Config):
            given["cfg"] = Config(dict(cfg), format_python_code=False)
        self.has_trained = False
        self._asked_to_stop = False
        self._resumed_file: Path | None = None
        self.load_report: LoadReport | None = None
        settings = (given.get("cfg") or {}).get("strategy")
        self.strategy = Strategy(**(settings or {}))
        if settings is None and (given.get("cfg") or {}).get("find_unused_parameters"):
            self.strategy.find_unused_parameters = True
        super().__init__(**given)

    # -- environment ----------------------------------------------------------------------------------------------

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Processes, threads and limits of this run."""
        if env_cfg.get("cudnn_benchmark"):
            torch.backends.cudnn.benchmark = True
        set_multi_processing(**env_cfg.get("mp_cfg", {}), distributed=self.distributed)
        if self.distributed and not is_distributed():
            if self._launcher != "pytorch":
                raise ValueError(f"launcher={self._launcher!r}: accepted are 'none' and 'pytorch' (torchrun)")
            init_process_group(**env_cfg.get("dist_cfg", {}))
        self._rank, self._world_size = get_dist_info()
        now = torch.tensor(time.time(), dtype=torch.float64)
        broadcast(now)
        self._timestamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(now.item()))
        run = next(_runs)
        if run:  # loggers, message hubs and visualizers are found by name: two runs must not share them
            self._timestamp += f"_{run}"
        if platform.system() != "Windows":
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            wanted = min(max(env_cfg.get("resource_limit", 4096), soft), hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    def set_randomness(self, seed: int | None = None, deterministic: bool = False) -> None:
        """Seed everything alike on all processes (they part when the training begins).

        Args:
            seed: None means 0, so that a run can be repeated unless it asks for another seed.
            deterministic: only algorithms whose result is the same on every run; an operation without one raises.
        """
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self._deterministic = deterministic
        self._seed = set_random_seed(seed=seed or 0, deterministic=deterministic)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        device = local_device()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
        self.logger.info(
            f"attnzoo {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {device} ({name}), "
            f"{self._world_size} process(es), {torch.get_num_threads()} thread(s), seed {self._seed}, "
            f"deterministic {self._deterministic}"
        )
        self.logger.debug(f"config:\n{config_text(self.cfg)}")

    def get_hooks_info(self) -> str:
        """Names of the hooks, in the order in which they are called."""
        return ", ".join(type(h).__name__ for h in self.hooks)

    def dump_config(self) -> None:
        """Write the config into the work directory, in the form that :func:`zoo.engine.config.load_config` reads."""
        if is_main_process():
            name = Path(self.cfg.filename).name if self.cfg.filename else "config.py"
            write_file(Path(self.work_dir) / name, config_text(self.cfg))

    # -- building -------------------------------------------------------------------------------------------------

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """The model, with the weights of ``load_from`` (unless a run is resumed)."""
        built = super().build_model(model)
        if self._load_from is not None and not self._resume:
            anew, strict = self.cfg.get("load_except") or (), self.cfg.get("load_strict", True)
            self.load_report = load_except(built, self._load_from, anew, strict=strict)
            self.logger.info(str(self.load_report))
            self._has_loaded = True
        if self.cfg.get("freeze"):
            frozen = freeze(built, self.cfg["freeze"])
            self.logger.info(f"{len(frozen)} parameters are not trained: {', '.join(frozen[:5])}")
        return built

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to its device and spread it over the processes."""
        if model_wrapper_cfg is not None:
            raise TypeError("model_wrapper_cfg is not used; say strategy=dict(name='ddp' or 'fsdp', ...)")
        device = local_device()
        model = model.to(device)
        if not self.distributed:
            return revert_sync_batchnorm(model)
        if self.cfg.get("sync_bn"):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return self.strategy.wrap(model, device)

    @property
    def bare_model(self) -> nn.Module:
        """The model without a wrapper around it."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """The optimizer wrapper; :class:`ParamGroups` makes it unless the config names another constructor."""
        if isinstance(optim_wrapper, dict):
            optim_wrapper = {"constructor": ParamGroups, **optim_wrapper}
        built = super().build_optim_wrapper(optim_wrapper)
        if is_sharded(self.model) and getattr(built, "clip_grad_kwargs", None):
            built.clip_func = whole_norm(built.clip_func)
        return built

    def _build_param_scheduler(self, scheduler: Any, optim_wrapper: Any) -> list[Any]:
        built: list[Any] = []
        for item in scheduler if isinstance(scheduler, list | tuple) else [scheduler]:
            kind = item.get("type") if isinstance(item, dict) else None
            own = _SCHEDULES.get(kind)
            if own is not None:
                arguments = {k: v for k, v in item.items() if k != "type"}
                arguments.setdefault("total_iters", self.max_iters)
                arguments.setdefault("epoch_length", len(self.train_dataloader))
                built.append(own(optim_wrapper, **arguments))
            else:
                built += super()._build_param_scheduler(item, optim_wrapper)
        return built

    @staticmethod
    def build_dataloader(dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        """See :func:`zoo.engine.dataloader.build_dataloader`."""
        return build_dataloader(dataloader, seed)

    def build_train_loop(self, loop: Any) -> Any:
        """Epoch- or iteration-based, as ``train_cfg.by_epoch`` says."""
        if isinstance(loop, dict) and "type" not in loop:
            loop = dict(loop)
            loop["type"] = EpochTrainLoop if loop.pop("by_epoch") else IterTrainLoop
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        """:class:`zoo.engine.loops.ValLoop` unless the config names another."""
        return super().build_val_loop({"type": ValLoop, **loop} if isinstance(loop, dict) else loop)

    def build_test_loop(self, loop: Any) -> Any:
        """:class:`zoo.engine.loops.TestLoop` unless the config names another."""
        return super().build_test_loop({"type": TestLoop, **loop} if isinstance(loop, dict) else loop)

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """mmengine's, with our :class:`CheckpointHook` and :class:`FiniteLossHook` and no sampler hook.

        A hook that the config sets to None is left out.
        """
        wanted: dict[str, Any] = {
            "sampler_seed": None,  # the loops set the epoch
            "checkpoint": {"type": CheckpointHook},
            "finite_loss": {"type": FiniteLossHook},
            **(hooks or {}),
        }
        theirs = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
        super().register_default_hooks({k: v for k, v in wanted.items() if v is not None or k in theirs})
        if self.cfg.get("freeze"):
            self.register_hook(KeepFrozen(frozen_norms(self.bare_model)))

    def _maybe_compile(self, target: str = "train_step") -> None:
        options = self.cfg.get("compile")
        if not options:
            return
        if not hasattr(self.bare_model, "compile_network"):
            raise TypeError(f"compile is set, but {type(self.bare_model).__name__} has no compile_network()")
        compile_network: Any = self.bare_model.compile_network
        compile_network(**(dict(options) if isinstance(options, dict) else {}))
        self.logger.info("the network is compiled in the first iterations, which take longer")

    # -- training -------------------------------------------------------------------------------------------------

    def train(self) -> nn.Module:
        """Train from the start, or from where the work directory's last good checkpoint stands (``resume=True``).

        Raises:
            SystemExit: 143 after SIGTERM, when the run is saved.
            NonFiniteLossError: the loss is NaN or infinite.
            CheckpointError: a checkpoint cannot be written, or the one to resume is of another model.
        """
        if self._train_loop is None:
            raise RuntimeError("the config has no train_cfg, train_dataloader and optim_wrapper; there is no training")
        if is_main_process():
            files.remove_leftovers(self.work_dir)
        self._train_loop = self.build_train_loop(self._train_loop)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        self.scale_lr(self.optim_wrapper, self.auto_scale_lr)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        if self._val_loop is not None:
            self._val_loop = self.build_val_loop(self._val_loop)
        self.call_hook("before_run")
        seed_everything(self.seed, self.rank)
        self.load_or_resume()
        wrapper, loop = self.optim_wrapper, self._train_loop
        wrapper._inner_count, wrapper._max_counts = loop.iter, loop.max_iters
        wrapper._remainder_counts = loop.max_iters % wrapper._accumulative_counts
        self._maybe_compile()
        with self._stop_on_sigterm():
            self.has_trained = True
            try:
                model = loop.run()
            except NonFiniteLossError:
                raise
            except FloatingPointError as error:  # a model that looks before its optimizer steps
                raise diverged(self, str(error)) from error
        self.call_hook("after_run")
        return model

    @contextlib.contextmanager
    def _stop_on_sigterm(self) -> Iterator[None]:
        def ask(signum: int, frame: Any) -> None:
            self._asked_to_stop = True

        try:
            before = signal.signal(signal.SIGTERM, ask)
        except ValueError:  # not the main thread, which alone may set handlers
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def stop_if_asked(self) -> None:
        """Between iterations: save and exit with status 143 if this process, or another of the run, got SIGTERM."""
        stop = self._asked_to_stop
        if self._world_size > 1:
            if self.iter % STOP_CHECK:
                return
            flag = torch.tensor(int(stop), device=local_device())
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            stop = bool(flag.item())
        if stop:
            name = f"iter_{self.iter}.pth"
            self.save_resumable(name, epoch=self.epoch, iteration=self.iter, validated=True)
            self.logger.warning(f"stopped by SIGTERM at iteration {self.iter}; saved as {name}, go on with resume")
            raise SystemExit(128 + signal.SIGTERM)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def load_or_resume(self) -> None:
        """Resume the last good checkpoint (``resume=True``), or the one that ``load_from`` names then."""
        if self._has_loaded or not self._resume:
            return
        if self._load_from is not None:
            file: Path | None = Path(self._load_from)
        else:
            file = files.find_last_good(self.work_dir, self.logger.warning)
        if file is None:
            self.logger.info(f"nothing to resume in {self.work_dir}; training starts from the beginning")
        else:
            self.resume(str(file))

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Put model, optimizer, schedule, logs, random numbers and place in the data back to a checkpoint's.

        Raises:
            CheckpointError: the file is damaged, refused, of another model, or holds weights only.
        """
        saved = read_checkpoint(filename, "cpu")
        if not isinstance(saved, dict) or "optimizer" not in saved or "meta" not in saved:
            raise CheckpointError(f"{filename} holds weights only and cannot be resumed; use it as load_from")
        files.restore_weights(self.bare_model, saved["state_dict"], filename)
        self._resumed_file = Path(filename)
        meta, loop = saved["meta"], self.train_loop
        loop._epoch, loop._iter = meta["epoch"], meta["iter"]
        per_epoch = len(loop.dataloader)
        if isinstance(loop, EpochTrainLoop) and not 0 <= loop._iter - loop._epoch * per_epoch <= per_epoch:
            raise CheckpointError(
                f"{filename} is at iteration {loop._iter} of epoch {loop._epoch + 1}, but an epoch has {per_epoch} "
                f"iterations now; resume with the data, batch size and number of processes that it was trained with"
            )
        at_boundary = not isinstance(loop, EpochTrainLoop) or loop._iter == loop._epoch * per_epoch
        loop.validation_due = at_boundary and not meta.get("validated", True)
        if meta.get("seed") is not None and meta["seed"] != self.seed:
            raise CheckpointError(
                f"{filename} was trained with seed {meta['seed']}, this run has {self.seed}; "
                f"set randomness=dict(seed={meta['seed']}) to go on"
            )
        hub = dict(saved["message_hub"])
        hub["log_scalars"] = {k: files.history_buffer(v) for k, v in hub["log_scalars"].items()}
        self.message_hub.load_state_dict(hub)
        if resume_optimizer:
            self._restore_optimizer(saved["optimizer"])
        if resume_param_scheduler and self.param_schedulers is not None:
            for scheduler, state in zip(self.param_schedulers, saved["param_schedulers"], strict=True):
                scheduler.load_state_dict(state)
        self.call_hook("after_load_checkpoint", checkpoint=saved)
        ranks = saved.get("ranks", [])
        if len(ranks) == self._world_size:
            set_gradients(self.bare_model, ranks[self.rank]["gradients"])
            set_rng_state(ranks[self.rank]["rng"])
        else:
            self.logger.warning(
                f"{filename} was written by {len(ranks)} process(es), this run has {self._world_size}: "
                f"random numbers start anew and the result is not that of an uninterrupted run"
            )
            seed_everything(self.seed + loop._iter, self.rank)
        self._has_loaded = True
        self.logger.info(f"resumed {filename}: epoch {loop._epoch}, iteration {loop._iter}")

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        parameters = [p for g in self.optim_wrapper.optimizer.param_groups for p in g["params"]]
        saved = state["state"]
        for index, values in saved.items():
            parameter = parameters[int(index)]
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape and key != "step":
                    values[key] = files.like(parameter.detach(), value)
        self.optim_wrapper.load_state_dict(state)

    def save_resumable(self, name: str, *, epoch: int, iteration: int, validated: bool) -> None:
        """Write everything that a resumed run needs to ``name`` in the work directory; all processes take part.

        Args:
            name: file name.
            epoch: complete epochs.
            iteration: complete iterations.
            validated: whether the validation that is due here has been made.
        """
        with undisturbed_rng():
            content = self._content({"epoch": epoch, "iter": iteration, "validated": validated})
            content["optimizer"] = files.plain(self.optim_wrapper.state_dict())
            schedulers = self.param_schedulers or []
            content["param_schedulers"] = [files.plain(s.state_dict()) for s in schedulers]
            self.call_hook("before_save_checkpoint", checkpoint=content)
            content["ranks"] = self._of_all_ranks()
            self._write(name, content)
            if is_main_process():
                files.write_pointer(self.work_dir, name)

    def save_weights(self, name: str, metrics: dict[str, float] | None = None) -> None:
        """Write the model (and its moving average) to ``name`` in the work directory; all processes take part."""
        with undisturbed_rng():
            content = self._content({"epoch": self.epoch, "iter": self.iter, "metrics": metrics or {}})
            self.call_hook("before_save_checkpoint", checkpoint=content)
            self._write(name, content)

    def save_checkpoint(  # type: ignore[override]
        self, out_dir: str, filename: str, *args: Any, meta: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """mmengine's name for :meth:`save_resumable`; ``out_dir`` must be the work directory."""
        if Path(out_dir).resolve() != Path(self.work_dir).resolve():
            raise ValueError(f"out_dir={out_dir!r}: checkpoints are written to the work directory {self.work_dir}")
        at: dict[str, Any] = {"epoch": self.epoch, "iter": self.iter, **(meta or {})}
        self.save_resumable(filename, epoch=at["epoch"], iteration=at["iter"], validated=False)

    def _content(self, at: dict[str, Any]) -> dict[str, Any]:
        meta = {
            **at,
            "seed": self.seed,
            "cfg": config_text(self.cfg),
            "experiment_name": self.experiment_name,
            "attnzoo_version": __version__,
            "torch_version": str(torch.__version__),
        }
        metainfo = getattr(self.train_loop.dataloader.dataset, "metainfo", None)
        if metainfo is not None:
            meta["dataset_meta"] = files.plain(dict(metainfo))
        return {
            "meta": meta,
            "state_dict": files.plain(dict(self.bare_model.state_dict())),
            "message_hub": files.plain(self.message_hub.state_dict()),
        }

    def _of_all_ranks(self) -> list[dict[str, Any]]:
        """Random numbers, and the gradients of an unfinished accumulation, of every process."""
        unfinished = not self.optim_wrapper.should_update()
        own = {"rng": rng_state(), "gradients": gradients(self.bare_model) if unfinished else {}}
        if self._world_size == 1:
            return [own]
        gathered: list[Any] = [None] * self._world_size
        dist.all_gather_object(gathered, own)
        return gathered

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if is_main_process():
            files.write_checkpoint(Path(self.work_dir) / name, content)
