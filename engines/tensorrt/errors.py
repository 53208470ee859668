"""What TensorRT refuses becomes one line: the stage, what was being done, TensorRT's own words, the way out.

Its Python bindings answer most failures with ``None``, ``False`` or -1 and tell the reason only to the logger.
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


class Words:
    """The errors TensorRT told its logger, kept until somebody asks for them."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def hear(self, message: str) -> None:
        """Keep an error."""
        self._errors.append(" ".join(message.split()))

    def any(self) -> bool:
        """Whether something was told since the last time."""
        return bool(self._errors)

    def forget(self) -> None:
        """Drop what was told about something else."""
        self._errors.clear()

    def told(self) -> str:
        """What was told since the last time, cut to what fits a line; says so where nothing was."""
        text = "; ".join(dict.fromkeys(self._errors))
        self.forget()
        return shortened(text) if text else "TensorRT gave no reason"


def shortened(text: str) -> str:
    """One line of at most 300 characters."""
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks TensorRT on behalf of one stage; every answer that means failure is raised.

    Attributes:
        stage: named in the line.
        words: what TensorRT tells.
    """

    stage: Stage
    words: Words

    def made(self, make: Callable[[], _T | None], what: str, way_out: str) -> _T:
        """What ``make`` gives, unless that is ``None`` or it raises as pybind11 does for a null pointer.

        Args:
            make: calls TensorRT once.
            what: continues "TensorRT could not ...".
            way_out: what the user can do.

        Raises:
            RSRefSegError: TensorRT could not.
        """
        self.words.forget()
        try:
            found = make()
        except (TypeError, ValueError, RuntimeError) as error:
            self.words.hear(str(error))
            raise self.refused(what, way_out) from error
        if found is None:
            raise self.refused(what, way_out)
        return found

    def agreed(self, ask: Callable[[], bool], what: str, way_out: str) -> None:
        """The same for calls that answer ``True`` or ``False``."""
        if not self.made(ask, what, way_out):
            raise self.refused(what, way_out)

    def done(self, do: Callable[[], None], what: str, way_out: str) -> None:
        """The same for calls that give nothing: they raise on failure, or tell it to the logger alone."""

        def and_say_so() -> bool:
            do()
            return not self.words.any()

        self.agreed(and_say_so, what, way_out)

    def refused(self, what: str, way_out: str) -> RSRefSegError:
        """The error to raise."""
        return RSRefSegError(f"stage '{self.stage}': TensorRT could not {what} ({self.words.told()}): {way_out}")


def parser_errors(parser: "trt.OnnxParser") -> list[str]:
    """Every error of a parse in TensorRT's words, with the graph's node and operator."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name() or f"number {error.node()}"
        where = f"node '{node}' ({error.node_operator()})" if error.node() >= 0 else "the graph"
        lines.append(f"{where}: {shortened(error.desc())}")
    return lines


def unparsable(stage: Stage, file: str, version: str, errors: list[str], words: Words) -> BundleError:
    """The line for a graph that TensorRT cannot parse; the first error stands for all."""
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    told = errors[0] if errors else words.told()
    way_out = "export the bundle with this release, or install a TensorRT that knows the operator"
    return BundleError(f"stage '{stage}': TensorRT {version} cannot parse '{file}': {told}{more}: {way_out}")


def host_bytes(memory: "trt.IHostMemory") -> bytes:
    """A copy of what TensorRT serialised. Its class has Python's buffer protocol, which its signatures do not tell."""
    return bytes(cast(memoryview, memory))
