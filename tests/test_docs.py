"""The documentation tells the truth: its commands parse, its configs exist, its Python runs or compiles."""

import re
import shlex
from pathlib import Path

import pytest

from zoo.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(language):
    for page in PAGES:
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            yield page.name, block


COMMANDS = [
    (page, line)
    for page, block in _blocks("console")
    for line in block.splitlines()
    if re.match(r"(zoo |torchrun .*-m zoo\.cli )", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p}: {c}" for p, c in COMMANDS])
def test_commands_parse_and_name_what_exists(page, line):
    words = shlex.split(line, comments=True)
    argv = words[1:] if words[0] == "zoo" else words[words.index("zoo.cli") + 1 :]
    args = build_parser(argv).parse_args(argv)
    name = getattr(args, "config", None) or getattr(args, "model_or_config", None)
    for config in [name] if isinstance(name, str) else name or []:
        from zoo.engine.config import find_config
        from zoo.registry import MODELS

        if config not in MODELS and config != "CONFIG" and not config.endswith((".onnx", ".pt2")):
            find_config(ROOT / config if "/" in config else config)


def test_there_are_commands():
    assert len(COMMANDS) > 15


@pytest.mark.parametrize(("page", "block"), list(_blocks("python")))
def test_python_compiles(page, block):
    compile(block, page, "exec")


def test_readme_example_runs():
    block = next(b for p, b in _blocks("python") if p == "README.md" and "create_model" in b)
    namespace = {}
    exec(block, namespace)
    assert namespace["model"].num_classes == 10
    assert namespace["maps"].strides == (4, 8, 16, 32)


def test_readme_mixer_works_in_a_host():
    import torch

    import zoo
    from zoo.registry import MIXERS

    block = next(b for p, b in _blocks("python") if p == "README.md" and "register_mixer" in b)
    try:
        exec(block, {"__name__": "readme_mixer"})
        model = zoo.create_model("pyramid_nano", mixer="mean", num_classes=3).eval()
        assert torch.isfinite(model(torch.randn(1, 3, 40, 24))).all()
    finally:
        MIXERS._entries.pop("mean", None)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"\bmake ([a-z-]+)\b(?= |`|,)", page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named & targets
