"""Mutated checkpoints, index files and config overrides end well or in a clear error; 10,000 cases are `slow`."""

import argparse
import copy
import functools
import io
import pickle
import pickletools
import re
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from zoo.engine.config import ConfigError, apply_options, check_config, load_config, parse_option
from zoo.registry import UnknownNameError
from zoo.weights.checkpoint import CheckpointError, read_checkpoint, state_dict_of
from zoo.weights.index import ModelInfo, read_system

FEW, MANY = 60, 10_000
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def _counts(*strategies):
    """Decorator: a property of a folder and drawn values as a test, with few cases and, slow, with many."""

    def wrap(prove):
        @pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
        def test(tmp_path, cases):
            @settings(
                max_examples=cases, deadline=None, suppress_health_check=CHECKS, derandomize=cases == FEW, database=None
            )
            @given(st.tuples(*strategies))
            def run(drawn):
                prove(tmp_path, *drawn)

            run()

        test.__doc__ = prove.__doc__
        return test

    return wrap


# -- checkpoints ------------------------------------------------------------


def _content():
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer.{i}.weight": torch.randn(3, 2, generator=generator) for i in range(3)}
    return {
        "state_dict": {**weights, "half": torch.ones(2).half(), "steps": torch.tensor(3)},
        "args": argparse.Namespace(lr=0.1, names=["a", "b"]),
        "scores": np.arange(3.0),
        "best": np.float32(1.5),
        "history": {"loss": [1.0, 0.5], 3: None, (1, 2): {4}},
    }


def _saved(**options) -> bytes:
    file = io.BytesIO()
    torch.save(_content(), file, **options)
    return file.getvalue()


