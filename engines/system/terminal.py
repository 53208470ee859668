"""How a command speaks: its report on standard output, an error as one line on standard error."""

import io
import json
import os
import re
import sys
import traceback
from typing import Any

from ..errors import RSRefSegError

_WIDTH_ELSEWHERE = 1000


def explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code for an error; what nobody expected is raised again.

    With ``RSREFSEG_DEBUG=1`` in the environment an expected one shows its traceback as well.
    """
    explained = _explained(error)
    if os.environ.get("RSREFSEG_DEBUG") == "1":
        traceback.print_exception(error)
    return explained


def _explained(error: Exception) -> tuple[str, int]:
    if isinstance(error, RSRefSegError):
        return str(error), error.exit_code
    if isinstance(error, ImportError) and (line := _missing_extra(error)) is not None:
        return line, 2
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or use a smaller input", 2
    if isinstance(error, OSError):
        return _system_line(error), 2
    if callable(usage := getattr(error, "format_message", None)):
        return f"{usage().rstrip('.')} (see --help)", 2
    raise error


def _missing_extra(error: ImportError) -> str | None:
    """The line for a package of the extra ``train`` that is missing or broken; None for any other import."""
    from ..doctor import TRAIN_MODULES

    package = (error.name or "").split(".")[0]
    if package not in TRAIN_MODULES:
        return None
    problem = "" if isinstance(error, ModuleNotFoundError) else f", which is installed but broken ({error})"
    return f"this command needs '{package}'{problem}: install the extra with `pip install 'rsrefseg[train]'`"


def _system_line(error: OSError) -> str:
    """An error of the system that no function turned into a line of its own."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    subject = "cannot use " + " and ".join(f"'{name}'" for name in names) if names else "the system refused"
    return f"{subject}: {error.strerror or str(error) or type(error).__name__} (RSREFSEG_DEBUG=1 shows where)"


def fail(message: str, code: int) -> int:
    """Say on standard error, in one line, why a command ends; gives its exit code."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda mark: repr(mark[0])[1:-1], " ".join(message.split()))
    if sys.stderr is not None:
        print(f"rsrefseg: {line}", file=sys.stderr)
    return code


def print_report(report: Any, as_json: bool) -> Any:
    """Print a report (anything with ``as_dict`` and ``render``) for a program or for a person; gives its document."""
    document = report.as_dict()
    return print_document(document, "" if as_json else _rendered(report.render()), as_json)


def print_document(document: Any, text: str, as_json: bool) -> Any:
    """Print a document for a program, or what it says for a person; gives it back.

    Raises:
        RSRefSegError: standard output takes no more.
    """
    _write(json.dumps(document) if as_json else text)
    return document


def _rendered(content: Any) -> str:
    """Text or a rich table as it goes to the terminal; nothing in it is taken for markup."""
    from rich.console import Console

    # In a file or a pipe there is no width to keep to: cells would be cut for nothing.
    terminal, text = sys.stdout is not None and sys.stdout.isatty(), io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal,
        width=None if terminal else _WIDTH_ELSEWHERE,
        soft_wrap=True,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(content)
    return text.getvalue().rstrip("\n")


def _write(text: str) -> None:
    """Print on standard output, at once, so that a full disk is told here."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What stays in the buffer would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever reads has seen enough, as `head` does
            raise RSRefSegError(f"cannot write to standard output: {error.strerror}") from error
