"""Rules of the code base that can be read from its source."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("kernels/zoo_kernels/**/*.py")])
FOLDERS = ("tools", "tests", "configs", "kernels/tests", "kernels/benchmarks")
EVERYTHING = sorted([*SOURCES, *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))])

#: what may not be imported from where; a module knows only what stands to the left of it in
#: operator -> layer -> mixer -> backbone -> task -> engine, command line
TASKS = ("zoo.classification", "zoo.detection", "zoo.segmentation", "zoo.medical")
OUTER = ("zoo.engine", "zoo.cli", "zoo.api", "zoo.viz", "zoo.export", "zoo.metrics", "zoo.data", "zoo.weights")
FORBIDDEN = {
    "zoo_kernels": ("zoo", "mmengine", "timm"),
    "zoo.layers": ("zoo.mixers", "zoo.backbones", *TASKS, *OUTER, "mmengine"),
    "zoo.mixers": ("zoo.backbones", *TASKS, *OUTER, "mmengine"),
    "zoo.backbones": (*TASKS, *OUTER, "mmengine"),
    "zoo.data": ("zoo.engine", "zoo.cli", "zoo.api", "zoo.export"),
    "zoo.metrics": ("zoo.engine", "zoo.cli", "zoo.api", "zoo.export"),
}
#: the same for what is imported with the module; a function that serves the command line may import more when called
FORBIDDEN_AT_THE_TOP = dict.fromkeys(TASKS, ("zoo.engine", "zoo.cli", "zoo.api", "zoo.export"))


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT / "kernels" if "zoo_kernels" in path.parts else ROOT).with_suffix("")
    return ".".join(relative.parts).removesuffix(".__init__")


def imports(path: Path, top: bool = False) -> list[tuple[int, str]]:
    """(line, module) of the imports of a file, those inside functions too unless ``top``; none for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef) if top else ()
    skip = {
        child
        for node in ast.walk(tree)
        if isinstance(node, functions) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if node in skip:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("rules, top", [(FORBIDDEN, False), (FORBIDDEN_AT_THE_TOP, True)])
def test_imports_point_to_the_left(rules, top):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in SOURCES
        for package, forbidden in rules.items()
        if within(module_name(path), package)
        for line, target in imports(path, top)
        if any(within(target, f) for f in forbidden)
    ]
    assert wrong == []


def test_the_rule_about_imports_can_fail(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("def f():\n    from zoo.engine import runner\n    import mmengine.model\n")
    assert [t for _, t in imports(path)] == ["zoo.engine.runner", "mmengine.model"]
    assert imports(path, top=True) == []


def test_relative_imports_are_not_used():
    wrong = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


def test_only_one_file_imports_albumentations():
    users = {str(p.relative_to(ROOT)) for p in SOURCES for _, target in imports(p) if within(target, "albumentations")}
    assert users <= {"zoo/data/transforms.py"}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    ).stdout.strip()


def test_importing_zoo_loads_nothing_heavy():
    code = "import sys, zoo; print(sorted({m.split('.')[0] for m in sys.modules} & {%s}))"
    heavy = ("torch", "timm", "triton", "mmengine", "cv2", "albumentations", "numpy", "matplotlib")
    assert run(code % ", ".join(map(repr, heavy))) == "[]"


def test_building_a_model_needs_torch_only():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "from zoo.registry import MODELS\n"
        "MODELS.get('davit_nano')(num_classes=2)(torch.zeros(1, 3, 32, 32))\n"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} & {%s}))"
    )
    heavy = ("timm", "torchvision", "triton", "mmengine", "cv2", "albumentations", "matplotlib")
    assert run(code % ", ".join(map(repr, heavy))) == "[]"


def test_files_are_short():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in EVERYTHING}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_torch_load_is_safe():
    wrong = []
    for path in EVERYTHING:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = [k for k in node.keywords if k.arg == "weights_only"]
                if not safe or not (isinstance(safe[0].value, ast.Constant) and safe[0].value.value is True):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    # Nothing may load a pickle that can execute code: not even a test, unless it shows what happens then.
    assert wrong == []


@pytest.mark.parametrize("folder", ["kernels", "tools", "tests", "configs", "weights"])
def test_folders_that_are_no_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_kernels_does_not_shadow_the_distribution_of_that_name():
    assert "attnzoo" not in packages_distributions().get("kernels", [])
    assert not list((ROOT / "kernels").glob("*.py"))
    assert {p.name for p in (ROOT / "kernels").iterdir() if p.is_dir() and p.name.startswith("zoo")} == {"zoo_kernels"}


def test_sources_are_ascii():
    wrong = [str(p.relative_to(ROOT)) for p in EVERYTHING if not p.read_text(encoding="utf-8").isascii()]
    assert wrong == []


def test_every_module_says_what_it_is():
    def is_empty(path):
        return not path.read_text(encoding="utf-8").strip()

    trees = {p: ast.parse(p.read_text(encoding="utf-8")) for p in SOURCES if not is_empty(p)}
    assert [str(p.relative_to(ROOT)) for p, tree in trees.items() if ast.get_docstring(tree) is None] == []
