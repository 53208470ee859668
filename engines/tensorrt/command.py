"""``rsrefseg build``: checks its options and starts the build or the check they ask for. ``export`` checks as well."""

from pathlib import Path
from typing import Any, NamedTuple

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..errors import BadInputError, MissingPartError
from .check import DEFAULT_GPUS, CompileReport, check_compilation
from .gpus import parse_gpus
from .library import open_rtx
from .portable import build_portable
from .store import BuildReport, build_bundle, parse_stages

_RUNTIMES = ("tensorrt", "tensorrt-rtx")
_DEFAULT_OUT = Path("engines")


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
        BadInputError: options contradict each other, or name what does not exist.
        RSRefSegError: see ``build_bundle``, ``check_compilation`` and ``build_portable``.
    """
    if request.runtime not in _RUNTIMES:
        raise BadInputError(f"unknown runtime '{request.runtime}': known are {', '.join(_RUNTIMES)}")
    stages = parse_stages(request.stages)
    gpus = None if request.gpus is None else parse_gpus(request.gpus)
    portable = request.runtime == "tensorrt-rtx"
    _refuse(request, portable)
    if request.check:
        return check_compilation(Bundle.open(request.bundle), stages, gpus or DEFAULT_GPUS)
    if not portable:
        options = (request.stages, request.workspace_mib, request.optimization_level, request.force)
        return build_bundle(request.bundle, *options)
    if gpus is None:
        raise BadInputError("--runtime tensorrt-rtx builds for named GPUs: add --gpus, e.g. --gpus sm86,rtx-4090")
    return build_portable(Bundle.open(request.bundle), gpus, request.out or _DEFAULT_OUT, request.force)


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
    return CheckedExport(export, check_compilation(Bundle.open(Path(export.bundle)), tuple(Stage), DEFAULT_GPUS))


def _refuse(request: BuildRequest, portable: bool) -> None:
    """Raise BadInputError for the first option that would have no effect."""
    search = {
        "--workspace-mib": request.workspace_mib is not None,
        "--optimization-level": request.optimization_level is not None,
    }
    if request.check:
        how, unused = "--check", {"--out": request.out is not None, "--force": request.force, **search}
    elif portable:
        how, unused = "--runtime tensorrt-rtx", {"--stages": request.stages is not None, **search}
    else:
        how = "a build for this GPU (or add --runtime tensorrt-rtx)"
        unused = {"--gpus": request.gpus is not None, "--out": request.out is not None}
    if wrong := [name for name, given in unused.items() if given]:
        raise BadInputError(f"{wrong[0]} has no effect with {how}: leave it out")
