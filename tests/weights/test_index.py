"""The index of models: it names what is registered, its sizes are those of the models, and its files are checked."""

import json
import subprocess
import sys

import pytest
import yaml

import zoo
from zoo.cli import main
from zoo.complexity import count_parameters, on_meta
from zoo.engine.config import list_configs
from zoo.registry import MODELS
from zoo.weights.card import model_card
from zoo.weights.importers import systems
from zoo.weights.index import data_dir, load_index, model_info, read_system

GOOD = {
    "system": "some",
    "title": "Some",
    "task": "classification",
    "paper": "arXiv:1234.56789",
    "licence": None,
    "importer": "davit",
    "models": {
        "some_tiny": {
            "params": 5,
            "flops": None,
            "input_size": 224,
            "num_classes": 1000,
            "mixers": ["window"],
            "metrics": [{"dataset": "imagenet-1k", "top1": 82.8, "source": "arXiv:1234.56789"}],
            "weights": {"status": "published", "url": "https://example.org/a", "file": "a.pth", "sha256": None},
        }
    },
}


def test_index_and_registry_name_the_same_models():
    assert set(load_index()) == set(zoo.list_models())


@pytest.mark.slow  # counts every model
def test_everything_that_is_written_is_up_to_date(repo_root):
    run = subprocess.run(
        [sys.executable, str(repo_root / "tools" / "update_index.py"), "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}; run tools/update_index.py"


def test_parameters_are_counted():
    """Of the smallest model of each system; the others are counted by the slow test above."""
    smallest = {}
    for info in load_index().values():
        if info.system not in smallest or info.params < smallest[info.system].params:
            smallest[info.system] = info
    for info in smallest.values():
        model = on_meta(MODELS.entry(info.name).builder)
        assert count_parameters(model) == info.params, f"{info.name}; run tools/update_index.py"


def test_what_the_index_refers_to_exists():
    configs = list_configs()
    for info in load_index().values():
        assert info.config is None or info.config in configs, info.name
        assert info.importer is None or info.importer in systems(), info.name
        assert len(info.mean) == len(info.std)


#: Systems whose facts have checkpoints that are no model of ours, and why.
NOT_ALL = {
    "focus_detr": "one model has checkpoints of three schedules, of which the index has the longest",
    "relationnetpp": "models with deformable convolutions are not built",
}


def test_published_addresses_and_scores_are_the_recorded_ones(conformance_dir):
    """Of every system that the index has, all checkpoints that the facts know are in it."""
    infos = load_index().values()
    known = {i.importer for i in infos if i.importer and i.importer not in NOT_ALL}
    checked = 0
    for system in sorted(known):
        file = conformance_dir / "facts" / f"{system}.json"
        variants = json.loads(file.read_text(encoding="utf-8"))["variants"] if file.is_file() else {}
        own: dict[str, list[float]] = {}  # one address may be a folder of several files
        for info in infos:
            if info.weights.get("url"):
                own.setdefault(info.weights["url"], []).extend(m["top1"] for m in info.metrics if "top1" in m)
        for name, facts in variants.items() if isinstance(variants, dict) else ():
            url = facts.get("checkpoint_url")
            if not isinstance(url, str) or not url.startswith("http"):
                continue
            assert url in own, f"{system}: {name}"
            checked += 1
            if own[url] and isinstance(facts.get("top1"), int | float):
                assert facts["top1"] in own[url], f"{system}: {name}"
    assert checked > 20


def _written(tmp_path, data):
    file = tmp_path / "some.yaml"
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return file


def test_a_good_file(tmp_path):
    (info,) = read_system(_written(tmp_path, GOOD))
    assert (info.name, info.params, info.weights_status, info.importer) == ("some_tiny", 5, "published", "davit")
    assert info.metrics[0]["top1"] == 82.8
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.config is None


WRONG = [
    ("system", None, r"some\.yaml: system is None; text is expected"),
    ("title", 3, r"title is 3; text"),
    ("models", [], r"models is a list; a mapping"),
    ("paperr", "x", r"no key 'paperr'; did you mean paper"),
    ("mean", [1, "a"], r"mean is a list; list of numbers"),
    ("std", [0.1, 0], r"std is a list; list of positive"),
    ("models.Some-Tiny", {}, r"'Some-Tiny' is no name"),
    ("models.some_tiny", 3, r"some_tiny is 3; a mapping"),
    ("models.some_tiny.params", "many", r"some_tiny\.params is 'many'; int"),
    ("models.some_tiny.params", -1, r"some_tiny\.params is -1"),
    ("models.some_tiny.params", True, r"some_tiny\.params is True"),
    ("models.some_tiny.flops", 1.5, r"some_tiny\.flops is 1\.5; int or null"),
    ("models.some_tiny.input_size", 0, r"some_tiny\.input_size is 0"),
    ("models.some_tiny.mixers", "window", r"some_tiny\.mixers is 'window'"),
    ("models.some_tiny.parms", 1, r"no key 'some_tiny\.parms'; did you mean params"),
    ("models.some_tiny.metrics", {}, r"some_tiny\.metrics is a dict"),
    ("models.some_tiny.metrics", [3], r"some_tiny\.metrics\[0\] is 3"),
    ("models.some_tiny.metrics", [{"top1": 1}], r"metrics\[0\]\.dataset is None; text"),
    ("models.some_tiny.metrics", [{"dataset": "x", "top1": [1]}], r"metrics\[0\]\.top1 is a list"),
    ("models.some_tiny.weights.status", "good", r"weights\.status is 'good'; one of trained, converted"),
    ("models.some_tiny.weights.url", None, r"weights\.url is missing; published weights have an address"),
    ("models.some_tiny.weights.url", "file:///etc/passwd", r"weights\.url is 'file:///etc/passwd'; an address"),
    ("models.some_tiny.weights.file", "../a.pth", r"weights\.file is '\.\./a\.pth'; a plain file name"),
    ("models.some_tiny.weights.file", "/a", r"weights\.file is '/a'"),
    ("models.some_tiny.weights.file", ".bashrc", r"weights\.file is '\.bashrc'"),
    ("models.some_tiny.weights.sha256", "12", r"weights\.sha256 is '12'; 64 hexadecimal digits"),
    ("models.some_tiny.weights.size", 0, r"weights\.size is 0; bytes"),
    ("models.some_tiny.weights.sha", "0", r"no key 'some_tiny\.weights\.sha'; did you mean sha256"),
    ("models.some_tiny.weights.status", "trained", r"weights\.sha256 is missing; weights that are trained here"),
]


@pytest.mark.parametrize("key, value, message", WRONG, ids=lambda x: str(x)[:40])
def test_a_wrong_key_is_named(tmp_path, key, value, message):
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    *path, last = key.split(".")
    node = data
    for part in path:
        node = node[part]
    node[last] = value
    with pytest.raises(ValueError, match=message) as error:
        read_system(_written(tmp_path, data))
    assert str(tmp_path / "some.yaml") in str(error.value)


@pytest.mark.parametrize(
    "missing", ["system", "title", "task", "models", "params", "input_size", "num_classes", "mixers"]
)
def test_a_missing_key_is_named(tmp_path, missing):
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    (data if missing in data else data["models"]["some_tiny"]).pop(missing)
    with pytest.raises(ValueError, match=rf"some\.yaml: .*{missing}'? is missing"):
        read_system(_written(tmp_path, data))


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "a: [", "a: !!python/object/apply:os.system ['true']", "\x00", "? [a]\n: b", "&a [*a]"]
)
def test_what_is_no_index(tmp_path, text):
    with pytest.raises(ValueError, match=r"some\.yaml"):
        read_system(_written(tmp_path, text))


