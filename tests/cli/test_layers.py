"""Allowed imports between packages, for every import of every module, also in functions and by name."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rsrefseg
from tests.support import ROOT
from tests.support.commands import run_alone

LAYERS = ("cli", "bench", "export", "rsrefseg", "engines")

# Modules of engines/ that training and export share with serving; they import one another and nothing else of it.
LEAVES = {
    "errors", "hub.bases", "hub.fetch", "presence", "records", "segmentation", "text", "bundle.contracts",
    "images.images", "system.files", "system.progress", "system.tables",
}  # fmt: skip
# What the bundle package offers to the exporter besides.
BUNDLE = {"bundle.bundle", "bundle.manifest", "bundle.reference", "bundle.comparison", "bundle.tolerances"}
# The modules that run a quantised graph or bundle to judge it, and what they may use besides.
JUDGES = {
    "export/quantization/judge": {"backends", "segmenter"},
    "export/quantization/quantize": {"onnxruntime.engine"},
    "export/quantization/quantizer": {"onnxruntime.library"},
    "export/quantization/sensitivity": {"onnxruntime.library"},
}
# What only the leaves import.
BEHIND_LEAVES = {f"images.{name}" for name in ("bands", "contrast", "names", "photos", "rasters", "scene", "tiles")}

# Third-party packages an edge device installs; a runtime only in its own folder, inside a function.
ON_THE_EDGE = {
    "numpy",
    "PIL",
    "cv2",
    "rasterio",
    "tokenizers",
    "safetensors",
    "rich",
    "msgspec",
    "psutil",
    "typer",
    "huggingface_hub",
}
WRAPPERS = {
    "onnxruntime": ("engines/onnxruntime/library",),
    "openvino": ("engines/openvino/library",),
    "tensorrt": tuple(f"engines/tensorrt/{part}" for part in ("build", "library", "session")),
    "tensorrt_rtx": ("engines/tensorrt/library",),
    "tensorrt_rtx_bindings": ("engines/tensorrt/library",),
    "polygraphy": ("engines/tensorrt/library",),
    "cuda": ("engines/tensorrt/cuda",),
    "ray": ("engines/cluster",),
    "pyogrio": ("engines/results/vectors",),
}
HEAVY = {"torch", "torchvision", "transformers", "segment_anything", "peft", "accelerate", "onnx", "onnxscript"}


class Where(Enum):
    """Time of an import: with its module, when a function runs, or never (for type checkers only)."""

    MODULE, FUNCTION, TYPING = range(3)


@dataclass(frozen=True)
class Arrow:
    """An import. ``target`` is a file of this project without suffix, a package, or ``?`` for a computed name."""

    importer: str
    target: str
    where: Where


# It needs the extra tensorrt-rtx, which has onnx.
CHECK = Arrow("engines/tensorrt/check", "onnx", Where.FUNCTION)


def arrows(root: Path) -> Iterator[Arrow]:
    """Return every import below ``root``, where ``engines/`` is ``rsrefseg.engines``."""
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).with_suffix("")
        if file.parts[0] in LAYERS and not path.is_symlink():
            module = [*(() if file.parts[0] == "rsrefseg" else ("rsrefseg",)), *file.parts]
            for target, where in _imports(ast.parse(path.read_text(encoding="utf-8")), module[:-1], Where.MODULE):
                yield Arrow(file.as_posix().removesuffix("/__init__"), _file_of(root, target), where)


def _imports(node: ast.AST, package: list[str], where: Where) -> Iterator[tuple[str, Where]]:
    """Return the dotted names of modules that code imports, with the names it imports from them."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, where) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        yield from ((f"{source}.{alias.name}", where) for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
        yield _constant_head(node.args[0]), where
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _imports(child, package, _where_of(node, field, where))


def _where_of(node: ast.AST, field: str, where: Where) -> Where:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and field == "body":
        return Where.FUNCTION if where is Where.MODULE else where
    if isinstance(node, ast.If) and field == "body" and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return Where.TYPING
    return where


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _constant_head(node: ast.expr) -> str:
    """Return the name in ``import_module("a.b")``, the package in ``import_module(f"a.{b}")``, else ``?``."""
    if isinstance(node, ast.JoinedStr):
        head = node.values[0]
        text = head.value if isinstance(head, ast.Constant) else ""
        return text.rpartition(".")[0] or "?" if isinstance(text, str) else "?"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "?"


def _file_of(root: Path, target: str) -> str:
    """Return the longest prefix that is a file or folder of this project, or else the first part."""
    first, *rest = target.split(".")
    if first != "rsrefseg":
        return f"top-level {first}" if first in LAYERS else first
    parts = rest if rest and rest[0] in LAYERS else ["rsrefseg", *rest]
    while len(parts) > 1 and not (root.joinpath(*parts).with_suffix(".py").exists() or root.joinpath(*parts).is_dir()):
        parts.pop()
    return "/".join(parts)


