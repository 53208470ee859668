"""The exceptions of the toolkit. ``cli.py`` catches them and prints their message."""


class RSRefSegError(Exception):
    """Base class of errors that the user can fix; the message is one line that names the problem and the fix."""

    exit_code = 2


class BadInputError(RSRefSegError):
    """An argument, image, phrase, data set or checkpoint that cannot be used as given."""


class MissingPartError(RSRefSegError):
    """A package, device or file that the command needs and this machine lacks."""


class NotInstalledError(MissingPartError):
    """A package that is not installed, or a build of it without the part that is needed."""


class BundleError(RSRefSegError):
    """A bundle that is incomplete, changed, or of another schema version."""


class CheckFailedError(RSRefSegError):
    """A check that ran and failed (parity, merge proof, data check)."""

    exit_code = 1
