"""Output of commands: reports on standard output, errors as one line on standard error."""

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
    """Run a command in this process; return its exit code and the result of its function.

    An expected error is printed as one line on standard error; an unexpected one is raised.
    """
    try:
        result = app(list(arguments), prog_name="rsrefseg", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        result = 130
    except Exception as error:
        return fail(*explain(error)), None
    if result == 130:  # also Typer's result for Ctrl-C
        return fail("interrupted", 130), None
    # The result of a command that ends by typer.Exit is its exit code.
    return (result, None) if isinstance(result, int) else (0, result)


def explain(error: Exception) -> tuple[str, int]:
    """Return one line and the exit code for an expected error; raise an unexpected one again.

    With ``RSREFSEG_DEBUG=1`` in the environment, print the traceback of an expected error as well.
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
    """Return whether an error is, or was caused by, KeyboardInterrupt. Native modules wrap it while being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _system_line(error: OSError) -> str:
    """Describe in one line a system error that no function has described."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    subject = "cannot use " + " and ".join(f"'{name}'" for name in names) if names else "system error"
    return f"{subject}: {error.strerror or str(error) or type(error).__name__} (RSREFSEG_DEBUG=1 shows where)"


def fail(message: str, code: int) -> int:
    """Print one line on standard error that says why a command failed; return its exit code."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda mark: repr(mark[0])[1:-1], " ".join(message.split()))
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"rsrefseg: {line}", file=sys.stderr)
    return code


def print_report(report: Any, as_json: bool) -> Any:
    """Print a report (an object with ``to_dict`` and ``render``) as JSON or as text; return its dict.

    Raises:
        CheckFailedError: the report's check failed; the message is the report's ``failure``.
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
        # File names and phrases may hold characters that the terminal's encoding lacks: they are escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        pass  # the reader closed the pipe, as `head` does
    except OSError as error:
        raise RSRefSegError(f"cannot write to standard output: {error.strerror}") from error


def _rendered(content: Any) -> str:
    """Render text or a rich table for the terminal, without interpreting markup."""
    if isinstance(content, str):
        return content
    from rich.console import Console

    terminal, text = sys.stdout is not None and sys.stdout.isatty(), io.StringIO()
    # A file or a pipe has no width, so cells need not be cut.
    width = None if terminal else _WIDTH_WITHOUT_TERMINAL
    console = Console(
        file=text, force_terminal=terminal, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False
    )
    console.print(content)
    return text.getvalue().rstrip("\n")


def finish_output(code: int) -> int:
    """Flush standard output at the end of the program and return the exit code."""
    if sys.stdout is None:
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        # The rest of the buffer would fail again when the interpreter exits.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if code == 0 and not isinstance(error, BrokenPipeError):
            return fail(f"cannot write to standard output: {error.strerror}", 2)
    return code
