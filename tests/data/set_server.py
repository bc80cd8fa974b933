"""The hub's protocol on loopback, as far as `huggingface_hub` uses it to download data sets.

Statuses and headers of errors are those of the hub. It does not announce Xet storage.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class SetServer(ThreadingHTTPServer):
    """Repositories of data sets; tests fill them.

    Attributes:
        commits: of each repository the files of each commit.
        branches: of each repository the commit of each branch.
        gated: the repositories whose files nobody gets.
        downloads: the path of each file that was sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, files: Files, *, branch: str = "main") -> str:
        content = [(name, hashlib.sha1(x).hexdigest()) for name, x in sorted(files.items())]
        commit = hashlib.sha1(repr((branch, content)).encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = files
        self.branches.setdefault(repository, {})[branch] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SetServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in (
            (r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/api/datasets/([^/]+/[^/]+)/tree/(.+)", self._tree),
            (r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        ):
            if match := re.fullmatch(pattern, path):
                answer(*match.groups())
                return
        self._refuse(404, "EntryNotFound", f"no such route: {path}")

    do_HEAD = do_GET

    def _info(self, repository: str, revision: str | None) -> None:
        if repository not in self.server.commits:
            self._refuse(404, "RepoNotFound", "Repository not found")  # as with a token
        elif (commit := self._resolve(repository, revision or "main")) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            siblings = [{"rfilename": x} for x in self.server.commits[repository][commit]]
            self._json({"id": repository, "sha": commit, "siblings": siblings, "tags": []})

    def _tree(self, repository: str, commit: str) -> None:
        files = self.server.commits[repository][commit]
        self._json(
            [
                {"type": "file", "oid": hashlib.sha1(x).hexdigest(), "size": len(x), "path": name}
                for name, x in files.items()
            ]
        )

    def _file(self, repository: str, revision: str, name: str) -> None:
        commit = self._resolve(repository, revision)
        if repository in self.server.gated:
            self._refuse(403, "GatedRepo", f"Access to dataset {repository} is restricted.")
        elif commit is None or name not in self.server.commits[repository][commit]:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = self.server.commits[repository][commit][name]
            if self.command == "GET":
                self.server.downloads.append(name)
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._send(200, content, {"ETag": etag, "X-Repo-Commit": commit})

    def _resolve(self, repository: str, revision: str) -> str | None:
        revision = self.server.branches[repository].get(revision, revision)
        return revision if revision in self.server.commits[repository] else None

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serving() -> Iterator[SetServer]:
    """Run a hub until the end of the context."""
    with SetServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
