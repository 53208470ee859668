"""What a command prints: its report on standard output, an error as one line on standard error."""

import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer

from ..errors import CheckFailedError, RSRefSegError
from .packages import import_problem

_WIDTH_WITHOUT_TERMINAL = 1000


def run_app(app: typer.Typer, arguments: Sequence[str]) -> tuple[int, Any]:
    """Run a command in this process: its exit code, and what its function returned.

    Every expected error becomes one line on standard error; an unexpected one is raised.
    """
    try:
        result = app(list(arguments), prog_name="rsrefseg", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        result = 130
    except Exception as error:
        return fail(*explain(error)), None
    if result == 130:  # also what Typer makes of Ctrl-C
        return fail("interrupted", 130), None
    # A command that ends by typer.Exit makes its code the result.
    return (result, None) if isinstance(result, int) else (0, result)


def explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code for an error; an unexpected one is raised again.

    With ``RSREFSEG_DEBUG=1`` in the environment an expected one shows its traceback as well.
    """
    explained = _explained(error)
    if os.environ.get("RSREFSEG_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    return explained


def _explained(error: Exception) -> tuple[str, int]:
    if _is_interruption(error):
        return "interrupted", 130
    if isinstance(error, RSRefSegError):
        return str(error), error.exit_code
    if (problem := import_problem(error)) is not None:
        return problem, 2
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or use a smaller input", 2
    if isinstance(error, UnicodeEncodeError):
        hint = "set a UTF-8 locale, e.g. LC_ALL=C.UTF-8, or rename it"
        return f"the name {error.object!r:.200} cannot be written in {error.encoding}: {hint}", 2
    if isinstance(error, OSError):
        return _system_line(error), 2
    if callable(usage := getattr(error, "format_message", None)):
        return f"{usage().rstrip('.')} (see --help)", 2
    raise error


def _is_interruption(error: BaseException | None) -> bool:
    """Whether an error is KeyboardInterrupt, or was raised because of one, as native modules do when imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _system_line(error: OSError) -> str:
    """An error of the system that no function turned into a line of its own."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    subject = "cannot use " + " and ".join(f"'{name}'" for name in names) if names else "the system refused"
    return f"{subject}: {error.strerror or str(error) or type(error).__name__} (RSREFSEG_DEBUG=1 shows where)"


def fail(message: str, code: int) -> int:
    """Say on standard error, in one line, why a command ends; gives its exit code."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda mark: repr(mark[0])[1:-1], " ".join(message.split()))
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"rsrefseg: {line}", file=sys.stderr)
    return code


def print_report(report: Any, as_json: bool) -> Any:
    """Print a report (anything with ``to_dict`` and ``render``) for a program or for a person; gives its document.

    Raises:
        CheckFailedError: the report is of a check that did not hold, as its ``failure`` says.
    """
    document = report.to_dict()
    print_text(json.dumps(document) if as_json else _rendered(report.render()))
    if failure := getattr(report, "failure", ""):
        raise CheckFailedError(failure)
    return document


def print_text(text: str) -> None:
    """Print on standard output.

    Raises:
        RSRefSegError: standard output cannot be written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names and phrases may hold what the terminal's encoding cannot: escaped rather than a crash.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        pass  # the reader has seen enough, as `head` does
    except OSError as error:
        raise RSRefSegError(f"cannot write to standard output: {error.strerror}") from error


def _rendered(content: Any) -> str:
    """Text or a rich table as the terminal shows it; nothing in it is interpreted as markup."""
    if isinstance(content, str):
        return content
    from rich.console import Console

    terminal, text = sys.stdout is not None and sys.stdout.isatty(), io.StringIO()
    # In a file or a pipe there is no width to keep to: cells would be cut for nothing.
    width = None if terminal else _WIDTH_WITHOUT_TERMINAL
    console = Console(
        file=text, force_terminal=terminal, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False
    )
    console.print(content)
    return text.getvalue().rstrip("\n")


def finish_output(code: int) -> int:
    """Write what is left of standard output when the process ends; gives the exit code. For the program's end only."""
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail again when the interpreter ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if code == 0 and not isinstance(error, BrokenPipeError):
            return fail(f"cannot write to standard output: {error.strerror}", 2)
    return code
