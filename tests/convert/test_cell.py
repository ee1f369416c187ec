"""What a program in its cell can do: run, read what it was given, and little else."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from glimpse import cell

LIMITS: dict[str, Any] = {"memory": 1 << 30, "cpu": 60, "file_size": 0}


def run(*words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """The program in its cell, to its end."""
    files = [*more.get("readable", ()), *more.get("writable", ())]
    return subprocess.run(
        cell.command(*words, **{**LIMITS, **more}),
        pass_fds=files,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shell(script: str, **more: Any) -> str:
    """What a shell says to this script, with its complaints."""
    done = run("/bin/bash", "-c", f"exec 2>&1; {script}", **more)
    return done.stdout + done.stderr


def test_it_runs_without_our_environment() -> None:
    """Nothing of the worker's own is handed on; there is a word for malloc, which the limit on memory asks for."""
    done = run("/usr/bin/env")
    assert (done.returncode, done.stdout, done.stderr) == (0, "MALLOC_ARENA_MAX=1\n", "")


def test_files_are_out_of_reach(tmp_path: Path) -> None:
    """Neither the worker's nor the system's, only programs and their libraries; and none can be written."""
    (tmp_path / "token").write_text("secret")
    for path in (tmp_path / "token", "/etc/passwd", "/proc/self/environ", f"/proc/{os.getpid()}/environ"):
        assert "ermission denied" in shell(f"cat {path}")
    assert "ermission denied" in shell(f"echo x > {tmp_path}/new")
    assert "ermission denied" in shell(f"ls {tmp_path}")
    assert not (tmp_path / "new").exists()


def test_files_that_it_is_given(tmp_path: Path) -> None:
    """They can be opened again by their descriptors, with or without a name, to read or to write as was said."""
    image = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    result = os.open(tmp_path / "result", os.O_CREAT | os.O_RDWR)
    os.write(image, b"an image")
    try:
        script = f"cat /proc/self/fd/{image} > /proc/self/fd/{result}; echo x > /proc/self/fd/{image}"
        said = shell(script, readable=[image], writable=[result], file_size=1000)
        assert said.count("ermission denied") == 1
        assert (tmp_path / "result").read_bytes() == b"an image"
        assert os.pread(image, 100, 0) == b"an image"
    finally:
        os.close(image)
        os.close(result)


def test_the_network_is_out_of_reach() -> None:
    """Also this machine's own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = shell(f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo connected")
    assert "connected" not in said
    assert "ermission denied" in said or "unreachable" in said


def test_limits(tmp_path: Path) -> None:
    """Address space in KiB, seconds of CPU time, and the size of a file, which ends who goes beyond."""
    assert shell("ulimit -v; ulimit -t; ulimit -c; ulimit -n; ulimit -s").split() == [
        str(1 << 20),
        "60",
        "0",
        "64",
        str(2 << 10),
    ]
    assert run("/bin/bash", "-c", "while :; do :; done", cpu=1).returncode == -signal.SIGXCPU
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    try:
        done = run("/bin/bash", "-c", f"printf %2000d 1 > /proc/self/fd/{file}", writable=[file], file_size=1000)
    finally:
        os.close(file)
    assert done.returncode != 0
    assert (tmp_path / "file").stat().st_size <= 1000


def test_it_dies_with_its_worker() -> None:
    """However the worker ends, nobody goes on with the image."""
    script = (
        "import subprocess, time; from glimpse import cell;"
        f"words = cell.command('/bin/bash', '-c', 'echo $$; exec sleep 1000', **{LIMITS});"
        "subprocess.Popen(words); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        program = os.pidfd_open(int(worker.stdout.readline()))
        try:
            worker.kill()
            assert select.select([program], [], [], 30)[0], "a pidfd is readable when its process has ended"
        finally:
            os.close(program)