def _pickled_part(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        return parts.read("archive/data.pkl")


def _with_part(archive: bytes, pickled: bytes) -> bytes:
    """The archive with another pickle, and a checksum that is right for it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as parts, zipfile.ZipFile(target, "w") as new:
        for entry in parts.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else parts.read(entry))
    return target.getvalue()


ZIP, OLDER = _saved(), _saved(_use_new_zipfile_serialization=False)
PLAIN = {p: pickle.dumps({**_content(), "state_dict": {"w": np.ones(3)}}, p) for p in (0, 2, 4)}
SAFE = save(_content()["state_dict"])
CODES = [op.code.encode("latin1") for op in pickletools.opcodes]
NAMES = [b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n",
         b"cnumpy.core.multiarray\n_reconstruct\n", b"ca.b\nC\n", b"c_codecs\nencode\n"]  # fmt: skip

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "drop"]),
        st.integers(0, 1 << 16),
        st.integers(0, 255),
        st.one_of(st.binary(max_size=8), st.sampled_from(CODES + NAMES)),
    ),
    min_size=1,
    max_size=6,
)


def _mutated(data: bytes, changes) -> bytes:
    result = bytearray(data)
    for kind, at, value, piece in changes:
        at %= len(result) + 1
        if kind == "flip" and at < len(result):
            result[at] ^= value or 1
        elif kind == "cut":
            del result[len(result) - at % 64 :]
        elif kind == "insert":
            result[at:at] = piece
        elif kind == "repeat":
            result[at:at] = result[max(0, at - value) : at]
        elif kind == "drop":
            del result[at : at + value % 16]
    return bytes(result)


def _reads_or_says_why(folder, data: bytes, suffix: str = ".pth") -> None:
    file = folder / f"c{suffix}"
    file.write_bytes(data)
    said = ""
    try:
        content = read_checkpoint(file)
    except CheckpointError as error:
        content, said = None, str(error)
    assert content is not None or not said or str(file) in said
    try:
        state = state_dict_of(content)
    except CheckpointError:
        return
    total = sum(v.numel() * v.element_size() for v in state.values())
    assert total <= 16 * len(data) + (1 << 24)
    for value in state.values():
        value.sum()  # every element can be read


@_counts(edits)
def test_archives(folder, changes):
    """Bytes of torch archives."""
    _reads_or_says_why(folder, _mutated(ZIP, changes))


@_counts(edits)
def test_archived_pickles(folder, changes):
    """The pickle within a torch archive, whose checksum is right."""
    _reads_or_says_why(folder, _with_part(ZIP, _mutated(_pickled_part(ZIP), changes)))


@_counts(edits)
def test_older_files(folder, changes):
    """Bytes of files of the older format."""
    _reads_or_says_why(folder, _mutated(OLDER, changes))


@_counts(st.sampled_from(sorted(PLAIN)), edits)
def test_plain_pickles(folder, protocol, changes):
    """Bytes of plain pickles of several protocols."""
    _reads_or_says_why(folder, _mutated(PLAIN[protocol], changes))


@_counts(st.lists(st.one_of(st.sampled_from(CODES + NAMES), st.binary(max_size=6)), max_size=40))
def test_arbitrary_instructions(folder, parts):
    """Instructions in any order."""
    _reads_or_says_why(folder, b"\x80\x04" + b"".join(parts) + b".")


@_counts(edits)
def test_safetensors_files(folder, changes):
    """Bytes of safetensors files."""
    _reads_or_says_why(folder, _mutated(SAFE, changes), ".safetensors")


# -- index files ------------------------------------------------------------

INDEX = {
    "system": "some", "title": "Some", "task": "classification", "paper": None, "licence": "MIT", "mean": [0.5],
    "std": [0.5],
    "models": {"some_tiny": {
        "params": 5, "flops": None, "input_size": 224, "num_classes": 10, "mixers": ["window"], "config": None,
        "metrics": [{"dataset": "x", "top1": 82.8, "source": None}],
        "weights": {"status": "published", "url": "https://example.org/a", "file": "a.pth", "sha256": None}}},
}  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=5
)


def _places(node, path=()):
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def _checked_or_says_why(folder, text: str) -> None:
    file = folder / "some.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    found, said = [], "some.yaml"
    try:
        found = read_system(file)
    except ValueError as error:
        said = str(error)
    assert "some.yaml" in said
    assert all(isinstance(info, ModelInfo) for info in found)


@_counts(st.sampled_from(sorted(_places(INDEX), key=str)), values)
def test_index_values(folder, place, value):
    """Any value at any place of an index file."""
    data = copy.deepcopy(INDEX)
    node = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    _checked_or_says_why(folder, yaml.safe_dump(data, allow_unicode=True))


@_counts(st.integers(0, 1000), st.integers(0, 20), st.text(max_size=10))
def test_index_texts(folder, at, length, piece):
    """Any text at any place of an index file."""
    text = yaml.safe_dump(INDEX)
    at %= len(text)
    _checked_or_says_why(folder, text[:at] + piece + text[at + length :])


# -- config overrides ------------------------------------------------------------

_PARTS = """model backbone type num_classes train_dataloader dataset transform optim_wrapper optimizer lr betas 0 1 -1
param_scheduler default_hooks checkpoint train_cfg _x modell"""
PARTS = _PARTS.split()
options = st.tuples(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(".".join),
    st.one_of(
        st.text(max_size=10),
        st.sampled_from(
            ["None", "true", "3", "1e-3", "[1,2]", "dict(a=1)", "{'type': 'x'}", "((((", "davit_tiny", "nan"]
        ),
    ),
)


@functools.cache
def _config():
    return load_config("davit-nano_cls_12e_digits")


@_counts(st.lists(options, min_size=1, max_size=3))
def test_config_overrides(folder, pairs):
    """Any values for any keys of a config."""
    config = copy.deepcopy(_config())
    said = "fits"
    try:
        apply_options(config, [f"{k}={v}" for k, v in pairs])
        check_config(config)
    except (ConfigError, UnknownNameError) as error:
        said = str(error)
    assert said


@_counts(st.text(max_size=40))
def test_options_as_text(folder, text):
    """Any text as an option."""
    key, _, _ = text.partition("=")
    if "=" in text and key.strip():
        assert parse_option(text)[0] == key.strip()
    else:
        with pytest.raises(ConfigError, match=re.escape(repr(text))):
            parse_option(text)
