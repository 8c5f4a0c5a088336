"""A server that stands in for the Hugging Face Hub, and for any other server of files."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Hub(http.server.ThreadingHTTPServer):
    """Holds repositories, and misbehaves when asked to.

    Attributes:
      repositories: name -> path -> contents.
      gated: names that need a token, which is "secret".
      cut_after: bytes of a file, after which the connection is cut; for so many requests as `cuts` says.
      requests: (method, path, first byte that is asked for) of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.cut_after, self.cuts = 0, 0
        self.refusal = 0  # HTTP status of every answer, if not 0
        self.tags = True  # whether files have an ETag
        self.requests: list[tuple[str, str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """Say nothing about connections that were cut."""


@contextlib.contextmanager
def serve():
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        begin = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.server.requests.append((self.command, path, begin))
        if self.server.refusal:
            return self.answer(self.server.refusal, b"{}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            name, kind, revision = match.groups()
            return self.describe(name, kind, revision)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None or self.is_absent(match[1], match[2]):
            return None if match else self.answer(404, b"")
        content = self.server.repositories[match[1]].get(match[3])
        if content is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.send_file(match[1], content, begin)

    def is_absent(self, name, revision):
        """Answer if the repository cannot be read."""
        if name not in self.server.repositories:
            code = "RepoNotFound"  # the Hub answers 401 without a token, so that names of private ones stay secret
            self.answer(401 if "Authorization" not in self.headers else 404, b"", {"X-Error-Code": code})
        elif name in self.server.gated and self.headers.get("Authorization") != "Bearer secret":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", "v1", self.commit(name)):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def commit(self, name):
        files = self.server.repositories[name]
        return hashlib.sha1(b"".join(file.encode() + files[file] for file in sorted(files))).hexdigest()

    def describe(self, name, kind, revision):
        if self.is_absent(name, revision):
            return
        files = self.server.repositories[name]
        tree = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        info = {"id": name, "sha": self.commit(name), "private": False, "tags": [], "siblings": []}
        self.answer(200, json.dumps(tree if kind == "tree" else info).encode())

    def send_file(self, name, content, begin):
        headers = {"X-Repo-Commit": self.commit(name), "Accept-Ranges": "bytes"}
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        if self.server.tags:
            headers["ETag"] = tag
        resumed = begin > 0 and self.headers.get("If-Range", tag) == tag
        if resumed:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and self.server.cuts > 0 and len(content) > self.server.cut_after
        self.server.cuts -= cut
        self.answer(206 if resumed else 200, content[begin if resumed else 0 :], headers, cut=cut)

    def answer(self, status, content, headers=None, cut=False):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.server.cut_after] if cut else content)
        self.close_connection |= cut

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, 0))
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, b'{"error": "Invalid credentials"}')
        if self.path == "/api/repos/create":
            fields = json.loads(body)
            name = f"{fields.get('organization') or 'me'}/{fields['name']}"
            self.server.repositories.setdefault(name, {})
            return self.answer(200, json.dumps({"url": f"{self.server.url}/{name}", "name": name}).encode())
        if self.path == "/api/validate-yaml":
            return self.answer(200, b'{"errors": [], "warnings": []}')
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        if match := re.match(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    data = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[match[1]][entry["value"]["path"]] = data
            oid = self.commit(match[1])
            reply = {"commitUrl": f"{self.server.url}/{match[1]}/commit/{oid}", "commitOid": oid}
            return self.answer(200, json.dumps(reply).encode())
        return self.answer(404, b"{}")
