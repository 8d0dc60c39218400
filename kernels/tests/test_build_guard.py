"""Every Triton kernel compiles for NVIDIA sm_80 and sm_90 and AMD gfx942, and its sm_90 machine code is as meant.

Needs no GPU: see :mod:`zoo_kernels.build`.
"""

import importlib
import json
import os
import subprocess
import sys

import pytest

from zoo_kernels.build import recorder_works

SHARED_LIMIT = 227 * 1024  # bytes a block can have on sm_90


@pytest.mark.usefixtures("triton_works")
def test_kernels_compile(built_operator: str) -> None:
    if not recorder_works():
        pytest.skip("this triton specialises arguments in another way than the recorder knows")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "zoo_kernels.build", built_operator],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    builds = [json.loads(line) for line in run.stdout.splitlines()]
    assert builds, f"the build cases of {built_operator} launch no kernel"
    cases = importlib.import_module(f"zoo_kernels.{built_operator}.triton").build_cases()
    for built in builds:
        case, kernel = cases[built["case"]], built["kernel"]
        label = f"{built_operator} {built['case']} {kernel} {built['options']}"
        assert built["errors"] == {}, f"{label} does not compile: {built['errors']}"
        assert built["local_bytes"] == 0, f"{label} spills {built['local_bytes']} bytes"
        assert built["shared_bytes"] <= SHARED_LIMIT, f"{label} needs {built['shared_bytes']} bytes of shared memory"
        if kernel not in case.no_tensor_cores:
            assert built["tensor_core"] > 0, f"{label} has no tensor-core instruction"
        if kernel not in case.narrow_loads:
            assert built["loads"].get("128", 0) > 0, f"{label} has no 16-byte load: {built['loads']}"
