"""A server on loopback with the endpoints of the Hugging Face hub that its client uses for models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

SECRET = "hf_secretsecretsecretsecret"
_LARGE = (".onnx", ".data", ".pth", ".safetensors")
_REPO = r"(?P<name>[^/]+/[^/]+)"


@dataclass
class Repository:
    """Commits by name, each with its files, the latest last."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        merged = (self.files() if self.commits else {}) | files
        commit = hashlib.sha1(repr(sorted(merged.items())).encode() + bytes([len(self.commits)])).hexdigest()
        self.commits[commit] = merged
        return commit

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None

    def files(self) -> dict[str, bytes]:
        return next(reversed(self.commits.values()))


@dataclass
class Hub:
    """The state of the server.

    Attributes:
        url: its address.
        repositories: repositories by name.
        requests: method and path of every request.
        ranges: values of ``Range`` headers.
        created: documents of requests that make a repository.
        cut_after: if set, the next download breaks off after so many bytes.
        token: token that a write needs.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    cut_after: int | None = None
    token: str = SECRET

    def put(self, name: str, **files: bytes) -> str:
        """Commit files; return the commit."""
        return self.repositories.setdefault(name, Repository()).commit(files)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run the server in a thread."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_of_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run the server as the hub of this process, with its cache in ``folder``, which becomes the working folder."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.chdir(folder)
        yield server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._record()
        if found := re.fullmatch(rf"/api/models/{_REPO}(/revision/(?P<revision>.+))?", path):
            return self._information(found["name"], found["revision"] or "main")
        if found := re.fullmatch(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", path):
            return self._tree(found["name"], found["revision"])
        if found := re.fullmatch(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path):
            return self._file(found["name"], found["revision"], found["file"])
        return self._fail(404, "EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        body, oid = self._body(), self._record().rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._fail(400)
        self.hub.objects[oid] = body
        return self._json({})

    def do_POST(self) -> None:
        body, path = self._body(), self._record()
        if path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._fail(401)
        if found := re.fullmatch(rf"/api/models/{_REPO}/commit/main", path):
            return self._commit(found["name"], [json.loads(line) for line in body.splitlines()])
        document = json.loads(body)
        if path == "/api/validate-yaml":
            valid = document["content"].startswith("---\n") and "\n---\n" in document["content"]
            return self._json({"errors": [] if valid else [{"message": "no metadata"}], "warnings": []})
        if path == "/api/repos/create":
            return self._create(document)
        if re.fullmatch(rf"/api/models/{_REPO}/preupload/main", path):
            modes = {True: "lfs", False: "regular"}
            return self._json(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": modes[_is_large(one["path"])], "shouldIgnore": False}
                        for one in document["files"]
                    ]
                }
            )
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"transfer": "basic", "objects": [self._upload(one) for one in document["objects"]]})
        if path == "/lfs/verify":
            return self._json({}) if document["oid"] in self.hub.objects else self._fail(404)
        return self._fail(404)

    def _information(self, name: str, revision: str) -> None:
        if (found := self._find(name, revision)) is None:
            return
        commit, files = found
        siblings = []
        for file, content in files.items():
            sibling: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _oid(content)}
            if _is_large(file):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 134}
            siblings.append(sibling)
        self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        if (found := self._find(name, revision)) is None:
            return
        entries = []
        for file, content in found[1].items():
            entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": _oid(content)}
            if _is_large(file):
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def _file(self, name: str, revision: str, file: str) -> None:
        if (found := self._find(name, revision)) is None:
            return None
        commit, files = found
        if file not in files:
            return self._fail(404, "EntryNotFound")
        content, start = files[file], 0
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        etag = hashlib.sha256(content).hexdigest() if _is_large(file) else _oid(content)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.hub.cut_after is not None and _is_large(file):
            content, self.hub.cut_after = content[: start + self.hub.cut_after], None
            self.close_connection = True
        self.wfile.write(content[start:])
        return None

    def _create(self, document: dict[str, Any]) -> None:
        name = f"{document['organization']}/{document['name']}"
        self.hub.created.append(document)
        status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, Repository())
        self._json({"url": f"{self.hub.url}/{name}", "id": name}, status)

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.objects:
            return wanted
        actions = {
            "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"},
            "verify": {"href": f"{self.hub.url}/lfs/verify"},
        }
        return wanted | {"actions": actions}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.repositories[name].commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None})

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if (repository := self.hub.repositories.get(name)) is None:
            self._fail(404, "RepoNotFound")
        elif (commit := repository.resolve(unquote(revision))) is None:
            self._fail(404, "RevisionNotFound")
        else:
            return commit, repository.commits[commit]
        return None

    def _record(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, document: Any, status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_large(file: str) -> bool:
    return file.endswith(_LARGE)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
