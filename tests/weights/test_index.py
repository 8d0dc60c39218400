"""The index of models: it names what is registered, and its sizes are those of the models."""

import subprocess
import sys

import pytest

import zoo
from zoo.weights.index import load_index, read_system


def test_index_and_registry_name_the_same_models():
    assert set(load_index()) == set(zoo.list_models())


def test_sizes_are_up_to_date(repo_root):
    run = subprocess.run(
        [sys.executable, str(repo_root / "tools" / "update_index.py"), "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}; run tools/update_index.py"


def test_weights_entries_say_what_is_known():
    for info in load_index().values():
        assert info.weights_status in ("trained", "converted", "published", "none"), info.name
        if info.weights_status == "published":
            assert info.weights["url"].startswith("https://"), info.name
        if info.weights_status == "trained":
            assert len(info.weights["sha256"]) == 64, info.name


def test_a_wrong_file_is_named(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("system: some\ntitle: Some\ntask: classification\nmodels:\n  some_tiny:\n    params: many\n")
    with pytest.raises(ValueError, match=r"some.yaml: some_tiny.params is 'many'"):
        read_system(file)
    file.write_text("title: Some\n")
    with pytest.raises(ValueError, match="'system' is missing"):
        read_system(file)
