"""Broken or hostile annotations raise a one-line error that names them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.jsonl import export_jsonl
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from tests.support.made_data import change_instances, change_refs, instances_path, refs_path, refusal, write_scenes
from tests.support.made_formats import (
    nwpu_instances,
    write_aerial_d,
    write_nwpu,
    write_refdior,
    write_refsegrs,
    write_remotesam,
)

Spoil = Callable[[Path], object]


def instances(change: Callable[[Any], object]) -> Spoil:
    return lambda root: change_instances(root, change)


def refs(change: Callable[[Any], object]) -> Spoil:
    return lambda root: change_refs(root, change)


def nwpu(change: Callable[[Any], object]) -> Spoil:
    def write(root: Path) -> None:
        shutil.rmtree(root)
        content = nwpu_instances()
        change(content)
        write_nwpu(root, instances=content)

    return write


def lists(text: bytes, split: str = "val") -> Spoil:
    def write(root: Path) -> None:
        shutil.rmtree(root)
        write_refsegrs(root)
        (root / f"output_phrase_{split}.txt").write_bytes(text)

    return write


def json_line(line: str) -> Spoil:
    def write(root: Path) -> None:
        export_jsonl(open_dataset(root), root / "scenes.jsonl")
        with (root / "scenes.jsonl").open("a") as stream:
            stream.write(line + "\n")

    return write


def mixed_pair(root: Path) -> None:
    """Keep one file of the corrected NWPU-Refer pair and both files of the first release."""
    nwpu(lambda content: None)(root)
    for name in ("refs(unc).p", "instances.json"):
        shutil.copy(root / f"new_{name}", root / name)
    (root / "new_instances.json").unlink()


def remotesam(spoil: Spoil) -> Spoil:
    return lambda root: (shutil.rmtree(root), write_remotesam(root), spoil(root))


def refdior(text: str, file: str = "phrase_txts/val.json") -> Spoil:
    return lambda root: (shutil.rmtree(root), write_refdior(root), (root / file).write_text(text))


def aerial_d(before: str, after: str) -> Spoil:
    def write(root: Path) -> None:
        shutil.rmtree(root)
        (xml,) = (write_aerial_d(root) / "val" / "annotations").iterdir()
        text = xml.read_text()
        assert before in text
        xml.write_text(text.replace(before, after))

    return write


BROKEN: list[tuple[Spoil, str]] = [
    (shutil.rmtree, "does not exist"),
    (lambda root: (shutil.rmtree(root), root.mkdir()), "known format (NWPU-Refer: "),
    (lambda root: shutil.rmtree(root / IMAGE_FOLDER), "--images"),
    (lambda root: refs_path(root).unlink(), "refs(unc).p' is missing"),
    (lambda root: instances_path(root).unlink(), "instances.json' is missing"),
    *((lambda root, text=text: instances_path(root).write_bytes(text), "instances.json'")
      for text in (b"", b"{", b"[1, 2]", b"[" * 200_000, b"\xff")),
    (instances(lambda content: content["images"].pop(0)), "refers to image 1"),
    (instances(lambda content: content["annotations"].pop(0)), "refers to annotation 1"),
    (instances(lambda content: content["annotations"][0].update(segmentation=[[1, 2, 3, 4]])), "annotation 1"),
    (instances(lambda content: content["annotations"][0].pop("segmentation")), "annotation 1"),
    (instances(lambda content: content.pop("annotations")), "'annotations'"),
    (instances(lambda content: content["images"].append(3)), "'images'"),
    *((instances(lambda content, name=name: content["images"][0].update(file_name=name)), "outside the image folder")
      for name in ("../../../etc/passwd", "..\\..\\secret", "C:\\secret.jpg", "/etc/passwd")),
    (instances(lambda content: content["images"][0].update(file_name=None)), "no file name"),
    (refs(lambda entries: entries[3].pop("ann_id")), "expression 3 has no 'ann_id'"),
    *((refs(lambda entries, fields=fields: entries[3].update(fields)), "expression 3")
      for fields in ({"image_id": [1]}, {"sentences": 7}, {"sentences": [{"sent": b"x"}]})),
    (refs(lambda entries: entries.insert(3, "x")), "expression 3"),
    (refs(lambda entries: entries.clear()), "no sample"),
    (nwpu(lambda made: made["images"].pop(0)), "expression 1 of"),
    (nwpu(lambda made: made["annotations"].pop(0)), "refers to annotation 1"),
    (nwpu(lambda made: made["annotations"][0].pop("segmentation")), "annotation 1"),
    (nwpu(lambda made: made["annotations"][0].update(segmentation=[1, 2, 3])), "annotation 1"),
    (nwpu(lambda made: made["annotations"][0].update(segmentation=[{"counts": ""}, [1]])), "annotation 1"),
    (nwpu(lambda made: made["annotations"][3].update(bbox=[1, 1, 5, 5])), "a box but no outline"),
    (nwpu(lambda made: made["images"][2].update(width=10**9)), "image 3 of"),
    (nwpu(lambda made: made["images"][0].update(file_name="../1.jpg")), "outside the image folder"),
    (mixed_pair, "belongs to 'new_refs(unc).p'"),
    (lists(b"7 the ship\n13\n"), "line 2 of"),
    (lists(b"../7 the ship\n"), "outside the image folder"),
    (lists(b"/etc/passwd the ship\n"), "outside the image folder"),
    (lists(b". the ship\n"), "no file name"),
    (lists(b"7 the \xff ship\n"), "output_phrase_val.txt"),
    (lists(b"7 the ship", split="val3"), "'val3'"),
    (lambda root: (lists(b"7 the ship")(root), shutil.rmtree(root / "masks")), "masks' is missing"),
    (remotesam(lambda root: (root / "refs(unc)_RemoteSAM.p").unlink()), "refs(unc)_RemoteSAM.p' is missing"),
    (remotesam(lambda root: (root / "instances.json").unlink()), "instances.json'"),
    (remotesam(lambda root: shutil.rmtree(root / "JPEGImages")), "JPEGImages' is missing"),
    *((refdior(text), "entry '13' of") for text in ('{"13": []}', '{"13": {"sentences": "x"}}')),
    (refdior('{"../13": {"sentences": ["x"]}}'), "outside the image folder"),
    (refdior("{"), "phrase_txts/val.json'"),
    (lambda root: (refdior("{}")(root), shutil.rmtree(root / "masks")), "masks' is missing"),
    (aerial_d("</annotation>", ""), "P0707_patch_000001.xml' is cut off"),
    (aerial_d("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>"), "refused"),
    (aerial_d("P0707_patch_000001.png", "../a.png"), "outside the image folder"),
    (aerial_d("filename", "file"), "no file name"),
    (aerial_d("<id>40081</id>", ""), "P0707_patch_000001.xml' has an element 'object' without an id"),
    *((aerial_d("{'size'", text), "object 40081 of")
      for text in ("{", "[]{'size'", "__import__('os'){'size'", "(" * 9999)),
    *((json_line(line), "line 9 of")
      for line in ("{", "[]", "{}", "[" * 200_000, '{"split": 3}', '{"file_name": "a.png", "sent": 1}')),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_broken_annotations_are_named(tmp_path: Path, case: int) -> None:
    root = tmp_path / "scenes"
    write_scenes(root)
    spoil, expected = BROKEN[case]
    spoil(root)
    lines = root / "scenes.jsonl"
    assert expected in refusal(lambda: open_dataset(lines if lines.exists() else root))