# -- what is generated from it ----------------------------------------------------------------------------------------


def test_cards_say_what_is_known(capsys, tmp_path):
    assert main(["card", "davit_tiny"]) == 0
    text = capsys.readouterr().out
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "mit"
    for part in ("28,360,168", "imagenet-1k: top1 82.8 (arXiv:2204.03645; as published, not reproduced here)",
                 "sha256: none recorded, unverified", "davit-tiny_cls_300e_in1k"):  # fmt: skip
        assert part in text
    assert main(["card", "davit_*", "biformer_tiny", "--out", str(tmp_path)]) == 0
    names = {p.stem for p in tmp_path.glob("*.md")}
    assert names == {*zoo.list_models("davit_*"), "biformer_tiny"}
    assert main(["card", "davit_tinny"]) == 1
    assert "did you mean davit_tiny" in capsys.readouterr().err


def test_a_card_for_every_model():
    for name, info in load_index().items():
        text = model_card(name, info)
        assert yaml.safe_load(text.split("---")[1])["library_name"] == "attnzoo"
        assert f"# {name}\n" in text
        if info.weights_status != "none":
            assert ("unverified" in text) == (info.weights.get("sha256") is None), name
    assert "does not list" in model_card("new", None)


def test_model_index_is_what_openmmlab_reads(repo_root):
    file = repo_root / "model-index.yml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    collections = {c["Name"] for c in data["Collections"]}
    models = {m["Name"]: m for m in data["Models"]}
    shared = set(models) & set(load_index())  # whether it is up to date is asked of the tool, above
    assert len(shared) > 100
    for name in shared:
        info, model = model_info(name), models[name]
        assert model["In Collection"] in collections
        assert model["Metadata"] == {"Parameters": info.params, "FLOPs": info.flops}
        assert model["Config"] is None or (repo_root / model["Config"]).is_file(), name
    assert models["davit_tiny"]["Results"] == [
        {"Task": "Image Classification", "Dataset": "ImageNet-1k", "Metrics": {"Top 1 Accuracy": 82.8}}
    ]
    assert data_dir("weights/index").is_dir()
