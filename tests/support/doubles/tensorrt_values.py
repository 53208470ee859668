"""State of the double of TensorRT, and calls that tests can make fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import tensorrt_rtx_bindings as real

from tests.support.doubles.cuda_double import CudaDouble
from tests.support.doubles.cuda_values import RuleBroken

CURRENT: list["State"] = []  # the double in use


@dataclass
class State:
    """State that tests set and read."""

    version: str
    is_rtx: bool
    cuda: CudaDouble = field(default_factory=CudaDouble)
    faults: set[str] = field(default_factory=set)  # calls that fail, as ``Class.method``
    built: list[str] = field(default_factory=list)  # names of graphs, in order
    deserialized: int = 0  # engines loaded so far
    during_build: Callable[[], None] = lambda: None
    logger: Any = None  # the first one that was given
    alive: WeakSet[Any] = field(default_factory=WeakSet)  # engines that are not freed

    def refuse(self, message: str, answer: Any = None) -> Any:
        """Log an error and return the matching result."""
        self.logger.log(real.ILogger.Severity.ERROR, message)
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
    """Decorate a call that tests can make fail: it then logs why, and returns ``answer`` as the real one does."""

    def decorate(call: Callable[..., Any]) -> Any:
        def guarded(*arguments: Any, **named: Any) -> Any:
            if call.__qualname__ not in state().faults:
                return call(*arguments, **named)
            return state().refuse(f"[double] {call.__qualname__} was planted to fail", answer)

        return guarded

    return decorate
