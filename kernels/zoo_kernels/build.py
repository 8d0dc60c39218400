"""Compile an operator's Triton kernels without a GPU and say what the machine code looks like.

``python -m zoo_kernels.build window_attention [...]`` prints, for each kernel that the operator's ``build_cases()``
launch, one JSON line: registers, spills, shared memory, tensor-core instructions and global loads by width on sm_90,
and whether it compiles for the other targets.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from zoo_kernels import dispatch
from zoo_kernels.testing import BuildCase

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion", "allow_fp8e4nv", "waves_per_eu")


@dataclass
class Launch:
    """A recorded kernel launch: all that its compilation depends on."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attrs: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    def key(self) -> str:
        return repr((self.name, self.signature, self.constants, self.attrs, self.options))


@dataclass
class Build:
    """What became of a launch: ``errors`` by target, and the sm_90 figures."""

    case: str
    kernel: str
    options: dict[str, Any]
    errors: dict[str, str] = field(default_factory=dict)
    registers: int = 0
    local_bytes: int = 0
    shared_bytes: int = 0
    tensor_core: int = 0
    loads: dict[str, int] = field(default_factory=dict)


def recorder_works() -> bool:
    """Whether this triton specialises arguments in the way that :func:`recording` repeats (3.2 does not)."""
    import triton.runtime.jit

    return hasattr(triton.runtime.jit, "native_specialize_impl")


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within the block Triton launches nothing: each launch is appended to the list instead. Needs no GPU."""
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import JITFunction, native_specialize_impl

    launches: dict[str, Launch] = {}
    found: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        names = self.arg_names
        values = dict(zip(names, args))
        values.update({k: v for k, v in kwargs.items() if k in names})
        options = {k: v for k, v in kwargs.items() if k in OPTIONS}
        if callable(grid):
            grid(values)
        signature: dict[str, str] = {}
        constants: dict[tuple[int, ...], Any] = {}
        attrs: dict[tuple[int, ...], list[list[Any]]] = {}
        for i, param in enumerate(self.params):
            value = values.get(param.name, param.default)
            if param.is_constexpr:
                signature[param.name], constants[(i,)] = "constexpr", value
                continue
            kind, hint = native_specialize_impl(BaseBackend, value, False, not param.do_not_specialize, True)
            signature[param.name] = kind
            if kind == "constexpr":
                constants[(i,)] = value if hint is None else hint
            elif hint and "D" in hint:
                attrs[(i,)] = [["tt.divisibility", 16]]
        launch = Launch(self, signature, constants, attrs, options)
        if launches.setdefault(launch.key(), launch) is launch:
            found.append(launch)

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(dispatch, "triton_can_run", return_value=None),
    ):
        yield found


def record(case: BuildCase) -> list[Launch]:
    """The distinct launches of a case, forward and backward."""

    def leaf(value: Any) -> Any:
        if case.backward and isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().requires_grad_(True)
        return value

    with recording() as launches:
        out = case.function(*map(leaf, case.args), **{k: leaf(v) for k, v in case.kwargs.items()}, backend="triton")
        if case.backward:
            outs = [o for o in ([out] if isinstance(out, torch.Tensor) else out) if o.requires_grad]
            torch.autograd.backward(outs, [torch.zeros_like(o) for o in outs])
    return launches


def build(launch: Launch, case: str) -> Build:
    """Compile a launch for every target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    result = Build(case, launch.name, launch.options)
    for name, target in TARGETS.items():
        source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attrs)
        try:
            compiled = triton.compile(source, target=GPUTarget(*target), options=dict(launch.options))
        except Exception as error:  # whatever the compiler raises is the finding
            result.errors[name] = f"{type(error).__name__}: {error}"
            continue
        if name == "sm_90":
            result.shared_bytes = compiled.metadata.shared
            _machine_code(compiled.asm["cubin"], result)
    return result


def _machine_code(cubin: bytes, result: Build) -> None:
    """Registers, local memory, tensor-core instructions and loads by width, from the SASS."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr))
    result.registers = int(figures.get("REG", 0))
    spilled = len(re.findall(r"\b(?:LDL|STL)(?:\.|\b)", sass))
    result.local_bytes = int(figures.get("LOCAL", 0)) + (int(figures.get("STACK", 0)) if spilled else 0)
    result.tensor_core = len(re.findall(r"\b(?:HGMMA|HMMA|QGMMA)\b", sass))
    for width in re.findall(r"\bLDG(?:STS)?\.(?:E\.)?((?:[A-Z0-9_]+\.?)*)", sass):
        bits = next((w for w in ("128", "64", "U16", "S16", "U8", "S8") if w in width.split(".")), "32")
        result.loads[bits] = result.loads.get(bits, 0) + 1


def build_operator(operator: str) -> Iterator[Build]:
    """Every distinct launch of an operator's ``build_cases()``, compiled."""
    cases = importlib.import_module(f"zoo_kernels.{operator}.triton").build_cases()
    seen: set[str] = set()
    for name, case in cases.items():
        for launch in record(case):
            if launch.key() not in seen:
                seen.add(launch.key())
                yield build(launch, name)


def main(operators: list[str]) -> None:
    """Print the builds of the named operators, one JSON line each."""
    os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported, which is later
    for operator in operators:
        for result in build_operator(operator):
            print(json.dumps({"operator": operator, **asdict(result)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
