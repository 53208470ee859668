"""What the double of TensorRT is told by tests and tells them, and its planted failures."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from tests.support.doubles.cuda_double import CudaDouble
from tests.support.doubles.cuda_values import RuleBroken

_current: list["State"] = []


@dataclass
class State:
    """What tests set and look at.

    Attributes:
        version: ``10.9.0.34`` or ``11.4.0.106``.
        cuda: the GPU.
        faults: calls that fail, as ``Class.method``.
        built: names of the graphs that were built, in order.
        deserialized: engines loaded so far.
        during_build: called in the middle of a build.
        logger: the first one that was given.
        error_severity: of what it is told.
        alive: engines that are not freed.
    """

    version: str
    cuda: CudaDouble
    faults: set[str] = field(default_factory=set)
    built: list[str] = field(default_factory=list)
    deserialized: int = 0
    during_build: Callable[[], None] = lambda: None
    logger: Any = None
    error_severity: Any = None
    alive: WeakSet[Any] = field(default_factory=WeakSet)

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def refuse(self, message: str) -> None:
        """Tell the logger an error."""
        self.logger.log(self.error_severity, message)


def state() -> State:
    """Of the double in use."""
    return _current[-1]


def use(made: State) -> None:
    """Make a double the one in use."""
    _current[:] = [made]


def fallible(answer: Any) -> Callable[[Callable[..., Any]], Any]:
    """A call that tests may plant to answer with failure, as the real one does."""

    def decorate(call: Callable[..., Any]) -> Any:
        name = call.__qualname__

        def guarded(*arguments: Any, **named: Any) -> Any:
            if name in state().faults:
                if state().logger is not None:
                    state().refuse(f"[double] {name} was planted to fail")
                if isinstance(answer, type):
                    raise answer("pybind11::init(): factory function returned nullptr")
                return answer
            return call(*arguments, **named)

        return guarded

    return decorate


def keep_logger(logger: Any) -> None:
    """The real one keeps the first logger and ignores later ones."""
    if state().logger is not None and state().logger is not logger:
        raise RuleBroken("a second logger, which TensorRT would ignore")
    state().logger = logger
