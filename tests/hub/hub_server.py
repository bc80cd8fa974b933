"""The hub's protocol on loopback, as far as `huggingface_hub` uses it for models and data sets.

Models are pushed and both are downloaded. Large files go by their SHA-256, and are uploaded by Git
LFS's batch protocol before the commit that names them. Statuses and headers of errors are those of
the hub (X-Error-Code, X-Error-Message). It does not announce Xet storage.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.hub.repositories import File, Repository

WRITER, READER = "hf_writer", "hf_reader"
USERS = {WRITER: "ann", READER: "bob"}
LFS_BYTES = 4096  # files above are large


class Refusal(Exception):
    """An answer with the status and the headers of one of the hub's errors."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | headers
        if code is not None:
            self.headers["X-Error-Code"] = code


class HubServer(ThreadingHTTPServer):
    """The state of the hub; tests read and change it.

    Attributes:
        repositories: by name, which begins with `datasets/` for a data set.
        objects: large files, by SHA-256.
        requests: the method and path of each request.
        drops: patterns of "METHOD path" whose connection is cut in the middle, and how often.
        received: bytes of the body of each upload of a large file, by SHA-256.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.drops: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.stalled = threading.Event()  # set when an upload waits in its middle
        self.stalls = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, name: str, *, private: bool = False) -> Repository:
        repository = Repository(name, self.objects, private)
        repository.commit({".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        self.repositories[name] = repository
        return repository

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed cut their connections."""


@contextlib.contextmanager
def serving() -> Iterator[HubServer]:
    """Run a hub until the end of the context."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {self.path}"
        self.server.requests.append(line)
        if self.command == "PUT" and self.server.stalls:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.server.stalled.set()
            self.rfile.read()  # until the client is gone
            self.close_connection = True
            return
        for pattern, times in self.server.drops.items():
            if times and re.match(pattern, line):
                self.server.drops[pattern] -= 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for pattern, method in _ROUTES:
                if match := re.fullmatch(pattern, line):
                    method(self, body, **match.groupdict())
                    return
            raise Refusal(404, None, f"no such route: {line}")
        except Refusal as refusal:
            self._json({"error": refusal.message}, refusal.status, **refusal.headers)

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _user(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in USERS:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return USERS[token]

    def _repository(self, name: str, *, to_write: bool = False) -> Repository:
        user, repository = self._user(), self.server.repositories.get(name)
        is_owner = repository is not None and user == repository.owner
        if repository is None or (repository.private and not is_owner):
            if user is None:
                raise Refusal(401, None, "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if to_write and not is_owner:
            raise Refusal(403, None, "Forbidden: you don't have the required permissions")
        return repository

    def _revision(self, repository: Repository, revision: str) -> str:
        oid = repository.resolve(revision)
        if oid is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def whoami(self, body: bytes) -> None:
        if (user := self._user()) is None:
            raise Refusal(401, None, "Invalid username or password.")
        self._json({"type": "user", "name": user, "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> None:
        request, user = json.loads(body), self._user()
        name = f"{request['organization'] or user}/{request['name']}"
        if user is None:
            raise Refusal(401, None, "Invalid username or password.")
        if name in self.server.repositories:
            url = f"{self.server.url}/{name}"
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        if user != name.split("/")[0]:
            raise Refusal(403, None, f"You don't have the rights to create a model under {name}")
        self.server.create(name, private=request.get("visibility") == "private")
        self._json({"url": f"{self.server.url}/{name}", "name": name})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        repository = self._repository(repo)
        oid = self._revision(repository, revision or "main")
        siblings = [{"rfilename": name} for name in repository.commits[oid]]
        facts = {"sha": oid, "private": repository.private, "siblings": siblings}
        facts["id"] = repo.removeprefix("datasets/")
        self._json(facts | {"gated": "manual" if repository.gated else False, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        entries = []
        for name, file in repository.commits[self._revision(repository, revision)].items():
            size = len(file.content)
            entry = {"type": "file", "oid": file.git_oid, "size": size, "path": name}
            if file.is_lfs:
                entry["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def validate_yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo, to_write=True)
        present = repository.commits[self._revision(repository, revision)]
        files = []
        for file in json.loads(body)["files"]:
            is_lfs, old = file["size"] > LFS_BYTES, present.get(file["path"])
            oid = None if old is None else old.sha256 if old.is_lfs else old.git_oid
            mode = "lfs" if is_lfs else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(answer | ({} if oid is None else {"oid": oid}))
        self._json({"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        self._repository(repo, to_write=True)
        objects = json.loads(body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.server.objects:
                upload = {"href": f"{self.server.url}/lfs/{entry['oid']}", "header": {}}
                entry["actions"] = {"upload": upload}
        self._json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, None, "the content has another SHA-256")
        self.server.objects[oid] = body
        self.server.received[oid] = self.server.received.get(oid, 0) + len(body)
        self._send(200)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo, to_write=True)
        lines = [json.loads(line) for line in body.splitlines()]
        header, changes = lines[0]["value"], lines[1:]
        files = dict(repository.files)
        if header.get("parentCommit", repository.head) != repository.head:
            raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refusal(400, None, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = File(self.server.objects[value["oid"]], True)
            elif files.pop(value["path"], None) is None:
                raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        oid = repository.commit(files)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        repository, user = self._repository(repo), self._user()
        oid = self._revision(repository, revision)
        if repository.gated and user != repository.owner:
            message = f"Access to {repo} is restricted."
            raise Refusal(403 if user else 401, "GatedRepo", message)
        if path not in repository.commits[oid]:
            raise Refusal(404, "EntryNotFound", "Entry not found", X_Repo_Commit=oid)
        file = repository.commits[oid][path]
        if not file.is_lfs:
            self._send(200, file.content, ETag=f'"{file.git_oid}"', X_Repo_Commit=oid)
            return
        linked = {"X_Linked_Size": str(len(file.content)), "X_Linked_ETag": f'"{file.sha256}"'}
        # As on the hub, large files are on another host, which gets no token.
        location = f"http://localhost:{self.server.server_address[1]}/cdn/{file.sha256}"
        self._send(302, Location=location, X_Repo_Commit=oid, **linked)

    def download(self, body: bytes, oid: str) -> None:
        content = self.server.objects[oid]
        part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if part is None:
            self._send(200, content, ETag=f'"{oid}"')
            return
        start, size = int(part[1]), len(content)
        place = f"bytes {start}-{size - 1}/{size}"
        self._send(206, content[start:], ETag=f'"{oid}"', Content_Range=place)


_MODEL, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>.+)"
_EITHER = r"(?P<repo>(datasets/)?[^/]+/[^/]+)"  # a model or a data set
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET /api/(models/)?{_EITHER}", _Handler.info),
    (rf"GET /api/(models/)?{_EITHER}/revision/{_REVISION}", _Handler.info),
    (rf"GET /api/(models/)?{_EITHER}/tree/{_REVISION}", _Handler.tree),
    (rf"POST /api/models/{_MODEL}/preupload/{_REVISION}", _Handler.preupload),
    (rf"POST /api/models/{_MODEL}/commit/{_REVISION}", _Handler.commit),
    (rf"POST /{_MODEL}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler.lfs_upload),
    (r"(GET|HEAD) /cdn/(?P<oid>\w+)", _Handler.download),
    (rf"(GET|HEAD) /{_EITHER}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
