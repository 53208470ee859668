"""Who may know whom: every import of every module, also those inside functions and those by name."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("cli", "bench", "export", "rsrefseg", "engines")

# What training and export share with serving, so that neither can see a picture or a phrase differently.
LEAVES = {"errors", "files", "images", "text", "contracts", "progress"}
# What a bundle consists of: its files, their manifest, the reference samples.
BUNDLE = {"bundle", "manifest", "reference"}
# What those may reach in turn: reading pictures is three modules.
BEHIND_LEAVES = {"decode", "tiff"}

RUNTIMES = {"onnxruntime", "openvino", "tensorrt", "cuda"}
# Third-party packages an edge device installs; a runtime only where it is wrapped.
ON_THE_EDGE = {"numpy", "PIL", "cv2", "tokenizers", "safetensors", "rich"}
WRAPPERS = {
    "onnxruntime": {
        *("engines.onnxruntime_engine", "engines.onnxruntime_cuda", "engines.onnxruntime_replay", "engines.doctor"),
        *("bench.naive", "bench.block_runtimes", "bench.peaks"),
    },
    "openvino": {"engines.openvino_library"},
    "tensorrt": {f"engines.tensorrt_{part}" for part in ("build", "context", "errors", "library", "timing")},
    "cuda": {"engines.tensorrt_cuda"},
}
HEAVY = {"torch", "torchvision", "transformers", "segment_anything", "peft", "accelerate", "onnx", "onnxscript"}


class Where(Enum):
    """When an import happens: with its module, when a function runs, or never (for type checkers only)."""

    MODULE = "at module level"
    FUNCTION = "in a function"
    TYPING = "for types"


@dataclass(frozen=True)
class Arrow:
    """One import: who, whom, when. ``target`` is ``?`` where a name is computed and cannot be told."""

    importer: str
    target: str
    where: Where

    def __str__(self) -> str:
        return f"{self.importer} imports {self.target} {self.where.value}"


def arrows(root: Path) -> Iterator[Arrow]:
    """Every import below ``root``."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in LAYERS and "__pycache__" not in parts:
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            package = name if parts[-1] == "__init__" else name.rpartition(".")[0]
            for target, where in _imports(ast.parse(path.read_text(encoding="utf-8")), package, Where.MODULE):
                yield Arrow(name, _module_of(root, target), where)


def _imports(node: ast.AST, package: str, where: Where) -> Iterator[tuple[str, Where]]:
    """Dotted names of what a piece of code imports, with the names that are taken out of them."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, where) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
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
    """The name in ``import_module("a.b")``, the package in ``import_module(f"a.{b}")``, else ``?``."""
    if isinstance(node, ast.JoinedStr):
        head = node.values[0]
        text = head.value if isinstance(head, ast.Constant) else ""
        return text.rpartition(".")[0] or "?" if isinstance(text, str) else "?"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "?"


def _module_of(root: Path, target: str) -> str:
    """The longest beginning of a dotted name that is a module of ours; other names' first part."""
    if target.partition(".")[0] not in LAYERS:
        return target.partition(".")[0]
    parts = target.split(".")
    while len(parts) > 1 and not (root.joinpath(*parts).with_suffix(".py").exists() or root.joinpath(*parts).is_dir()):
        parts.pop()
    return ".".join(parts)


def violation(arrow: Arrow) -> bool:
    """Whether an import is not allowed."""
    layer, target = arrow.importer.partition(".")[0], arrow.target.partition(".")[0]
    if target == "?":
        return arrow.importer != "rsrefseg"  # the public face: its names are checked where it runs
    if target in LAYERS:
        return not _may_know(arrow, layer, target)
    if target in sys.stdlib_module_names:
        return False
    if target in RUNTIMES:
        return arrow.where is Where.MODULE or arrow.importer not in WRAPPERS.get(target, ())
    if layer == "engines":
        return target not in ON_THE_EDGE
    return target in HEAVY and layer in ("bench", "cli") and arrow.where is Where.MODULE


def _may_know(arrow: Arrow, layer: str, target: str) -> bool:
    """The arrows between the layers."""
    if layer == target:
        return True
    name = arrow.target.partition(".")[2]
    if layer == "cli":
        return arrow.target == "engines.errors" or arrow.where is Where.FUNCTION
    if layer == "bench":
        return target == "engines" or (target == "rsrefseg" and arrow.where is not Where.MODULE)
    if layer == "export":
        return target == "rsrefseg" or (target == "engines" and name in LEAVES | BUNDLE)
    if arrow.importer == "rsrefseg":
        return target == "engines" and arrow.where is Where.TYPING
    return layer == "rsrefseg" and target == "engines" and name in LEAVES


