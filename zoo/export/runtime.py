"""Exported files as functions from normalised images to outputs, which predictors use like a network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.export import facts as file_facts


class Exported:
    """An exported network.

    Args:
        run: maps ``[B, 3, h, w]`` float32 to a tensor or a tuple of tensors, of the sizes that ``facts`` allow.
        facts: what the file says about itself.
        runtime: "onnx", "torch-export" or "aoti".
        device: where ``run`` wants its images.
        path: of the file, for messages.
    """

    def __init__(
        self, run: Callable[[Tensor], Any], facts: dict[str, Any], runtime: str, device: torch.device, path: Path
    ):
        self.run, self.facts, self.runtime, self.device, self.path = run, facts, runtime, device, path

    def __call__(self, images: Tensor) -> Any:
        """Outputs for normalised images ``[B, 3, h, w]``; a fixed batch is filled up.

        Raises:
            ValueError: images of a size that the file was not exported for.
        """
        self._check(images)
        images = images.float().contiguous()
        fixed = self.facts["batch"]
        if self.facts["dynamic"] != "none":
            return self.run(images)
        parts = []
        for part in images.split(fixed):
            filling = part.new_zeros(fixed - len(part), *part.shape[1:])
            outputs = self.run(torch.cat([part, filling]))
            parts.append([o[: len(part)] for o in (outputs if isinstance(outputs, tuple) else (outputs,))])
        joined = tuple(torch.cat(p) for p in zip(*parts))
        return joined if len(joined) > 1 else joined[0]

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[2:]
        if self.facts["dynamic"] == "all":
            multiple = self.facts["multiple"]
            if height % multiple or width % multiple:
                raise ValueError(f"images of {height} x {width}: {self.path} takes multiples of {multiple}")
        elif [height, width] != self.facts["size"]:
            wanted = " x ".join(str(s) for s in self.facts["size"])
            raise ValueError(f"images of {height} x {width}: {self.path} was exported for {wanted}")


def load_exported(
    path: str | os.PathLike[str], *, device: str | torch.device = "auto", threads: int | None = None
) -> Exported:
    """Load a file that ``zoo export`` wrote.

    An ONNX file is data. A ``.pt2`` file of AOTInductor is a program, and one of ``torch.export`` is read by torch's
    own loader: load only those whose origin you trust.

    Args:
        path: ``.onnx`` or ``.pt2``.
        device: "auto" is the CPU for ONNX and AOTInductor files (which are made for it), else the GPU if there is one.
        threads: CPU threads of onnxruntime; as many as PyTorch's by default.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or written by another program.
        ImportError: onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no exported model at {path}")
    if path.suffix == ".onnx":
        return _onnx(path, device, threads)
    if path.suffix != ".pt2":
        raise ValueError(f"{path}: accepted are .onnx and .pt2 files")
    facts = file_facts.of_archive(path)
    where = torch.device("cpu" if device == "auto" else device)
    if facts["format"] == "aoti":
        if where.type != "cpu":
            raise ValueError(f"device={device!r}: the AOTInductor package {path} was compiled for the CPU")
        _check_entries(path, "aotinductor")
        return Exported(_aoti(path), facts, "aoti", where, path)
    program = _program(path).to(where)
    return Exported(program, facts, "torch-export", where, path)


def _onnx(path: Path, device: str | torch.device, threads: int | None) -> Exported:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path} needs onnxruntime: pip install 'attnzoo[export]'") from error
    providers = ["CPUExecutionProvider"]
    where = torch.device("cpu" if device == "auto" else device)
    if where.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ValueError(f"device={device!r}: this onnxruntime runs on the CPU only; install onnxruntime-gpu")
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise ValueError(f"{path} is damaged or no ONNX file: {str(error).splitlines()[0]}") from error
    facts = file_facts.parse(session.get_modelmeta().custom_metadata_map.get(file_facts.KEY), path)
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Any:
        outputs = tuple(torch.from_numpy(o) for o in session.run(None, {name: images.cpu().numpy()}))
        return outputs if len(outputs) > 1 else outputs[0]

    # Images come and go through the CPU whatever the provider.
    return Exported(run, facts, "onnx", torch.device("cpu"), path)


def _check_entries(path: Path, word: str) -> None:
    with zipfile.ZipFile(path) as archive:
        if not any(word in name for name in archive.namelist()):
            raise ValueError(f"{path} says that it is a package of {word}, but holds none")


def _program(path: Path) -> torch.nn.Module:
    import zoo_kernels

    del zoo_kernels  # registers the operators that a graph may name
    try:
        module = torch.export.load(str(path)).module()
    except Exception as error:  # whatever a damaged archive makes of torch's loader
        raise ValueError(f"{path} is damaged, or of another torch: {type(error).__name__}: {error}") from error
    return module


def _aoti(path: Path) -> Callable[[Tensor], Any]:
    try:
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(path))
    except Exception as error:  # RuntimeError, OSError of the dynamic loader, ValueError ...
        raise ValueError(f"{path} cannot be loaded here: {type(error).__name__}: {error}") from error
