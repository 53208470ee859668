"""State, enums and small values of the double of TensorRT."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any
from weakref import WeakSet

from tests.support.doubles.cuda_double import CudaDouble
from tests.support.doubles.cuda_values import RuleBroken

CURRENT: list["State"] = []  # the double in use


class ILogger:
    Severity = IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})


class IProgressMonitor:
    pass


DataType = IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "BOOL": 4, "UINT8": 5, "INT64": 8})
TensorIOMode = IntEnum("TensorIOMode", {"INPUT": 1, "OUTPUT": 2})
MemoryPoolType = IntEnum("MemoryPoolType", {"WORKSPACE": 0})
BuilderFlag = IntEnum("BuilderFlag", {"TF32": 7})
ProfilingVerbosity = IntEnum("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "DETAILED": 2})
LayerInformationFormat = IntEnum("LayerInformationFormat", {"JSON": 1})
ExecutionContextAllocationStrategy = IntEnum("ExecutionContextAllocationStrategy", {"STATIC": 0, "USER_MANAGED": 2})


def NetworkDefinitionCreationFlag() -> Any:
    """Return the enum of this version: the number of the bit changed from 1 to 0."""
    members = {
        10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        11: {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1},
    }[state().major]
    return IntEnum("NetworkDefinitionCreationFlag", members)


class Dims(tuple):
    pass


class IHostMemory(bytes):
    pass


@dataclass
class State:
    """State that tests set and read."""

    version: str
    cuda: CudaDouble = field(default_factory=CudaDouble)
    faults: set[str] = field(default_factory=set)  # calls that fail, as ``Class.method``
    built: list[str] = field(default_factory=list)  # names of graphs, in order
    deserialized: int = 0  # engines loaded so far
    during_build: Callable[[], None] = lambda: None
    logger: Any = None  # the first one that was given
    alive: WeakSet[Any] = field(default_factory=WeakSet)  # engines that are not freed

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def refuse(self, message: str, answer: Any = None) -> Any:
        """Log an error and return the matching result."""
        if self.logger is not None:
            self.logger.log(ILogger.Severity.ERROR, message)
        return answer

    def keep_logger(self, logger: Any) -> None:
        """Set the logger; raise RuleBroken for a second one, which TensorRT would ignore."""
        if self.logger not in (None, logger):
            raise RuleBroken("a second logger, which TensorRT would ignore")
        self.logger = logger


def state() -> State:
    """Return the state of the current double."""
    return CURRENT[-1]


def fallible(answer: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a call that tests can make fail or raise, as the real one does."""

    def decorate(call: Callable[..., Any]) -> Any:
        def guarded(*arguments: Any, **named: Any) -> Any:
            if call.__qualname__ not in state().faults:
                return call(*arguments, **named)
            state().refuse(f"[double] {call.__qualname__} was planted to fail")
            if isinstance(answer, type):
                raise answer("pybind11::init(): factory function returned nullptr")
            return answer

        return guarded

    return decorate