def violation(arrow: Arrow) -> bool:
    """Return whether an import is not allowed."""
    layer, target = arrow.importer.partition("/")[0], arrow.target.partition("/")[0]
    if target == "?":
        return arrow.importer != "rsrefseg"  # the public names: they are checked where they run
    if target.startswith("top-level"):
        return True
    if target in LAYERS:
        return not _may_import(arrow, layer, target)
    if target in sys.stdlib_module_names:
        return False
    if target in WRAPPERS:
        return arrow.where is Where.MODULE or not arrow.importer.startswith(WRAPPERS[target])
    if layer == "engines":
        return target not in ON_THE_EDGE and arrow != CHECK
    return target in HEAVY and layer in ("bench", "cli") and arrow.where is Where.MODULE


def _may_import(arrow: Arrow, layer: str, target: str) -> bool:
    """Return the imports between layers."""
    name = arrow.target.partition("/")[2].replace("/", ".")
    if layer == target:
        leaf = arrow.importer.removeprefix("engines/").replace("/", ".") in LEAVES | BEHIND_LEAVES
        return not leaf or name in LEAVES | BEHIND_LEAVES
    if layer == "cli":
        return arrow.target in ("engines/errors", "engines/system/terminal") or arrow.where is Where.FUNCTION
    if layer == "bench":
        return target == "engines" or (target == "rsrefseg" and arrow.where is not Where.MODULE)
    if layer == "export":
        allowed = LEAVES | BUNDLE | JUDGES.get(arrow.importer, set())
        return target == "rsrefseg" or (target == "engines" and name in allowed)
    if arrow.importer == "rsrefseg":
        return target == "engines" and arrow.where is Where.TYPING
    if arrow.importer == "rsrefseg/__main__":
        return target == "cli"
    return layer == "rsrefseg" and target == "engines" and name in LEAVES


def test_every_import_follows_the_layers() -> None:
    found = list(arrows(ROOT))
    assert len(found) > 500, "the walk misses modules"
    assert {arrow.importer.partition("/")[0] for arrow in found} == set(LAYERS)
    assert [arrow for arrow in found if violation(arrow)] == []


def test_no_import_circle() -> None:
    """Neither at module level nor in functions. Public names are imported by name on first use."""
    imports: dict[str, set[str]] = {}
    for arrow in arrows(ROOT):
        if arrow.where is not Where.TYPING and arrow.importer not in ("rsrefseg", arrow.target):
            imports.setdefault(arrow.importer, set()).add(arrow.target)
    TopologicalSorter(imports).prepare()  # or a CycleError


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("engines/new.py", "import torch"),
        ("engines/new.py", "def f():\n    from transformers import AutoModel"),
        ("engines/new.py", "from importlib import import_module\nmodel = lambda: import_module('peft')"),
        ("engines/new.py", "import importlib\ndef f(name):\n    return importlib.import_module(name)"),
        ("engines/deep/new.py", "from ...model import config"),
        ("engines/new.py", "from engines.errors import RSRefSegError"),
        ("engines/new.py", "def f():\n    import onnxruntime"),
        ("engines/onnxruntime/engine.py", "import onnxruntime"),
        ("engines/text.py", "def f():\n    from .segmenter import Segmenter"),
        ("engines/images/rasters.py", "from ..segmenter import Segmenter"),
        ("rsrefseg/new.py", "def f():\n    from .engines.bundle import bundle"),
        ("rsrefseg/new.py", "__import__('rsrefseg.engines.bundle.bundle')"),
        ("rsrefseg/new.py", "def f(n):\n    import importlib\n    importlib.import_module(f'rsrefseg.bench.{n}')"),
        ("rsrefseg/__init__.py", "from .engines.segmenter import Segmenter"),
        ("export/new.py", "from rsrefseg.engines.segmenter import Segmenter"),
        ("bench/new.py", "from rsrefseg.model.model import RSRefSeg"),
        ("bench/new.py", "def f():\n    from rsrefseg.export.graph import export_graph"),
        ("cli.py", "from rsrefseg.bench.parity import run_parity"),
        ("rsrefseg/new.py", "def f():\n    from . import cli"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, code: str) -> None:
    for other in ("engines/segmenter.py", "engines/bundle/bundle.py", "export/graph.py", "rsrefseg/model/config.py"):
        (tmp_path / other).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / other).touch()
    (tmp_path / "bench" / "parity").mkdir(parents=True)
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(code)
    assert any(violation(arrow) for arrow in arrows(tmp_path))


LOADS_NOTHING = """
import sys
import rsrefseg
heavy = {"torch", "torchvision", "transformers", "onnxruntime", "onnx", "numpy", "cv2", "PIL", "rasterio", "rich"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert set(rsrefseg.__all__) <= set(dir(rsrefseg))
for name in rsrefseg.__all__:
    assert getattr(rsrefseg, name).__name__ == name
assert not hasattr(rsrefseg, "nonsense")
"""


def test_the_public_names_are_all_there_and_load_nothing() -> None:
    done = run_alone(script=LOADS_NOTHING)
    assert done.returncode == 0, done.stderr


def test_types_and_names_of_the_public_face_agree() -> None:
    """Names under TYPE_CHECKING equal those available at run time."""
    tree = ast.parse((ROOT / "rsrefseg" / "__init__.py").read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1)
    seen = {alias.name: f".{node.module}" for node in nodes for alias in node.names}
    assert seen == rsrefseg._MODULES
    assert set(seen) == set(rsrefseg.__all__)
