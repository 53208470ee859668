"""One-line errors for TensorRT's failures: the stage, the step that failed, TensorRT's message, a hint.

TensorRT's Python bindings return ``None``, ``False`` or -1 on most failures and report the reason to the logger only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from ..bundle.contracts import Stage
from ..errors import BundleError, RSRefSegError

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")
_MOST_CHARACTERS = 300


class ErrorLog:
    """What TensorRT reported to its logger since the last call that took or dropped it."""

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._warnings: list[str] = []

    def add(self, message: str) -> None:
        """Add an error."""
        self._errors.append(" ".join(message.split()))

    def warn(self, message: str) -> None:
        """Add a warning."""
        self._warnings.append(shortened(message))

    def take_warnings(self) -> tuple[str, ...]:
        """Return the warnings, each once, and drop them."""
        warnings = tuple(dict.fromkeys(self._warnings))
        self._warnings.clear()
        return warnings

    def any(self) -> bool:
        """Return whether there are errors."""
        return bool(self._errors)

    def clear(self) -> None:
        """Drop all errors and warnings."""
        self._errors.clear()
        self._warnings.clear()

    def take(self) -> str:
        """Return all errors as one line, or a line that says there are none, and drop them."""
        text = "; ".join(dict.fromkeys(self._errors))
        self._errors.clear()
        return shortened(text) if text else "TensorRT gave no reason"


def shortened(text: str) -> str:
    """Shorten a text to one line of at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


@dataclass(frozen=True, slots=True)
class TrtCalls:
    """Calls TensorRT for one stage; raises an error for every result that means failure.

    Attributes:
        stage: the stage to name in messages.
        error_log: errors that TensorRT reported.
    """

    stage: Stage
    error_log: ErrorLog

    def require(self, make: Callable[[], _T | None], what: str, hint: str) -> _T:
        """Return the result of ``make``.

        Args:
            make: function that calls TensorRT once.
            what: the step, which completes "TensorRT could not ...".
            hint: what the user can do.

        Raises:
            RSRefSegError: ``make`` returned ``None`` or raised, as pybind11 does for a null pointer.
        """
        self.error_log.clear()
        try:
            found = make()
        except (TypeError, ValueError, RuntimeError) as error:
            self.error_log.add(str(error))
            raise self.failure(what, hint) from error
        if found is None:
            raise self.failure(what, hint)
        return found

    def require_true(self, call: Callable[[], bool], what: str, hint: str) -> None:
        """Like ``require``, for calls that return ``True`` on success and ``False`` on failure."""
        if not self.require(call, what, hint):
            raise self.failure(what, hint)

    def run(self, do: Callable[[], None], what: str, hint: str) -> None:
        """Like ``require``, for calls that return nothing: on failure they raise, or report to the logger only."""

        def succeeded() -> bool:
            do()
            return not self.error_log.any()

        self.require_true(succeeded, what, hint)

    def failure(self, what: str, hint: str) -> RSRefSegError:
        """Return the error for a failed step."""
        return RSRefSegError(f"stage '{self.stage}': TensorRT could not {what} ({self.error_log.take()}): {hint}")


def parser_errors(parser: "trt.OnnxParser") -> list[str]:
    """Return every error of a parse, in TensorRT's words with the graph's node and operator."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name() or f"number {error.node()}"
        where = f"node '{node}' ({error.node_operator()})" if error.node() >= 0 else "the graph"
        lines.append(f"{where}: {shortened(error.desc())}")
    return lines


def unparsable(stage: Stage, file: str, library: str, errors: list[str], error_log: ErrorLog) -> BundleError:
    """Return the error for a graph that TensorRT cannot parse; its message quotes the first parser error."""
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    reason = errors[0] if errors else error_log.take()
    hint = "export the bundle with this release, or install a TensorRT that knows the operator"
    return BundleError(f"stage '{stage}': {library} cannot parse '{file}': {reason}{more}: {hint}")


def host_bytes(memory: "trt.IHostMemory") -> bytes:
    """Copy serialised data of TensorRT. Its class has the buffer protocol, which its type stubs do not declare."""
    return bytes(cast(memoryview, memory))
