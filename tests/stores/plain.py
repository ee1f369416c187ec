"""A server that speaks no TLS, where clients expect it: as behind a wrong port."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Answer(socketserver.BaseRequestHandler):
    """What web servers say to what they do not understand."""

    def handle(self) -> None:
        self.request.recv(1)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@contextmanager
def plain() -> Iterator[str]:
    """Its host and port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
