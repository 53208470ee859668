"""Bundles and runs on the hub, against a server on loopback: pushed, fetched, refused."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsrefseg.runs.run import Run
from tests.support.commands import Ran, assert_refused, assert_refused_last, run_alone, run_here
from tests.support.exported import Exported
from tests.support.hub_server import SECRET, Hub, hub_server
from tests.support.made_bundle import PHRASES
from tests.support.places import Capsys

NAME = "made/boxes"
ADDRESS = f"hf://{NAME}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


class Client:
    """Runs commands in processes of their own, whose hub is a server and whose cache is a folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.cache = folder / "hf"
        self.environment = {
            "HF_ENDPOINT": url,
            "HF_HOME": str(self.cache),
            "HF_TOKEN": SECRET,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "RSREFSEG_BUNDLE": "",
        }

    def run(self, *arguments: str | Path) -> Ran:
        done: subprocess.CompletedProcess[str] = run_alone(*arguments, environment=self.environment)
        assert SECRET not in done.stdout + done.stderr
        result = json.loads(done.stdout) if "--json" in arguments and done.returncode == 0 else None
        return Ran(done.returncode, result, done.stdout, done.stderr)

    def snapshot(self, commit: str) -> Path:
        return self.cache / "hub" / "models--made--boxes" / "snapshots" / commit


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(tmp_path, hub.url)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_is_pushed_fetched_and_used_offline(place: Path, hub: Hub, client: Client) -> None:
    pushed = client.run("push", "bundle", NAME, "--private", "--json")
    assert pushed.code == 0, pushed.err
    assert hub.created[0]["visibility"] == "private"
    first = client.run("infer", "scene.png", PHRASES[0], "--bundle", ADDRESS, "--backend", "onnxruntime")
    assert first.code == 0, first.err
    assert "downloading 'made/boxes'" in first.err
    snapshot = client.snapshot(pushed.result["commit"])
    fetched = contents(snapshot)
    card = fetched.pop("README.md").decode()
    assert fetched == contents(Path("bundle"))
    assert f"--bundle {ADDRESS}" in card
    masks = contents(Path("results"))
    hub.requests.clear()
    client.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    again = client.run("infer", "scene.png", PHRASES[0], "--bundle", ADDRESS, "--backend", "onnxruntime")
    assert again.code == 0, again.err
    assert "taken from the cache" in again.err
    assert {name: data for name, data in contents(Path("results")).items() if name.endswith(".png")} == {
        name: data for name, data in masks.items() if name.endswith(".png")
    }
    pinned = f"{ADDRESS}@{pushed.result['commit']}"
    assert client.run("infer", "scene.png", PHRASES[0], "--bundle", pinned, "--backend", "onnxruntime").err == ""


@pytest.mark.parametrize("file", ["siglip_vision.onnx", "siglip_text.onnx.data", "tokenizer.json"])
def test_a_file_changed_on_the_server_is_refused_by_name(place: Path, hub: Hub, client: Client, file: str) -> None:
    assert client.run("push", "bundle", NAME).code == 0
    content = bytearray(hub.repositories[NAME].files()[file])
    content[-1] ^= 1
    hub.put(NAME, **{file: bytes(content)})
    for _ in range(2):
        ran = client.run("infer", "scene.png", PHRASES[0], "--bundle", ADDRESS, "--backend", "onnxruntime", "--json")
        assert ran.code == 2
        assert f"/{file}' was changed" in ran.err.splitlines()[-1]


def test_what_cannot_be_fetched_is_one_line(place: Path, hub: Hub, client: Client) -> None:
    hub.put("made/other", **{"config.json": b"{}"})

    def refused(address: str, *facts: str) -> None:
        assert_refused(client.run("infer", "scene.png", "x", "--bundle", address), *facts)

    refused("hf://made/none", "'made/none'")
    refused("hf://made/other", "bundle.json")
    refused("hf://made/other@v1", "'v1'")
    refused("hf://made", "hf://ORG/NAME")
    client.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    refused("hf://made/other", "'made/other'", "check the network")
    assert_refused(client.run("export", "hf://made/run"), "'made/run'", "check the network")


