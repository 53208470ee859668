"""What belongs to this user on this machine: the cache folder, and the secret that engines are sealed with."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from ..errors import MissingPartError

_SECRET_NAME, _SECRET_BYTES = "engines.key", 32


def cache_folder() -> Path:
    """Where this user keeps what belongs to this machine: ``$XDG_CACHE_HOME/rsrefseg`` or ``~/.cache/rsrefseg``."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "rsrefseg"
    except RuntimeError as error:
        raise MissingPartError("this user has no home folder: set XDG_CACHE_HOME to one that can be written") from error


def machine_secret() -> bytes:
    """This user's secret on this machine, made when first asked for.

    One that others can read or change is none: it is replaced, and with it go all engines sealed under it.

    Raises:
        MissingPartError: the cache folder cannot be written.
    """
    path = cache_folder() / _SECRET_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            with contextlib.suppress(FileNotFoundError):
                if (found := _trusted_secret(path)) is not None:
                    return found
                path.unlink()
            with contextlib.suppress(FileExistsError):
                _write_new_secret(path)
        found = _trusted_secret(path)
    except OSError as error:
        raise MissingPartError(
            f"cannot keep the secret for TensorRT engines in '{path}' ({error.strerror or error}):"
            " set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    if found is None:
        raise MissingPartError(f"'{path}' can be read by others on this machine: remove it, or set XDG_CACHE_HOME")
    return found


def _trusted_secret(path: Path) -> bytes | None:
    """The secret, if it is whole and nobody else's to read or write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        state = os.fstat(descriptor)
        private = not state.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and state.st_uid == os.getuid()
        data = stream.read()
    return data if private and len(data) == _SECRET_BYTES else None


def _write_new_secret(path: Path) -> None:
    """Make the secret in one step, so that of two processes that start at once both use the same."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_SECRET_BYTES))
            stream.flush()
            os.fsync(descriptor)
        path.hardlink_to(partial)
    finally:
        partial.unlink()
