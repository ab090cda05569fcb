"""Real servers on this machine: HTTP with ranges, and a counter of bytes for any other."""

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """The handler of the standard library, with ranges (RFC 9110) and a count of body bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        start, end = 0, size
        asked = self.headers.get("Range")
        ranges = asked is not None and self.server.ranges
        if ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(size, int(last) + 1) if last else size
        self.send_response(206 if ranges else 200)
        if ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            left = end - start
            while left and (piece := file.read(min(left, 1 << 16))):
                self.wfile.write(piece)
                left -= len(piece)
                with self.server.lock:
                    self.server.sent += len(piece)
                self.server.gate(self.server.sent)

    def log_message(self, *_: object) -> None:
        pass


class RangeServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), lambda *args: RangeHandler(*args, directory=str(folder)))
        self.ranges = ranges
        self.sent = 0
        self.lock = threading.Lock()
        self.gate = lambda _: None

    def handle_error(self, request: object, client_address: object) -> None:
        # A client may go away in the middle.
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def http_server(folder: Path, *, ranges: bool = True) -> Iterator[RangeServer]:
    server = RangeServer(folder, ranges=ranges)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Counted:
    """Passes connections on to another port and counts the bytes that come back."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.sent = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._target))
            for pair in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if counted:
                    with self._lock:
                        self.sent += len(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
