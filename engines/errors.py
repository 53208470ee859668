"""The one family of errors. Raised where the fact is known, caught once in ``cli.py``."""


class RSRefSegError(Exception):
    """Something the user can act on: the message is one line that names the thing and how to fix it."""

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
    """A check ran and did not hold (parity, merge proof, data check)."""

    exit_code = 1
