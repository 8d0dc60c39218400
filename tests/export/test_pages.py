"""The commands of the pages on inference and export run, with a small model in place of the large one."""

import re
import shlex

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.weights.checkpoint import save_safetensors

#: What a page's line says -> what is run here.
SMALL = {"davit_tiny": "vit_nano"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the files that the pages name."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.jpg")
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (48, 32))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for _ in range(3):
        writer.write(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8))
    writer.release()
    torch.manual_seed(0)
    save_safetensors(tmp_path / "vit_nano.safetensors", zoo.create_model("vit_nano").state_dict(), {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(text):
    for large, other in SMALL.items():
        text = text.replace(large, other)
    return text


@pytest.mark.slow
def test_the_pages_tell_the_truth(place, repo_root, capsys):
    pages = [(repo_root / "docs" / name).read_text(encoding="utf-8") for name in ("export.md", "inference.md")]
    lines = [
        line
        for page in pages
        for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        # AOTInductor has a test of its own, and the checkpoint of the digits has to be trained first.
        if "aoti" not in line and "epoch_12" not in line
    ]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(small(line).replace("--max-drop 1", "--max-drop 100"))
        assert main(words[1:]) == 0, f"{line}: {capsys.readouterr().err}"
    assert len(list((place / "out").glob("*.png"))) == 9  # 6 photographs, 3 frames
    for page in pages:
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(small(block).replace("biformer_tiny", "vit_nano"), {})
    assert (place / "first.png").is_file()
