"""The engines, the doubles and TensorRT's own API of both majors agree on every name and signature.

``tests/support/tensorrt_stubs/`` holds the part of the API that the engines use. Where ``RSREFSEG_TENSORRT_STUBS``
names a folder with TensorRT's whole API as ``10.*/tensorrt.pyi`` and ``11.*/tensorrt.pyi``, the part is compared with
it.
"""

import ast
import inspect
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT
from tests.support.doubles.cuda_double import CudaDouble
from tests.support.doubles.tensorrt_double import doubled

STUBS = ROOT / "tests" / "support" / "tensorrt_stubs"
MAJORS = {"10": "10.9.0.34", "11": "11.4.0.106"}
WHOLE_API = os.environ.get("RSREFSEG_TENSORRT_STUBS")


@dataclass
class Surface:
    """A class of the API: its methods with all their signatures, and its attributes."""

    methods: dict[str, set[str]] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    nested: dict[str, "Surface"] = field(default_factory=dict)


def surface_of(node: ast.ClassDef) -> Surface:
    found = Surface()
    for member in node.body:
        if isinstance(member, ast.ClassDef):
            found.nested[member.name] = surface_of(member)
        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            found.attributes.add(member.target.id)
        elif isinstance(member, ast.FunctionDef):
            decorators = [ast.unparse(decorator) for decorator in member.decorator_list]
            if any(decorator == "property" or decorator.endswith(".setter") for decorator in decorators):
                found.attributes.add(member.name)
            else:
                returns = ast.unparse(member.returns) if member.returns else ""
                signature = f"({ast.unparse(member.args)}) -> {returns}"
                found.methods.setdefault(member.name, set()).add(signature)
    return found


