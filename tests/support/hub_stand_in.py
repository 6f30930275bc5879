# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A small stand-in for the Hugging Face Hub on loopback: model repositories with commits, downloads and uploads.

It answers the requests huggingface_hub makes for `from_pretrained` and `push_to_hub` without Xet, in the Hub's words
(status, headers, error codes). Any other request gets 501 and is remembered in `surprises`. It does not redirect large
files to another host, as the Hub does.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """Branches point to commits, a commit to all files of its state."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        history = f"{branch} {self.branches.get(branch)} {len(self.commits)} {sorted(files)}"
        sha = hashlib.sha1(history.encode() + b"".join(files[name] for name in sorted(files))).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


def is_large(path: str, sample: bytes) -> bool:
    """Tells whether the Hub stores a file as LFS: weights, and all that is not text."""
    return path.endswith(".safetensors") or b"\0" in sample


def object_id(path: str, content: bytes) -> str:
    """Returns SHA-256 for LFS files, git's blob hash for others. It is the ETag, which tells unchanged files."""
    if is_large(path, content[:512]):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubError(Exception):
    def __init__(self, status: int, code: str, commit: str | None = None):
        super().__init__(code)
        self.status, self.code, self.commit = status, code, commit


class HubStandIn:
    """A server in a `with HubStandIn() as hub:`. Its address `hub.endpoint` is the value for HF_ENDPOINT."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large_files: Files = {}  # uploaded by LFS, under their SHA-256
        self.requests: list[str] = []  # "METHOD /path"
        self.surprises: list[str] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def publish(self, name: str, folder: Path | str, branch: str = "main") -> str:
        """Commits the files of a folder to a repository, following links, and returns the hash of the commit."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
        }
        with self.lock:
            return self.repositories.setdefault(name, Repository()).commit(branch, files)

    def files(self, name: str, revision: str = "main") -> Files:
        return self.at(name, revision)[1]

    def at(self, name: str, revision: str) -> tuple[str, Files]:
        repository = self.repositories.get(name)
        if repository is None:
            raise HubError(404, "RepoNotFound")
        sha = repository.resolve(revision)
        if sha is None:
            raise HubError(404, "RevisionNotFound")
        return sha, repository.commits[sha]


class Handler(BaseHTTPRequestHandler):
    """The request handler, with one method for each endpoint. `ROUTES` below maps requests to methods."""

    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def model_info(self, name: str, revision: str = "main"):
        sha, files = self.hub.at(name, revision)
        siblings = [{"rfilename": path} for path in files]
        self.answer_json({"id": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})

    def tree(self, name: str, revision: str, folder: str = ""):
        sha, files = self.hub.at(name, revision)
        found = {path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not found:
            raise HubError(404, "EntryNotFound", sha)
        self.answer_json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": object_id(path, content)}
                for path, content in found.items()
            ]
        )

    def resolve(self, name: str, revision: str, path: str):
        sha, files = self.hub.at(name, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound", sha)
        content = files[path]
        headers = {"ETag": f'"{object_id(path, content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if first > last:
            self.answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, content[first : last + 1], headers)

    def create_repository(self):
        self.check_token()
        asked = self.body_json()
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        exists = name in self.hub.repositories
        if not exists:
            repository = self.hub.repositories[name] = Repository()
            repository.commit("main", {})
        self.answer_json({"url": f"{self.hub.endpoint}/{name}"}, 409 if exists else 200)

    def validate_card(self):
        self.answer_json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str):
        """Answers how to upload each file, and the id of the present one."""
        self.check_token()
        _, files = self.hub.at(name, revision)
        answers = []
        for asked in self.body_json()["files"]:
            path = asked["path"]
            mode = "lfs" if is_large(path, base64.b64decode(asked["sample"])) else "regular"
            known = object_id(path, files[path]) if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self.answer_json({"files": answers})

    def large_files_batch(self, name: str):
        """Answers where to upload each large file. A file that is here already gets no `actions`."""
        self.check_token()
        answers = []
        for asked in self.body_json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large_files:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large-files/{asked['oid']}"}}
            answers.append(answer)
        self.answer_json({"transfer": "basic", "objects": answers})

    def put_large_file(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "BadDigest")
        self.hub.large_files[oid] = self.body
        self.answer(200, b"", {"ETag": f'"{oid}"'})

    def commit(self, name: str, revision: str):
        """Reads a commit: lines of JSON, first a header, then one line for each file."""
        self.check_token()
        _, files = self.hub.at(name, revision)
        files = dict(files)
        for line in self.body.splitlines():
            key, value = json.loads(line).values()
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif key != "header":
                raise HubError(501, f"Unknown operation {key}")
        sha = self.hub.repositories[name].commit(revision, files)
        self.answer_json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"})

    # ---- plumbing

    def check_token(self):
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            raise HubError(401, "Unauthorized")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return b"".join(self.read_chunks())

    def read_chunks(self) -> Iterable[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def body_json(self):
        return json.loads(self.body)

    def answer_json(self, value, status: int = 200):
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self):
        request = f"{self.command} {urlsplit(self.path).path}"
        self.body = self.read_body()  # always read, or the rest would be taken for the next request
        with self.hub.lock:
            self.hub.requests.append(request)
            try:
                for pattern, method in ROUTES:
                    if match := re.fullmatch(pattern, request):
                        return method(self, *map(unquote, match.groups()))
                self.hub.surprises.append(request)
                raise HubError(501, "UnknownEndpoint")
            except HubError as error:
                commit = {"X-Repo-Commit": error.commit} if error.commit else {}
                self.answer(error.status, b"", {"X-Error-Code": error.code, "X-Error-Message": error.code} | commit)

    do_HEAD = do_GET = do_POST = do_PUT = handle_request

    def log_message(self, *arguments):
        pass


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = [
    (rf"GET /api/models/{NAME}", Handler.model_info),
    (rf"GET /api/models/{NAME}/revision/{REVISION}", Handler.model_info),
    (rf"GET /api/models/{NAME}/tree/{REVISION}", Handler.tree),
    (rf"GET /api/models/{NAME}/tree/{REVISION}/(.+)", Handler.tree),
    (rf"(?:HEAD|GET) /{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
    (r"POST /api/repos/create", Handler.create_repository),
    (r"POST /api/validate-yaml", Handler.validate_card),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.large_files_batch),
    (r"PUT /large-files/(\w+)", Handler.put_large_file),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", Handler.commit),
]
