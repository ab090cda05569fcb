"""A hub on loopback: as much of its HTTP interface as huggingface_hub needs for models.

Repositories are kept in memory. All files travel inside of commits, which the real hub does with
small ones only: for large ones it has a chunk store of its own.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """The repositories of a server."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.url = ""

    def sha(self, repo: str) -> str:
        """The commit that a repository is at."""
        state = hashlib.sha1(repo.encode())
        for name, data in sorted(self.repositories[repo].items()):
            state.update(name.encode() + hashlib.sha256(data).digest())
        return state.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: object = None, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._answer({"error": code}, 404, X_Error_Code=code)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _path(self) -> list[str]:
        self.hub.requests.append(f"{self.command} {self.path}")
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def do_GET(self) -> None:
        match self._path():
            case ["api", "models", owner, name, *rest]:
                repo = f"{owner}/{name}"
                if repo not in self.hub.repositories:
                    self._missing("RepoNotFound")
                elif rest[:1] == ["tree"]:
                    self._answer(self._tree(repo))
                elif rest[1:] in ([], ["main"], [self.hub.sha(repo)]):
                    self._answer(self._info(repo))
                else:
                    self._missing("RevisionNotFound")
            case [owner, name, "resolve", _, *path]:
                self._file(f"{owner}/{name}", "/".join(path))
            case _:
                self._missing("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        match path:
            case ["api", "repos", "create"]:
                wanted = json.loads(body)
                repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                if repo in self.hub.repositories:
                    url = f"{self.hub.url}/{repo}"
                    self._answer({"error": "You already created this model repo", "url": url}, 409)
                    return
                self.hub.repositories[repo] = {}
                self._answer({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})
            case ["api", "validate-yaml"]:
                self._answer({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", _]:
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            case ["api", "models", owner, name, "commit", _]:
                self._commit(f"{owner}/{name}", body)
            case _:
                self._missing("EntryNotFound")

    def _commit(self, repo: str, body: bytes) -> None:
        files = self.hub.repositories[repo]
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.hub.sha(repo)
        url = f"{self.hub.url}/{repo}/commit/{sha}"
        self._answer({"success": True, "commitOid": sha, "commitUrl": url})

    def _info(self, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in sorted(self.hub.repositories[repo])]
        return {"id": repo, "sha": self.hub.sha(repo), "siblings": siblings, "private": False}

    def _tree(self, repo: str) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
            }
            for name, data in sorted(self.hub.repositories[repo].items())
        ]

    def _file(self, repo: str, name: str) -> None:
        data = self.hub.repositories.get(repo, {}).get(name)
        if data is None:
            known = repo in self.hub.repositories
            self._missing("EntryNotFound" if known else "RepoNotFound")
            return
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X_Repo_Commit": self.hub.sha(repo),
            "Accept_Ranges": "bytes",
        }
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1 if last else len(data)
            headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self._answer(data[start:stop], 206, **headers)
        else:
            self._answer(data, **headers)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that serves until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
