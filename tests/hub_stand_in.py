"""A small stand-in of the Hub's HTTP interface on the loopback device: repositories, commits, large files, faults.

What `huggingface_hub` asks for is answered as the Hub answers it: `create_repo`, branches, `preupload`, LFS, commits, trees,
and files with ETag, ranges and the commit they are of. Everything is kept in memory.
"""

import base64
import hashlib
import json
import re
import threading
import time
import types
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from launching import train_command
from trainer.hub.folders import local_folder

TOKEN = "hf_right"
LARGE = {".parquet", ".safetensors", ".arrow"}
_API = r"/api/(?P<type>dataset|model)s/(?P<id>[^/]+/[^/]+)"
_FILES = r"/(?:(?P<type>dataset)s/)?(?P<id>[^/]+/[^/]+)"


@dataclass
class Repository:
    """Branches to commits, commits to files."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        digest = hashlib.sha1(f"{len(self.commits)}".encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Hub:
    """What the server holds, what it was asked, and what is to go wrong."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # `PUT /objects/…`
    #: of a request, what goes wrong: an HTTP status, "drop" the connection, "cut" the answer in its middle; None: nothing
    trouble: Callable[[str], int | str | None] = lambda request: None

    def dataset(self, name: str) -> Repository:
        return self.repositories["dataset", name]

    def change(self, name: str, kind: str = "dataset", **files: bytes | None) -> None:
        """Change files of a repository on its main branch, as a person can on its page; None takes one out."""
        repository = self.repositories[kind, name]
        content = {**(repository.files() or {}), **files}
        repository.commit({file: text for file, text in content.items() if text is not None})

    def asked(self, what: str) -> list[str]:
        return [request for request in self.requests if what in request]


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer waits 40 ms for an acknowledgement
    hub: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.fault = self.hub.trouble(request)
        if self.fault == "drop":
            self.close_connection = True
            self.connection.close()
            return
        token = self.headers.get("Authorization")
        self.signed = token == f"Bearer {TOKEN}"
        asked = request.replace("HEAD", "GET", 1) if self.command == "HEAD" else request  # the same without its body
        routes = ((re.fullmatch(pattern, asked), answer) for pattern, answer in self.ROUTES)
        match, answer = next((route for route in routes if route[0]), (None, None))
        if isinstance(self.fault, int) or match is None:
            self._send(self.fault or 404, b"{}")
        elif token is not None and not self.signed:
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif answer in self.WRITING and not self.signed:
            self._send(401, b"{}", {"X-Error-Message": "Invalid username or password."})
        else:
            answer(self, **match.groupdict())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _repository(self, type: str | None, id: str) -> Repository | None:
        repository = self.hub.repositories.get((type or "model", id))
        if repository is None or (repository.private and not self.signed):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _tree_of(self, type: str | None, id: str, rev: str | None) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(type, id)
        if repository is None:
            return None
        files = repository.files(rev or "main")
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository.branches.get(rev or "main", rev), files

    def create(self) -> None:
        given = json.loads(self.body)
        if given["organization"] == "somebody-else":
            self._send(403, b"{}", {"X-Error-Message": "You don't have the rights to create a dataset there"})
            return
        key = given.get("type", "model"), f"{given['organization']}/{given['name']}"
        status = 409 if key in self.hub.repositories else 200
        if status == 200:
            private = given.get("private") or given.get("visibility") == "private"
            self.hub.repositories[key] = Repository(private=bool(private))
            self.hub.repositories[key].commit({".gitattributes": b"*.parquet filter=lfs\n"})
        self._json({"url": f"{self.hub.url}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"}, status)

    def info(self, type: str, id: str, rev: str | None = None) -> None:
        if (found := self._tree_of(type, id, rev)) is not None:
            sha, files = found
            private = self.hub.repositories[type, id].private
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": id, "sha": sha, "private": private, "siblings": siblings, "tags": [], "disabled": False})

    def branch(self, type: str, id: str, rev: str) -> None:
        repository = self._repository(type, id)
        if repository is not None:
            known = rev in repository.branches
            repository.branches.setdefault(rev, repository.branches["main"])
            self._json({}, 409 if known else 200)

    def preupload(self, type: str, id: str, rev: str) -> None:
        if (found := self._tree_of(type, id, rev)) is not None:
            answers = []
            for file in json.loads(self.body)["files"]:
                large = PurePosixPath(file["path"]).suffix in LARGE
                old = found[1].get(file["path"])
                oid = None if old is None else hashlib.sha256(old).hexdigest() if large else _git_sha(old)
                mode = "lfs" if large else "regular"
                answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._json({"files": answers})

    def batch(self, type: str | None, id: str) -> None:
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def put(self, oid: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == oid
        if right:
            self.hub.objects[oid] = self.body
        self._send(200 if right else 400, b"")

    def commit(self, type: str, id: str, rev: str) -> None:
        if (found := self._tree_of(type, id, rev)) is None:
            return
        sha, files = found
        files = dict(files)
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", sha) != sha:
                        self._send(412, b"{}")
                        return
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        made = self.hub.repositories[type, id].commit(files, rev)
        self._json({"commitOid": made, "commitUrl": f"{self.hub.url}/{id}/commit/{made}"})

    def tree(self, type: str, id: str, rev: str, folder: str | None = None) -> None:
        if (found := self._tree_of(type, id, rev)) is not None:
            top = PurePosixPath(folder or "")
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1")
            inside = {PurePosixPath(name): content for name, content in found[1].items()}
            inside = {name: content for name, content in inside.items() if name.is_relative_to(top) and name != top}
            folders = {parent for name in inside for parent in name.parents if parent.is_relative_to(top)} - {top}
            entries = [{"type": "directory", "path": str(name), "oid": "0" * 40, "size": 0} for name in sorted(folders)]
            entries += [self._entry(str(name), content) for name, content in inside.items()]
            near = [entry for entry in entries if PurePosixPath(entry["path"]).parent == top]
            self._json(entries if recursive else near)

    def paths_info(self, type: str, id: str, rev: str) -> None:
        if (found := self._tree_of(type, id, rev)) is not None:
            form = dict(part.split("=", 1) for part in unquote(self.body.decode()).split("&"))
            paths = json.loads(self.body)["paths"] if self.body.startswith(b"{") else [form["paths"]]
            self._json([self._entry(path, found[1][path]) for path in paths if path in found[1]])

    def _entry(self, name: str, content: bytes) -> dict:
        entry = {"type": "file", "path": name, "size": len(content), "oid": _git_sha(content)}
        if PurePosixPath(name).suffix in LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def resolve(self, id: str, rev: str, path: str, type: str | None = None) -> None:
        if (found := self._tree_of(type, id, rev)) is None:
            return
        sha, files = found
        if path not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        content = files[path]
        large = PurePosixPath(path).suffix in LARGE
        etag = hashlib.sha256(content).hexdigest() if large else _git_sha(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = 0 if start is None else int(start[1])
        if start is not None:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(200 if start is None else 206, content[first:], headers)

    def yaml(self) -> None:
        front = json.loads(self.body)["content"].split("---")[1]
        wrong = [{"message": '"license" must be one of the known ones'}] if "license: no-such" in front else []
        self._json({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    WRITING = (create, branch, preupload, batch, commit)
    ROUTES = (
        (r"POST /api/repos/create", create),
        (r"POST /api/validate-yaml", yaml),
        (rf"GET {_API}", info),
        (rf"GET {_API}/revision/(?P<rev>.+)", info),
        (rf"POST {_API}/branch/(?P<rev>.+)", branch),
        (rf"POST {_API}/preupload/(?P<rev>.+)", preupload),
        (rf"POST {_API}/commit/(?P<rev>.+)", commit),
        (rf"GET {_API}/tree/(?P<rev>[^/]+)(?:/(?P<folder>.*))?", tree),
        (rf"POST {_API}/paths-info/(?P<rev>.+)", paths_info),
        (rf"POST {_FILES}\.git/info/lfs/objects/batch", batch),
        (r"PUT /objects/(?P<oid>\w+)", put),
        (rf"GET {_FILES}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
    )


@contextmanager
def running():
    """A Hub on a free port of the loopback device."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def speak_to(url: str, folder: Path) -> dict[str, object]:
    """Constants of the Hub's client with which it speaks to a stand-in, and keeps files in a folder."""
    from huggingface_hub import constants

    return {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(folder / "hub-cache"),
        "HF_ASSETS_CACHE": str(folder / "assets"),
    }


def train_from(url: str, folder: Path, *arguments: object) -> None:
    """`launching.train_command` as a rank that speaks to a stand-in."""
    from huggingface_hub import constants

    for name, value in speak_to(url, folder).items():
        setattr(constants, name, value)
    train_command(*arguments)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, to which everything in this process that speaks with the Hub speaks now, with a token that may write."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, close_session

    # its upload without `hf_xet` calls its own HTTP client in an old way
    warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
    with running() as server:
        for name, value in speak_to(server.url, tmp_path).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        patient = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})  # retries do not wait
        monkeypatch.setattr(_http, "time", patient)
        local_folder.cache_clear()
        yield server
        local_folder.cache_clear()
        close_session()
