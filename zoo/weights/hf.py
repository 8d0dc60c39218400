"""Models on the Hugging Face Hub: weights as safetensors, what to build in a config, and a card.

Needs the package ``huggingface_hub``. Its environment variables (``HF_ENDPOINT``, ``HF_TOKEN``, ...) are obeyed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from zoo import __version__
from zoo.weights.download import sha256_of
from zoo.weights.errors import CheckpointError
from zoo.weights.index import home, model_info

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "the Hugging Face Hub needs the package huggingface_hub: pip install huggingface_hub"
        ) from error
    return huggingface_hub


def parse(text: str) -> tuple[str, str | None, str]:
    """``owner/repository[@revision][:file]`` in its parts; the file is ``model.safetensors`` by default.

    Raises:
        ValueError: it has another form.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+))?", text)
    if match is None or ".." in text:
        raise ValueError(f"{text!r}: owner/repository[@revision][:file] is expected")
    return match[1], match[2], match[3] or WEIGHTS


def fetch(text: str) -> Path:
    """A file of a repository, from the cache below :func:`zoo.weights.index.home` or downloaded into it.

    Args:
        text: see :func:`parse`.

    Raises:
        ImportError: huggingface_hub is not installed.
        ConnectionError: it cannot be had; the message says why.
    """
    from zoo.weights.hub import is_offline

    hub = _hub()
    repository, revision, file = parse(text)
    folder = home() / "huggingface"
    try:
        found = hub.hf_hub_download(
            repository,
            file,
            revision=revision,
            cache_dir=folder,
            local_files_only=is_offline(),
            etag_timeout=20,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except Exception as error:  # its own classes, those of its HTTP library, and OSError
        raise ConnectionError(
            f"{file} of {repository} cannot be had from the Hugging Face Hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no details'}); a copy belongs into {folder}"
        ) from error
    return Path(found)


def from_hub(repository: str, **arguments: Any) -> Any:
    """The model of a repository that :func:`push` wrote.

    Args:
        repository: ``owner/repository[@revision]``.
        **arguments: override those of the repository's config (``num_classes`` ...).

    Raises:
        CheckpointError: its config is not one of ours.
        ConnectionError: it cannot be had.
    """
    from zoo.api import create_model

    name, revision, _ = parse(repository)
    at = f"{name}@{revision}" if revision else name
    config = read_config(fetch(f"{at}:{CONFIG}"))
    return create_model(config["architecture"], weights=fetch(at), **{**config["arguments"], **arguments})


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A repository's ``config.json``, checked: ``architecture`` is a registered model, ``arguments`` plain values."""
    from zoo.registry import MODELS

    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("arguments"), dict):
        raise CheckpointError(f"{path} is no config of attnzoo: 'architecture' and 'arguments' are expected")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in MODELS:
        raise CheckpointError(f"{path}: {architecture!r} is no model of this version ({__version__})")
    try:
        check_arguments_of_strangers(config["arguments"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config


def check_arguments_of_strangers(arguments: Any, depth: int = 8) -> None:
    """Raise ValueError unless a config's arguments are plain values, and parts are named as they are registered.

    A part (``dict(type=...)``) may elsewhere be any importable name; here it could call anything.
    """
    if arguments is None or isinstance(arguments, bool | int | float | str):
        return
    if depth <= 0 or not isinstance(arguments, dict | list | tuple):
        raise ValueError(f"arguments are numbers, text, lists and mappings of these, got {type(arguments).__name__}")
    for key, value in arguments.items() if isinstance(arguments, dict) else enumerate(arguments):
        names_a_part = key == "type" or depth == 8
        if names_a_part and isinstance(value, str) and re.fullmatch(r"\w*", value) is None:
            raise ValueError(f"{key}={value!r}: parts are named as they are registered, such as 'agent'")
        check_arguments_of_strangers(value, depth - 1)


def push(
    model: str,
    weights: str | os.PathLike[str],
    repository: str,
    *,
    arguments: dict[str, Any] | None = None,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Write a repository with the weights, the config that builds the model, and its card; returns its address.

    The weights are loaded into the model first, so that nothing is pushed that cannot be used.

    Args:
        model: a registered name.
        weights: any file that :func:`zoo.weights.load.load_weights` reads; it is written as safetensors.
        repository: ``owner/name``; made if there is none.
        arguments: with which the model is built (``num_classes`` ...); numbers, text, lists.
        private: whether a new repository is.
        message: of the commit.

    Raises:
        ImportError, ConnectionError, CheckpointError: as the names say; nothing was pushed.
    """
    import torch
    from safetensors.torch import save

    from zoo.api import create_model, load_weights
    from zoo.weights.card import model_card

    hub = _hub()
    name, revision, file = parse(repository)
    if revision is not None or file != WEIGHTS:
        raise ValueError(f"{repository!r}: owner/name is expected")
    arguments = dict(arguments or {})
    check_arguments_of_strangers(arguments)
    built = create_model(model, **arguments)
    report = load_weights(built, weights)
    state = {k: v.detach().contiguous().clone() for k, v in built.state_dict().items() if isinstance(v, torch.Tensor)}
    config = {"architecture": model, "arguments": arguments, "library": "attnzoo", "version": __version__}
    notes = {"model": model, "pushed_from": Path(weights).name, "source_sha256": sha256_of(weights)}
    if report.converted_by:
        notes["entry"] = report.converted_by
    files = {
        WEIGHTS: save(state, {"format": "pt", "attnzoo_meta": json.dumps({"converted_from": notes})}),
        CONFIG: json.dumps(config, indent=2).encode(),
        "README.md": model_card(model, model_info(model), repository=name).encode(),
    }
    try:
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        api.create_repo(name, private=private, exist_ok=True)
        done = api.create_commit(
            name,
            operations=[hub.CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=message or f"{model}: weights, config and card by attnzoo {__version__}",
        )
    except Exception as error:  # its own classes and those of its HTTP library
        raise ConnectionError(f"{name} could not be pushed ({type(error).__name__}: {error})") from error
    return str(getattr(done, "repo_url", None) or name)
