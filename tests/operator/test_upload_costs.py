"""What an upload costs: memory, objects and writes of the API server; and what its worker can get hold of."""

import base64
import hashlib
import http.client
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from tests.operator.support import Tenant, content, digest
from tests.operator.test_beginnings import made, version
from tests.operator.test_upload import begun, detail, no_more, repr_digest, send, waiting
from tests.operator.test_upload import sender as sender  # noqa: PLC0414 - a fixture
from tests.operator.tuses import Tus, another_gateway, workers

from servers import wait_until
from servers.kube import NAMESPACE
from servers.shelf import ask

A, B = content(1), content(2, 2_500_000)
ZEROS = bytes(4 << 20)
FLAT = 256 << 20
"""Bytes of memory that a process may take for an upload of whatever size."""


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def watched(size: int, look: Callable[[], None]) -> Iterator[bytes]:
    """So many zeros; `look` is called now and then."""
    for sent in range(0, size, len(ZEROS)):
        if sent % (64 << 20) == 0:
            look()
        yield ZEROS
    look()


@pytest.mark.parametrize("by_tus", [False, True], ids=["PUT of 2 GiB", "tus of 512 MiB"])
def test_memory_does_not_grow_with_size(tenant: Tenant, sender: str, tmp_path: Path, by_tus: bool) -> None:
    """Neither that of the gateway nor that of the worker: bytes pass, and none of them stay."""
    waiting(tenant, "a")
    peaks = dict[str, int]()
    size = 512 << 20 if by_tus else 2 << 30
    with another_gateway(tenant, tmp_path / "other", LIMITS__IMAGE_SIZE=str(size)) as other:
        gateway = other.glimpse.processes["gateway"].pid

        def look() -> None:
            peaks["gateway"] = peak(gateway)
            for worker in workers(other):
                peaks["worker"] = max(peaks.get("worker", 0), peak(worker))

        parts = urlsplit(other.link("a"))
        with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=300)) as connection:
            headers = {"Authorization": f"Bearer {sender}", "Content-Length": str(size)}
            if by_tus:
                tus = Tus(other, "a", sender).begun(size)
                tus.sent(0, b"", 1)
                part, headers["Tus-Resumable"] = 128 << 20, "1.0.0"
                headers |= {"Content-Type": "application/offset+octet-stream", "Content-Length": str(part)}
                for start in range(0, size, part):
                    said = headers | {"Upload-Offset": str(start)}
                    connection.request("PATCH", tus.path, watched(part, look), said)
                    answer = connection.getresponse()
                    assert (answer.status, answer.read()) == (204, b"")
            else:
                connection.request("PUT", parts.path, watched(size, look), headers)
                answer = connection.getresponse()
                assert answer.status == 201, answer.read()
    artifact = tenant.ready("a")["artifact"]
    expected = hashlib.sha256()
    for _ in range(size // len(ZEROS)):
        expected.update(ZEROS)
    assert (artifact["size"], artifact["digest"]) == (size, f"sha256:{expected.hexdigest()}")
    assert sorted(peaks) == ["gateway", "worker"]
    assert max(peaks.values()) < FLAT, peaks


def writes(tenant: Tenant) -> dict[tuple[str, str], int]:
    """How often the API server has written images and uploads, by verb and resource."""
    text = ask(f"{tenant.cluster.url}/metrics", token=tenant.cluster.token, ca=tenant.cluster.ca_file).body.decode()
    found = dict[tuple[str, str], int]()
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{") and 'group="glimpse.dev"' in line:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in ("POST", "PUT", "PATCH", "DELETE") and labels["code"].startswith("2"):
                key = labels["verb"], labels["resource"]
                found[key] = found.get(key, 0) + int(float(line.rpartition(" ")[2]))
    return found


def test_a_short_upload_costs_one_object(tenant: Tenant, sender: str) -> None:
    """One ImageUpload with one word of its end, and three of the Image: begun, being made, there."""
    waiting(tenant, "a")
    assert send(tenant, "a", B, sender).status == 201
    no_more(tenant)
    since, before = version(tenant), writes(tenant)
    assert send(tenant, "a", A, sender).status == 201
    no_more(tenant)
    tenant.ready("a", 2)
    assert made(tenant, since) == 1
    cost = {key: number - before.get(key, 0) for key, number in writes(tenant).items()}
    assert cost["POST", "imageuploads"] == 1
    assert cost["PATCH", "imageuploads"] <= 2
    assert cost["DELETE", "imageuploads"] <= 1
    assert cost["PATCH", "images"] <= 4, cost


def content_digest(data: bytes, name: str = "sha-512", algorithm: str = "sha512") -> str:
    """As in the header."""
    return f"{name}=:{base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}:"


def test_what_the_sender_says_of_his_bytes(tenant: Tenant, sender: str) -> None:
    """In `Content-Digest` as in `Repr-Digest`: compared by the worker; what cannot be read is refused, and why."""
    waiting(tenant, "a")
    for headers, status, words in (
        ({"Content_Digest": content_digest(B)}, 422, "ChecksumMismatch"),
        ({"Content_Digest": content_digest(B, "sha", "sha1")}, 422, "ChecksumMismatch"),
        ({"Content_Digest": content_digest(B, "md5", "md5")}, 422, "ChecksumMismatch"),
        ({"Content_Digest": content_digest(A), "Repr_Digest": repr_digest(B)}, 422, "ChecksumMismatch"),
        ({"Content_Digest": repr_digest(A), "Repr_Digest": repr_digest(B)}, 400, "two sha-256 digests"),
        ({"Content_Digest": "sha-512=:no base64:"}, 400, "BASE64"),
    ):
        answer = send(tenant, "a", A, sender, **headers)
        assert (answer.status, words in detail(answer)) == (status, True), (headers, answer.body)
    assert "artifact" not in tenant.read("a")["status"]
    said = f"{content_digest(A)}, {content_digest(A, 'sha', 'sha1')}, {content_digest(A, 'md5', 'md5')}"
    assert send(tenant, "a", A, sender, Content_Digest=f"{said}, crc32c=:AAAAAA==:").status == 201
    assert tenant.ready("a")["artifact"]["digest"] == digest(A)


def holds_in_memory(pid: int, words: dict[str, bytes]) -> set[str]:
    """Which of these words are in the memory of a process."""
    found = set[str]()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights = line.split()[:2]
            start, end = (int(each, 16) for each in where.split("-"))
            if not rights.startswith("r") or "[v" in line:
                continue
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, OverflowError):
                continue
            found |= {name for name, word in words.items() if word in data}
    return found


def of(pid: int, name: str) -> bytes:
    """What the kernel says of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def files(pid: int) -> set[str]:
    """What a process has open."""
    found = set[str]()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(each.readlink()))
    return found


def test_a_worker_holds_no_secret_of_others(tenant: Tenant, sender: str, tmp_path: Path) -> None:
    """It has the Secret of its own store, and neither another one nor the token of the gateway, nor a way there."""
    words, names = dict[str, bytes](), dict[str, str]()
    for which in ("own", "other"):
        words[which] = os.urandom(16).hex().encode()
        meta = {"name": f"{which}-{tenant.namespace}", "namespace": NAMESPACE, "labels": {"glimpse.dev/use": "store"}}
        data = {"key": base64.b64encode(words[which]).decode()}
        tenant.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
        names[which] = tenant.store(secretRef={"name": meta["name"]})
    waiting(tenant, "a", names["own"])
    waiting(tenant, "b", names["other"])
    with another_gateway(tenant, tmp_path / "other") as other:
        gateway = other.glimpse.processes["gateway"].pid
        (kubeconfig,) = re.findall(rb"GLIMPSE_KUBECONFIG=([^\0]+)", of(gateway, "environ"))
        login = yaml.safe_load(Path(kubeconfig.decode()).read_text())
        words["token"] = login["users"][0]["user"]["token"].encode()
        assert send(other, "b", A, sender).status == 201  # the gateway has read that Secret too
        with begun(other, "a", sender, len(B)) as connection:
            connection.send(B[:1000])
            wait_until("a worker", lambda: len(workers(other)) == 1, timeout=60)
            (worker,) = workers(other)
            wait_until("its task", lambda: "own" in holds_in_memory(worker, words), timeout=60)
            wait_until("its cage", lambda: b"NoNewPrivs:\t1" in of(worker, "status"), timeout=60)
            assert "token" in holds_in_memory(gateway, words)
            assert holds_in_memory(worker, words) == {"own"}
            assert b"GLIMPSE_" not in of(worker, "environ")
            foreign = (kubeconfig.decode(), names["other"], str(other.glimpse.folder))
            assert [file for file in files(worker) if any(word in file for word in foreign)] == []
            assert {file for file in files(worker) & files(gateway) if file.startswith("socket:")} == set()
            connection.send(B[1000:])
            assert connection.getresponse().status == 201
