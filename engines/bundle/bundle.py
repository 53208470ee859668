"""Opens a bundle on disk and verifies its files before use."""

import os
from pathlib import Path

from ..errors import BundleError
from ..hub.fetch import local_folder
from ..system.digests import sha256_of
from ..system.files import atomic_write_bytes, recover_directory, sha256_file
from ..text import Tokenizer
from .contracts import Stage
from .manifest import EXPORT_AGAIN, MANIFEST_NAME, FileRecord, Manifest, manifest_bytes, read_manifest

BUNDLE_VARIABLE = "RSREFSEG_BUNDLE"
DEFAULT_BUNDLE = Path("bundle")
TOKENIZER_NAME = "tokenizer.json"
REFERENCE_NAME = "reference.safetensors"


def default_bundle_path() -> Path:
    """Return ``$RSREFSEG_BUNDLE``, or ``./bundle`` if that is not set."""
    return Path(os.environ.get(BUNDLE_VARIABLE) or DEFAULT_BUNDLE)


def file_record(path: Path) -> FileRecord:
    """Return the record of a complete file: its name, digest and size."""
    return FileRecord(path.name, sha256_file(path), path.stat().st_size)


class Bundle:
    """An opened bundle. ``verified_path`` is the only access to its files.

    Attributes:
        root: folder of the bundle.
        manifest: content of ``bundle.json``.
        digest: SHA-256 of ``bundle.json``, which lists the digests of all files; empty while a bundle is written.
    """

    def __init__(self, root: Path, manifest: Manifest, digest: str = "") -> None:
        self.root = root
        self.manifest = manifest
        self.digest = digest
        self._records = {record.name: record for record in manifest.files}
        self._verified: dict[str, tuple[int, int, int]] = {}

    @classmethod
    def open(cls, path: Path | str | None = None) -> "Bundle":
        """Read and check ``bundle.json``, and check that every file in it exists with its full length.

        Args:
            path: folder of the bundle, or its address on the hub, ``hf://ORG/NAME[@REV]``; by default
                ``default_bundle_path()``.

        Raises:
            BundleError: the bundle is missing, incomplete, inconsistent, or of another schema version.
            RSRefSegError: the hub has no such bundle, or cannot be reached (see ``local_folder``).
        """
        root = local_folder(default_bundle_path() if path is None else Path(path), MANIFEST_NAME)
        recover_directory(root)
        if not root.exists():
            hint = f"make one with `rsrefseg export`, or name one with --bundle or ${BUNDLE_VARIABLE}"
            raise BundleError(f"no bundle at '{root}': {hint}")
        try:
            manifest, digest = read_manifest((root / MANIFEST_NAME).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(f"'{root}' is not a bundle: it holds no {MANIFEST_NAME}") from error
        except OSError as error:
            raise BundleError(f"cannot read '{root / MANIFEST_NAME}': {error.strerror or error}") from error
        except BundleError as error:
            raise BundleError(f"the bundle '{root}' cannot be used: {error}") from error
        bundle = cls(root, manifest, digest)
        for record in manifest.files:
            bundle._check_length(record)
        return bundle

    @staticmethod
    def write_manifest(folder: Path, manifest: Manifest) -> Path:
        """Write ``bundle.json`` into ``folder``, atomically. The last step of an export."""
        path = folder / MANIFEST_NAME
        atomic_write_bytes(path, manifest_bytes(manifest))
        return path

    def tokenizer(self) -> Tokenizer:
        """Return the bundle's tokenizer with the bundle's text policy."""
        policy = self.manifest.text
        path = self.verified_path(self.manifest.tokenizer.name)
        return Tokenizer(path, policy.length, policy.padding, policy.pad_id)

    def graph_path(self, stage: Stage) -> Path:
        """Return the path of a stage's ONNX file, after verifying the file and its external weights."""
        record = self.manifest.stages[stage]
        for data in record.data:
            self.verified_path(data.name)
        return self.verified_path(record.graph.name)

    def verified_path(self, name: str) -> Path:
        """Return the path of a file of the bundle, after verifying that its bytes are those that were exported.

        The digest is computed on first use, and again only after the file's size, time or inode changed. Those of large
        files are remembered for other processes; see ``sha256_of``.

        Raises:
            BundleError: the file is not part of the bundle, missing, cut short or changed.
        """
        record = self._records.get(name)
        if record is None:
            raise BundleError(f"the bundle '{self.root}' has no file {name!r}")
        state = self._check_length(record)
        path, stamp = self.root / name, (state.st_size, state.st_mtime_ns, state.st_ino)
        if self._verified.get(name) != stamp:
            try:
                digest = sha256_of(path)
            except OSError as error:
                raise BundleError(f"cannot read '{path}': {error.strerror or error}") from error
            if digest != record.sha256:
                raise BundleError(f"'{path}' was changed after export: {EXPORT_AGAIN}")
            self._verified[name] = stamp
        return path

    def _check_length(self, record: FileRecord) -> os.stat_result:
        path = self.root / record.name
        try:
            state = path.stat()
        except FileNotFoundError:
            raise BundleError(f"'{path}' is missing: {EXPORT_AGAIN}") from None
        except OSError as error:
            raise BundleError(f"cannot read '{path}': {error.strerror or error}") from error
        if not path.is_file():
            raise BundleError(f"'{path}' is not a file: {EXPORT_AGAIN}")
        if state.st_size != record.size_bytes:
            was = "cut short" if state.st_size < record.size_bytes else "changed"
            raise BundleError(f"'{path}' is {was}: {state.st_size:,} bytes, not {record.size_bytes:,}; {EXPORT_AGAIN}")
        return state
