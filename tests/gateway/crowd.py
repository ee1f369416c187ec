"""Many connections to one server, as a process of its own: `crowd.py HOST PORT COUNT [LINE]`.

Prints how many it has opened. With LINE each then sends that and, again and again, one byte more, as slowloris does.
Ends when its input does, and prints how many the server had closed by then.
"""

import contextlib
import select
import socket
import sys


def main(host: str, port: int, count: int, line: str = "") -> None:
    """All of it."""
    connections: list[socket.socket] = []
    for _ in range(count):
        with contextlib.suppress(ConnectionError):
            connection = socket.create_connection((host, port), timeout=60)
            if line:
                connection.sendall(line.encode())
            connections.append(connection)
    say(len(connections))
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        for connection in connections if line else ():
            with contextlib.suppress(OSError):
                connection.sendall(b"x")
    say(sum(map(closed, connections)))


def say(number: int) -> None:
    """To whoever has started this."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def closed(connection: socket.socket) -> bool:
    """Whether the other side has ended it."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
