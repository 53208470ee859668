"""``rsrefseg build``: checks its options and starts the build or the check they ask for. ``export`` checks as well."""

from pathlib import Path
from typing import Any, NamedTuple

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..engine import refuse_dynamic
from ..errors import BadInputError, MissingPartError
from .build import BuildOptions, Compiler
from .check import CompileReport, check_compilation, default_gpus
from .cuda import Cuda
from .gpus import parse_gpus
from .library import gpu_platform, open_rtx, open_tensorrt
from .store import BuildReport, build_portable, ensure_engines

_RUNTIMES = ("tensorrt", "tensorrt-rtx")


class BuildRequest(NamedTuple):
    """The options of ``rsrefseg build``; ``None`` for those that were not given.

    Attributes:
        bundle: folder of the bundle; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        stages: comma-separated stages; by default all.
        check: only check that the graphs compile, with TensorRT-RTX.
        runtime: ``tensorrt`` builds for this GPU, ``tensorrt-rtx`` for ``gpus``.
        gpus: comma-separated compute capabilities or product names.
        out: folder of TensorRT-RTX's engines; by default ``./engines``.
        workspace_mib: see ``BuildOptions``; by default that of the previous engine.
        optimization_level: see ``BuildOptions``; by default that of the previous engine.
        force: build current engines again as well.
    """

    bundle: Path | None = None
    stages: str | None = None
    check: bool = False
    runtime: str = _RUNTIMES[0]
    gpus: str | None = None
    out: Path | None = None
    workspace_mib: int | None = None
    optimization_level: int | None = None
    force: bool = False


def run_build(request: BuildRequest) -> BuildReport | CompileReport:
    """Do what a request asks for.

    Raises:
        BadInputError: options contradict each other, are out of range, or name what does not exist.
        RSRefSegError: see ``ensure_engines``, ``check_compilation`` and ``build_portable``.
    """
    if request.runtime not in _RUNTIMES:
        raise BadInputError(f"unknown runtime '{request.runtime}': known are {', '.join(_RUNTIMES)}")
    names = [name.strip() for name in (request.stages or ", ".join(Stage)).split(",") if name.strip()]
    if unknown := [name for name in names if name not in list(Stage)]:
        raise BadInputError(f"unknown stage '{unknown[0]}': known are {', '.join(Stage)}")
    if not names:
        raise BadInputError(f"--stages names no stage: known are {', '.join(Stage)}")
    stages = tuple(stage for stage in Stage if stage in names)
    gpus = None if request.gpus is None else parse_gpus(request.gpus)
    portable = request.runtime == "tensorrt-rtx"
    unused: tuple[str, ...]
    if request.check:
        how, unused = "--check", ("out", "force", "workspace_mib", "optimization_level")
    elif portable:
        how, unused = "--runtime tensorrt-rtx", ("stages", "workspace_mib", "optimization_level")
    else:
        how, unused = "a build for this GPU (or add --runtime tensorrt-rtx)", ("gpus", "out")
    if wrong := [name for name in unused if (value := getattr(request, name)) is not None and value is not False]:
        raise BadInputError(f"--{wrong[0].replace('_', '-')} has no effect with {how}: leave it out")
    if portable and gpus is None and not request.check:
        raise BadInputError("--runtime tensorrt-rtx builds for named GPUs: add --gpus, e.g. --gpus sm86,rtx-4090")
    options = {"workspace_mib": request.workspace_mib, "optimization_level": request.optimization_level}
    requested = {name: value for name, value in options.items() if value is not None}
    BuildOptions(**requested)
    bundle = Bundle.open(request.bundle)
    refuse_dynamic(bundle, request.runtime)
    if request.check:
        return check_compilation(bundle, stages, gpus or default_gpus(bundle))
    if gpus is not None:
        return build_portable(bundle, gpus, request.out or Path("engines"), request.force)
    library = open_tensorrt()
    return ensure_engines(
        Compiler(library, gpu_platform(library, Cuda().gpu)), bundle, stages, requested, request.force
    )


class CheckedExport(NamedTuple):
    """The report of an export, and that of its compile check; None if it was not checked."""

    export: Any
    check: CompileReport | None

    @property
    def failure(self) -> str | None:
        """The failure of the compile check; None if it holds or was not made. The bundle is written either way."""
        return self.check.failure if self.check else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict: the export's with the check as ``compile_check``."""
        return {**self.export.to_dict(), "compile_check": self.check.to_dict() if self.check else None}

    def render(self) -> Any:
        """Return the tables of both for the terminal."""
        from rich.console import Group

        return Group(self.export.render(), *([self.check.render()] if self.check else []))


def checks_export(wanted: bool | None, for_tensorrt: bool) -> bool:
    """Return whether an export ends with a compile check: by default for TensorRT, where its compiler is installed.

    Args:
        wanted: ``--check`` or ``--no-check``; None if neither was given.
        for_tensorrt: whether TensorRT is the target of the export.

    Raises:
        BadInputError: a check is wanted for another target.
        MissingPartError: a check is wanted and TensorRT-RTX is not installed.
    """
    if wanted and not for_tensorrt:
        raise BadInputError("--check compiles graphs for TensorRT: leave it out, or choose --target tensorrt")
    if wanted is False or not for_tensorrt:
        return False
    try:
        open_rtx()
    except MissingPartError:
        if wanted:
            raise
        return False
    return True


def with_check(export: Any, checked: bool) -> CheckedExport:
    """Add the compile check of the bundle that an export wrote.

    Args:
        export: the report of the export.
        checked: whether to check; if not, only the report is returned.
    """
    if not checked:
        return CheckedExport(export, None)
    bundle = Bundle.open(Path(export.bundle))
    return CheckedExport(export, check_compilation(bundle, tuple(Stage), default_gpus(bundle)))
