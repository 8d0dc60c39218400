"""Single modules of the authors agree on every backend of the operators, the Triton kernels under their interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = (
    "msdeform_attn",
    "biformer",
    "davit",
    "inline_attention",
    "mala",
    "efficient_attention",
    "taylorshift",
    "stvit",
)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_modules_agree_on_the_backend(conformance_dir, tmp_path, backend):
    report = tmp_path / "report.json"
    options = [f"--system={s}" for s in SYSTEMS] + ["--backend", backend, "--modules", "--json", str(report)]
    # A process of its own: Triton reads the switch to its interpreter when it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "conformance.py"), str(conformance_dir), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    results = json.loads(report.read_text(encoding="utf-8"))
    assert [r for r in results if r["status"] == "fail"] == [], done.stdout
    passed = {r["system"] for r in results if r["status"] == "pass"}
    assert passed == set(SYSTEMS), done.stdout