def surfaces(file: Path) -> dict[str, Surface]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: surface_of(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def beyond(part: dict[str, Surface], whole: dict[str, Surface]) -> list[str]:
    """What a part has that the whole has not, or has otherwise."""
    found = [name for name in part if name not in whole]
    for name, mine in part.items():
        theirs = whole.get(name, Surface())
        found += [f"{name}.{attribute}" for attribute in mine.attributes - theirs.attributes]
        for method, signatures in mine.methods.items():
            # Where the whole leaves a type open, as its generator could not tell it, the part may name it.
            known = {
                other.rpartition(" -> ")[0] if other.endswith("-> ...") else other
                for other in theirs.methods.get(method, ())
            }
            found += [f"{name}.{method}{one}" for one in signatures if not {one, one.rpartition(" -> ")[0]} & known]
        found += beyond(mine.nested, theirs.nested)
    return found


def typed(stubs: Path, *sources: Path) -> subprocess.CompletedProcess[str]:
    """Type-check the engines, or other files, against stubs."""
    cache = ROOT / ".mypy_cache" / "tensorrt"  # one for both: all but the engines' part is the same
    checked = sources or tuple((ROOT / "rsrefseg" / "engines" / "tensorrt").glob("*.py"))
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={cache}", *checked],
        cwd=ROOT,
        env=os.environ | {"MYPYPATH": str(stubs)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("major", MAJORS)
def test_the_engines_type_check_against_both_majors(major: str) -> None:
    done = typed(STUBS / major)
    assert done.returncode == 0, done.stdout


def test_what_only_one_major_has_is_found(tmp_path: Path) -> None:
    """The check has teeth: 10 takes no kernel's text and only whole numbers."""
    source = tmp_path / "new_engine.py"
    source.write_text(
        "import tensorrt as trt\n\n\n"
        "def f(builder: trt.Builder, config: trt.IBuilderConfig) -> trt.IHostMemory:\n"
        '    return builder.build_serialized_network(builder.create_network(2.5), config, "text")\n'
    )
    for major, complaints in {"10": 2, "11": 0}.items():
        done = typed(STUBS / major, source)
        assert done.stdout.count(": error:") == complaints, done.stdout


@pytest.mark.skipif(WHOLE_API is None, reason="RSREFSEG_TENSORRT_STUBS names no folder with TensorRT's whole API")
@pytest.mark.parametrize("major", MAJORS)
def test_the_part_we_use_is_tensorrts_own(major: str) -> None:
    (whole,) = Path(str(WHOLE_API)).glob(f"{major}.*/tensorrt.pyi")
    assert beyond(surfaces(STUBS / major / "tensorrt.pyi"), surfaces(whole)) == []
    done = typed(whole.parent)
    assert done.returncode == 0, done.stdout


def test_a_name_that_tensorrt_lacks_is_found(tmp_path: Path) -> None:
    text = (STUBS / "10" / "tensorrt.pyi").read_text()
    (tmp_path / "other.pyi").write_text(
        text.replace("set_tensor_address", "bind_tensor").replace("model: str", "path: str")
    )
    whole = surfaces(STUBS / "10" / "tensorrt.pyi")
    found = beyond(surfaces(tmp_path / "other.pyi"), whole)
    assert [name.partition("(")[0] for name in found] == ["OnnxParser.parse_from_file", "IExecutionContext.bind_tensor"]


@pytest.mark.parametrize("major", MAJORS)
def test_the_double_has_that_surface_and_no_other(major: str) -> None:
    with doubled(MAJORS[major]):
        module = sys.modules["tensorrt"]
        wanted = surfaces(STUBS / major / "tensorrt.pyi")
        classes = {name: one for name, one in vars(module).items() if isinstance(one, type)}
        assert set(classes) == set(wanted)
        assert isinstance(module, ModuleType)
        assert module.__version__.partition(".")[0] == major
        complaints = [line for name, one in classes.items() for line in differences(one, wanted[name])]
    assert complaints == []


def differences(double: type, wanted: Surface) -> list[str]:
    """Where a class of the double is not what the API has of it."""
    missing = [name for name in (*wanted.attributes, *wanted.methods, *wanted.nested) if not has(double, name)]
    found = [f"{double.__name__} lacks {name}" for name in missing]
    for name, signatures in wanted.methods.items():
        if name.startswith("__") or not callable(getattr(double, name, None)):
            continue
        parameters = list(inspect.signature(getattr(double, name)).parameters)
        if parameters not in [parameter_names(one) for one in signatures]:
            found.append(f"{double.__name__}.{name} takes {parameters}")
    used = {name for name in vars(double) if not name.startswith("_")}
    own = OWN.get(double.__name__, set())
    return found + [
        f"{double.__name__} has {name} besides"
        for name in used - own - wanted.attributes - {*wanted.methods, *wanted.nested}
    ]


# What the double's classes need for themselves, or enums have besides what is used of them.
OWN = {
    "ICudaEngine": {"dtype", "layers"},
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH", "PREFER_JIT_PYTHON_PLUGINS"},
    "ProfilingVerbosity": {"LAYER_NAMES_ONLY"},
    "ExecutionContextAllocationStrategy": {"STATIC"},
}


def has(double: type, name: str) -> bool:
    """In the class, or set when one is made."""
    made = "__init__" in vars(double) and f"self.{name}" in inspect.getsource(inspect.unwrap(double.__init__))  # type: ignore[misc]
    return hasattr(double, name) or made


def parameter_names(signature: str) -> list[str]:
    node = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    return [argument.arg for argument in node.args.args]


def test_the_double_of_cuda_is_a_part_of_the_real_bindings() -> None:
    """Names, numbers of arguments, and values of enums, where cuda-python is installed."""
    real = pytest.importorskip("cuda.bindings.runtime")
    double = CudaDouble().module()
    for name in (name for name in vars(double) if name.startswith("cuda")):
        mine, theirs = getattr(double, name), getattr(real, name)
        if isinstance(mine, int):
            assert mine == theirs, name
        elif isinstance(mine, type):
            assert {member.name: int(member) for member in mine} == {
                member.name: int(getattr(theirs, member.name)) for member in mine
            }
        else:
            wanted = list(inspect.signature(theirs).parameters)
            assert list(inspect.signature(mine).parameters) == wanted, name
