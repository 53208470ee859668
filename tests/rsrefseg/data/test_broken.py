"""Annotations that are broken or hostile: refused in one line that names them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.jsonl import export_jsonl
from tests.support.made_data import change_instances, change_refs, instances_path, refs_path, refusal, write_scenes
from tests.support.made_formats import nwpu_instances, write_nwpu, write_refsegrs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


def instances(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda root: change_instances(root, change)


def refs(change: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda root: change_refs(root, change)


def file_name(name: str | None) -> Callable[[Path], object]:
    return instances(lambda content: content["images"][0].update(file_name=name))


def nwpu(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        shutil.rmtree(root)
        content = nwpu_instances()
        change(content)
        write_nwpu(root, instances=content)

    return write


def lists(text: bytes, split: str = "val") -> Callable[[Path], object]:
    def write(root: Path) -> None:
        shutil.rmtree(root)
        write_refsegrs(root)
        (root / f"output_phrase_{split}.txt").write_bytes(text)

    return write


def without_masks(root: Path) -> None:
    lists(b"7 the ship")(root)
    shutil.rmtree(root / "masks")


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: refs_path(root).unlink(), "refs(unc).p' is missing"),
    (lambda root: instances_path(root).unlink(), "instances.json' is missing"),
    *((lambda root, text=text: instances_path(root).write_bytes(text), "instances.json'")
      for text in (b"", b"{", b"[1, 2]", b"[" * 200_000, b"\xff")),
    (instances(lambda content: content["images"].pop(0)), "points at image 1"),
    (instances(lambda content: content["annotations"].pop(0)), "points at annotation 1"),
    (instances(lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4]])), "annotation 1"),
    (instances(lambda content: content["annotations"][0].pop("segmentation")), "annotation 1"),
    (instances(lambda content: content.pop("annotations")), "no list of 'annotations'"),
    (instances(lambda content: content["images"].append(3)), "an entry of 'images'"),
    *((file_name(name), "outside the image folder")
      for name in ("../../../etc/passwd", "..\\..\\secret", "C:\\secret.jpg", "/etc/passwd")),
    (file_name(None), "no file name"),
    (refs(lambda entries: entries[3].pop("ann_id")), "expression 3 has no 'ann_id'"),
    (refs(lambda entries: entries[3].update(image_id=[1])), "expression 3"),
    (refs(lambda entries: entries[3].update(sentences=7)), "expression 3 is malformed"),
    (refs(lambda entries: entries[3].update(sentences=[{"sent": b"x"}])), "expression 3 is malformed"),
    (refs(lambda entries: entries.insert(3, "x")), "expression 3 is not a dict"),
    (refs(lambda entries: entries.clear()), "holds no sample"),
    (nwpu(lambda made: made["images"].pop(0)), "expression 1 of"),
    (nwpu(lambda made: made["annotations"].pop(0)), "points at annotation 1"),
    (nwpu(lambda made: made["annotations"][0].pop("segmentation")), "annotation 1"),
    (nwpu(lambda made: made["annotations"][0].update(segmentation=[1, 2, 3])), "annotation 1"),
    (nwpu(lambda made: made["annotations"][0].update(segmentation=[{"counts": ""}, [1]])), "annotation 1"),
    (nwpu(lambda made: made["annotations"][3].update(bbox=[1, 1, 5, 5])), "a box but no outline"),
    (nwpu(lambda made: made["images"][2].update(width=10**9)), "image 3 of"),
    (nwpu(lambda made: made["images"][0].update(file_name="../1.jpg")), "outside the image folder"),
    (lists(b"7 the ship\n13\n"), "line 2 of"),
    (lists(b"../7 the ship\n"), "outside the image folder"),
    (lists(b"/etc/passwd the ship\n"), "outside the image folder"),
    (lists(b". the ship\n"), "no file name"),
    (lists(b"7 the \xff ship\n"), "output_phrase_val.txt' is not UTF-8 text"),
    (lists(b"7 the ship", split="val3"), "'val3'"),
    (without_masks, "masks' is missing"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_broken_annotations_are_named(root: Path, case: int) -> None:
    spoil, expected = BROKEN[case]
    spoil(root)
    assert expected in refusal(lambda: open_dataset(root))


@pytest.mark.parametrize("line", ["{", "[]", "{}", "[" * 200_000, '{"split": 3}', '{"file_name": "a.png", "sent": 1}'])
def test_a_broken_json_line_is_named_by_its_number(root: Path, line: str) -> None:
    path = root / "scenes.jsonl"
    export_jsonl(open_dataset(root), path)
    path.write_text(path.read_text() + line + "\n")
    assert "line 9 of" in refusal(lambda: open_dataset(path))