def test_every_import_follows_the_layers() -> None:
    found = list(arrows(ROOT))
    assert len(found) > 500, "the walk misses modules"
    assert {arrow.importer.partition(".")[0] for arrow in found} == set(LAYERS)
    assert [str(arrow) for arrow in found if violation(arrow)] == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("engines/new.py", "import torch"),
        ("engines/new.py", "def f():\n    from transformers import AutoModel"),
        ("engines/new.py", "class A:\n    async def f(self):\n        import segment_anything.modeling"),
        ("engines/new.py", "try:\n    import accelerate\nexcept ImportError:\n    pass"),
        ("engines/new.py", "import scipy"),
        ("engines/new.py", "from importlib import import_module\nmodel = lambda: import_module('peft')"),
        ("engines/new.py", "import importlib\ndef f(name):\n    return importlib.import_module(name)"),
        ("engines/new.py", "from rsrefseg.config import Preset"),
        ("engines/deep/new.py", "from ...rsrefseg import config"),
        ("engines/deep/new.py", "def f():\n    from ... import bench"),
        ("engines/new.py", "def f():\n    import onnxruntime"),
        ("engines/onnxruntime_engine.py", "import onnxruntime"),
        ("engines/tensorrt_engine.py", "import tensorrt"),
        ("engines/tensorrt_build.py", "import tensorrt"),
        ("engines/tensorrt_engine.py", "def f():\n    import tensorrt"),
        ("engines/tensorrt_build.py", "def f():\n    from cuda.bindings import runtime"),
        ("rsrefseg/new.py", "from engines.segmenter import Segmenter"),
        ("rsrefseg/new.py", "from engines import Segmenter"),
        ("rsrefseg/new.py", "def f():\n    from engines import bundle"),
        ("rsrefseg/new.py", "__import__('engines.bundle')"),
        ("rsrefseg/new.py", "import export.graph"),
        ("rsrefseg/new.py", "def f(n):\n    import importlib\n    importlib.import_module(f'bench.{n}')"),
        ("rsrefseg/__init__.py", "from engines.segmenter import Segmenter"),
        ("export/new.py", "from engines.segmenter import Segmenter"),
        ("export/new.py", "def f():\n    import bench.parity"),
        ("bench/new.py", "from rsrefseg.model import RSRefSeg"),
        ("bench/new.py", "import torch"),
        ("bench/new.py", "def f():\n    from export.graph import export_graph"),
        ("bench/new.py", "def f():\n    import tensorrt"),
        ("cli.py", "from bench.parity import run_parity"),
        ("rsrefseg/new.py", "def f():\n    import cli"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, module: str, code: str) -> None:
    for file in (
        "engines/segmenter.py",
        "engines/bundle.py",
        "export/graph.py",
        "bench/parity.py",
        "rsrefseg/config.py",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text(code)
    assert any(violation(arrow) for arrow in arrows(tmp_path))


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("engines/new.py", "import numpy\nfrom engines.bundle import Bundle\nfrom .bundle import Bundle"),
        ("engines/onnxruntime_engine.py", "def f():\n    import onnxruntime"),
        ("rsrefseg/new.py", "import torch\nfrom engines.text import Tokenizer"),
        ("rsrefseg/__init__.py", "if TYPE_CHECKING:\n    from engines.segmenter import Segmenter"),
        ("export/new.py", "import onnx\nfrom engines.bundle import Bundle\nfrom rsrefseg import model"),
        ("bench/new.py", "from engines import Segmenter\ndef f():\n    from rsrefseg.model import RSRefSeg"),
        ("bench/new.py", "if typing.TYPE_CHECKING:\n    from rsrefseg.model import RSRefSeg"),
        ("cli.py", "from engines.errors import RSRefSegError\ndef f():\n    from export.bundle import export_run"),
    ],
)
def test_what_is_allowed_is_not_complained_about(tmp_path: Path, module: str, code: str) -> None:
    for file in ("engines/bundle.py", "engines/text.py", "engines/errors.py", module):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / module).write_text(code)
    found = list(arrows(tmp_path))
    assert found
    assert not any(violation(arrow) for arrow in found)


def test_leaves_are_leaves() -> None:
    """Whoever imports one gets no runtime with it, not even later."""
    known = {arrow.importer: set[str]() for arrow in arrows(ROOT)}
    for arrow in arrows(ROOT):
        if arrow.where is not Where.TYPING:
            known[arrow.importer].add(arrow.target)
    reached = {f"engines.{leaf}" for leaf in LEAVES}
    while (
        more := {target for name in reached for target in known.get(name, ()) if target.startswith("engines")} - reached
    ):
        reached |= more
    assert reached == {f"engines.{name}" for name in LEAVES | BEHIND_LEAVES}


def test_the_public_face_offers_everybody_and_loads_nobody() -> None:
    """In a process of its own: what importing leaves in memory, and that every name is there."""
    code = textwrap.dedent("""
        import sys
        import rsrefseg, engines
        heavy = {"torch", "torchvision", "transformers", "onnxruntime", "onnx", "numpy", "cv2", "PIL", "rich"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        assert {home.partition(".")[0] for home in rsrefseg._HOMES.values()} == {"rsrefseg", "engines"}
        for face in (rsrefseg, engines):
            assert set(face._HOMES) == set(face.__all__)
            assert set(face.__all__) <= set(dir(face))
            for name in face.__all__:
                assert getattr(face, name).__name__ == name
        from rsrefseg import RSRefSeg, Segmenter, model_config
        assert Segmenter is engines.Segmenter
        assert model_config("tiny").preset == "tiny"
        assert not hasattr(rsrefseg, "nonsense")
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_types_and_names_of_the_public_face_agree() -> None:
    """What type checkers see under TYPE_CHECKING is what is found at run time."""
    import rsrefseg

    tree = ast.parse((ROOT / "rsrefseg" / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name: seen.get(name) for name in rsrefseg._HOMES} == rsrefseg._HOMES
