"""What may stand between a client and a gateway: a line that breaks, a front with TLS, one that knows no HEAD."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import trustme

CHUNK = 64 << 10
REFUSAL = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Line:
    """Passes bytes on in both directions."""

    def __init__(
        self, gateway: str, *, cuts: int = 0, after: int = 0, ca: trustme.CA | None = None, heads: bool = True
    ) -> None:
        """`cuts`: so many connections break when `after` bytes have come back on them; `heads`: whether HEAD passes."""
        parts = urlsplit(gateway)
        self._there = (str(parts.hostname), int(parts.port or 80))
        self._after, self._heads = after, heads
        self._context: ssl.SSLContext | None = None
        if ca:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            ca.issue_cert("127.0.0.1").configure_cert(self._context)
        self.cuts = cuts
        """Connections that are still to break."""
        self.url = ""

    def down(self) -> None:
        """From now on every connection breaks at its next byte, those that are open too."""
        self.cuts, self._after = 1 << 30, 0

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Until it is told to stop."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._context)
        scheme = "https" if self._context else "http"
        self.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._there)
        tasks = [
            asyncio.create_task(self._up(reader, there_writer, writer)),
            asyncio.create_task(self._down(there_reader, writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for each in (writer, there_writer):
                each.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _up(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if data.startswith(b"HEAD ") and not self._heads:
                    back.write(REFUSAL)
                    return
                there.write(data)
                await there.drain()

    async def _down(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with suppress(OSError):
            while data := await there.read(CHUNK):
                if self.cuts and passed + len(data) > self._after:
                    self.cuts -= 1
                    writer.write(data[: max(0, self._after - passed)])
                    return
                writer.write(data)
                await writer.drain()
                passed += len(data)


@contextmanager
def line(
    gateway: str, *, cuts: int = 0, after: int = 0, ca: trustme.CA | None = None, heads: bool = True
) -> Iterator[Line]:
    """A line to a gateway, in a thread of its own."""
    found = Line(gateway, cuts=cuts, after=after, ca=ca, heads=heads)
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(found.serve(ready, stop))

    thread = threading.Thread(target=run, name="line")
    thread.start()
    try:
        assert ready.wait(10)
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
