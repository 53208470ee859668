"""Reads the files that RRSIS-D and NWPU-Refer share: a pickle of expressions and a COCO-like JSON file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from .annotation_files import parse_object, read_text
from .safe_pickle import load_plain_pickle

REFS_FILE = "refs(unc).p"
INSTANCES_FILE = "instances.json"

Id = int | str


@dataclass(frozen=True, slots=True)
class Ref:
    """An entry of the pickle: expressions for one object.

    Readers define the allowed values of ``ann_id``, the annotation of the object. ``file_name`` and ``category_id``
    apply if the JSON file does not have them. ``no_target`` marks expressions that refer to nothing.
    """

    path: Path
    ref_id: Id
    image_id: Id
    ann_id: Any
    split: str
    phrases: tuple[str, ...]
    file_name: Any
    category_id: Any
    no_target: bool

    def __str__(self) -> str:
        return f"expression {self.ref_id} of '{self.path}'"

    def sample_id(self, order: int) -> str:
        """Return the sample id for one of its phrases: ``ref_id``, followed by ``-order`` if there are several."""
        return f"{self.ref_id}" if len(self.phrases) == 1 else f"{self.ref_id}-{order}"


class Instances:
    """``instances.json``, indexed by the ids that expressions name.

    Raises:
        BadInputError: the file is missing, incomplete, or lacks a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = parse_object(read_text(path), f"'{path}'")
        self.images = self._index(content.get("images"), "images")
        self.annotations = self._index(content.get("annotations"), "annotations")
        self.categories = self._index(content.get("categories", []), "categories")

    def _index(self, rows: Any, table: str) -> dict[Any, dict[str, Any]]:
        if not isinstance(rows, list):
            raise BadInputError(f"'{self.path}' has no list of '{table}'")
        if not all(isinstance(row, dict) and isinstance(row.get("id"), Id) for row in rows):
            raise BadInputError(f"'{self.path}': an entry of '{table}' has no id")
        return {row["id"]: row for row in rows}

    def image(self, ref: Ref) -> dict[str, Any]:
        """Return the entry of an expression's image; raises BadInputError if there is none."""
        return self._entry(self.images, "image", ref.image_id, ref)

    def annotation(self, identity: Any, ref: Ref) -> dict[str, Any]:
        """Return the annotation that an expression names; raises BadInputError if there is none."""
        if not isinstance(identity, Id):
            raise BadInputError(f"{ref}: its 'ann_id' is neither a number nor text")
        return self._entry(self.annotations, "annotation", identity, ref)

    def _entry(self, table: dict[Any, dict[str, Any]], what: str, identity: Id, ref: Ref) -> dict[str, Any]:
        entry = table.get(identity)
        if entry is None:
            raise BadInputError(f"{ref} refers to {what} {identity!r}, which '{self.path}' does not contain")
        return entry

    def category(self, annotation: dict[str, Any], ref: Ref) -> str:
        """Return the class name; the annotation's key is ``categories_id`` in RRSIS-D, ``category_id`` elsewhere."""
        for identity in (annotation.get("categories_id"), annotation.get("category_id"), ref.category_id):
            if isinstance(identity, Id):
                return str(self.categories.get(identity, {}).get("name", f"class {identity}"))
        return "unknown"

    def annotation_name(self, identity: Id) -> str:
        """Return the name of an annotation for messages."""
        return f"annotation {identity} of '{self.path}'"


def read_refs(path: Path) -> Iterator[Ref]:
    """Yield the entries of ``refs(unc).p`` in order.

    Raises:
        BadInputError: the file is missing, broken or contains code, or an entry is incomplete.
    """
    refs = load_plain_pickle(path)
    if not isinstance(refs, list):
        raise BadInputError(f"'{path}' does not contain a list of expressions")
    for index, ref in enumerate(refs):
        name = f"'{path}', expression {index}"
        if not isinstance(ref, dict):
            raise BadInputError(f"{name} is not a dict")
        try:
            ref_id, image_id, ann_id, split = ref["ref_id"], ref["image_id"], ref["ann_id"], ref["split"]
            phrases = tuple(spoken["sent"] if "sent" in spoken else spoken["raw"] for spoken in ref["sentences"])
        except KeyError as error:
            raise BadInputError(f"{name} has no {error}") from error
        except TypeError as error:
            raise BadInputError(f"{name} is malformed ({error})") from error
        typed = all(isinstance(identity, Id) for identity in (ref_id, image_id, split))
        if not typed or not all(isinstance(phrase, str) for phrase in phrases):
            raise BadInputError(f"{name} is malformed (an id, its split or a sentence has another type)")
        file_name, category_id, no_target = ref.get("file_name"), ref.get("category_id"), ref.get("no_target") is True
        yield Ref(path, ref_id, image_id, ann_id, str(split), phrases, file_name, category_id, no_target)