def test_a_run_is_pushed_with_its_scores_and_exported_elsewhere(
    demo_place: Path, exported: Exported, hub: Hub, client: Client, capsys: Capsys
) -> None:
    scored = run_here(capsys, "eval", "--data", "boxes", "--split", "val", "--json")
    Path("scores.json").write_text(scored.out)
    best = hashlib.sha256(Path("runs/001/best.safetensors").read_bytes()).hexdigest()
    Path("unmerged.json").write_text(json.dumps(scored.result | {"model_sha256": best, "split": "unmerged"}))
    scores = ("--scores", "scores.json", "--scores", "unmerged.json")
    pushed = client.run("push", "runs/001", NAME, *scores, "--json")
    assert pushed.code == 0, pushed.err
    assert "best.safetensors" not in pushed.result["files"]
    shutil.rmtree("runs")
    shutil.move("bundle", "first")
    ran = client.run("export", ADDRESS, "--out", "bundle")
    assert ran.code == 0, ran.err
    snapshot = client.snapshot(pushed.result["commit"])
    run = Run(exported.run)
    for path in (run.record_path, run.merged_path, run.tokenizer_path, run.reference_inputs_path):
        assert (snapshot / path.name).read_bytes() == path.read_bytes()
    names = [path.name for path in Path("first").glob("*.onnx")]
    assert all(Path("bundle", name).read_bytes() == Path("first", name).read_bytes() for name in names)
    card = (snapshot / "README.md").read_text()
    assert "| run | boxes | unmerged |" in card
    assert f"| run | boxes | val | rsrefseg | {scored.result['samples']} | {scored.result['gIoU']:.4f} |" in card
    assert str(exported.data.parent) not in card, "the user's folders are nobody's business"
    changed = hub.repositories[NAME].files()["tokenizer.json"] + b" "
    hub.put(NAME, **{"tokenizer.json": changed})
    assert_refused_last(client.run("export", ADDRESS, "--out", "bundle"), "tokenizer.json' was changed")


def test_the_card_of_a_bundle_has_the_facts_of_its_run(demo_place: Path, hub: Hub, client: Client) -> None:
    with Path("runs/001/metrics.jsonl").open("a") as metrics:  # the training went on after the export
        later = {"protocol": "rsrefseg", "samples": 4, "gIoU": 0.9876}
        metrics.write(json.dumps({"step": 10**6, "epoch": 9, "validation": later}) + "\n")
    assert client.run("push", "bundle", NAME).code == 0
    card = hub.repositories[NAME].files()["README.md"].decode()
    assert "0.9876" not in card
    record = json.loads(Path("runs/001/run.json").read_text())
    assert record["data"]["sha256"] in card
    assert "| run | boxes | val | rsrefseg | 4 |" in card
    assert "`sam_encoder`" in card
    Path("runs/001/merged.safetensors").write_bytes(b"another")
    assert client.run("push", "bundle", NAME).code == 0
    assert record["data"]["sha256"] not in hub.repositories[NAME].files()["README.md"].decode()
    assert_refused(client.run("push", "bundle", NAME, "--run", "runs/001"), "not exported from 'runs/001'")


def test_what_must_not_be_pushed_is_refused_before_anything_is_sent(demo_place: Path, hub: Hub, client: Client) -> None:
    Path("empty").mkdir()
    score = {"protocol": "rsrefseg", "samples": 1, "data": "x", "split": "test"}
    Path("scores.json").write_text(json.dumps(score))
    checkpoint = hashlib.sha256(Path("runs/001/merged.safetensors").read_bytes()).hexdigest()
    of_another_bundle = {"model_sha256": checkpoint, "bundle_sha256": "e" * 64}  # such as its INT8 form
    Path("int8.json").write_text(json.dumps(score | of_another_bundle))
    shutil.copytree("runs/001", "runs/002")
    Path("runs/002/merged.safetensors").unlink()
    shutil.copytree("runs/001", "runs/003")
    Path("runs/003/best.safetensors").write_bytes(b"newer")
    shutil.copytree("bundle", "broken")
    (Path("broken") / "sam_decoder.onnx").unlink()
    for arguments, fact in (
        (("bundle", "no-org"), "ORG/NAME"),
        (("empty", NAME), "neither a bundle"),
        (("runs/002", NAME), "rsrefseg merge"),
        (("runs/003", NAME), "rsrefseg merge"),
        (("broken", NAME), "sam_decoder.onnx"),
        (("bundle", NAME, "--scores", "scores.json"), "another model"),
        (("bundle", NAME, "--scores", "int8.json"), "another model"),
    ):
        assert_refused(client.run("push", *arguments), fact)
    assert hub.requests == []


def test_a_refused_token_and_a_missing_network_are_one_line(place: Path, hub: Hub, client: Client) -> None:
    hub.token = "another"
    assert_refused_last(client.run("push", "bundle", NAME), "hf auth login")
    client.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert_refused_last(client.run("push", "bundle", NAME), "check the network")
    client.environment["HF_HUB_OFFLINE"] = "1"
    assert_refused_last(client.run("push", "bundle", NAME), "check the network")
