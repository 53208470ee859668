"""One face for every runtime: give a stage its named arrays, get its named arrays back."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from engines.bundle import Bundle
from engines.contracts import Stage

Arrays = dict[str, npt.NDArray[Any]]


class Engine(ABC):
    """Runs the five graphs of one bundle. A context manager; stages load when first used, or by :meth:`load`.

    Subclasses implement ``_load``, ``_run``, ``provider_of`` and, where there is something to free, ``close``.

    Attributes:
        name: the backend's name, as ``--backend`` takes it.
        bundle: the bundle it runs.
        load_ms: milliseconds that loading each stage took, checks of its files included.
    """

    name: str

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.load_ms: dict[Stage, float] = {}

    def load(self, *stages: Stage) -> None:
        """Load stages that are not loaded yet; all of them when none is named.

        Raises:
            RSRefSegError: a file is not what the bundle says, or the runtime cannot take it.
        """
        for stage in stages or tuple(Stage):
            if stage not in self.load_ms:
                start = time.perf_counter()
                self._load(stage)
                self.load_ms[stage] = (time.perf_counter() - start) * 1e3

    def run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run one stage on arrays by contract name; gives its outputs by contract name.

        Raises:
            BadInputError: the feeds do not fit the contract.
            RSRefSegError: loading or running failed.
        """
        contract = self.bundle.manifest.stages[stage].contract
        contract.check_inputs(feeds)
        self.load(stage)
        results = self._run(stage, feeds)
        contract.check_outputs(results)
        return results

    @abstractmethod
    def provider_of(self, stage: Stage) -> str:
        """What really runs a stage, in the runtime's own words. Loads it if need be."""

    @abstractmethod
    def _load(self, stage: Stage) -> None:
        """Build what :meth:`_run` needs for a stage."""

    @abstractmethod
    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a loaded stage on feeds that fit its contract."""

    def close(self) -> None:
        """Free what was loaded. Stages load again when used again."""
        self.load_ms.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
