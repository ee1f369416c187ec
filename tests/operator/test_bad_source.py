"""Sources that fail or lie: each ends in the right condition, leaves nothing, and stops nothing else.

Named after the lines of bad input that the project promises to withstand.
"""

import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.operator.support import REQUESTED_AT, Tenant, content, digest, holds, said

from glimpse.testing.faults import Reply
from servers.require import require_tool

ONE = content(1)
LIMIT = 32 << 20
"""As the installation is set up."""


def given_up(tenant: Tenant, url: str, reason: str, **spec: object) -> str:
    """The Image ends as `Stalled` with this reason, in its conditions and in an Event; the message."""
    store = tenant.store()
    tenant.image("bad", url, stores=[store], **spec)
    message = tenant.stalled("bad", reason)
    assert message in tenant.event("bad", reason=reason)
    assert tenant.objects(store) == {}
    tenant.works(store)
    assert tenant.stalled("bad", reason) == message, "nothing is tried again"
    tenant.delete("bad")
    return message


def tried_again(tenant: Tenant, reply: Reply, reason: str = "SourceUnavailable") -> str:
    """The Image is tried again, has left nothing in between, and is mended by a good answer; the message."""
    store = tenant.store()
    key = tenant.image("bad", tenant.serve("bad", reply), stores=[store])["metadata"]["uid"] + "-1"
    message = tenant.retried("bad", reason)
    assert "/bad: " in message
    # Suspended, no attempt runs that would tidy up after the one before.
    tenant.edit("bad", suspend=True)
    tenant.wait("bad", lambda o: bool(said(o)) and not holds(o, "Reconciling"))
    assert tenant.objects(store) == {}
    tenant.works(store)
    tenant.serve("bad", ONE)
    tenant.edit("bad", suspend=None)
    tenant.ready("bad")
    assert tenant.objects(store) == {key: ONE}
    return message


def test_404(tenant: Tenant) -> None:
    """A file that is not there is given up; the message names the URL without its query."""
    message = given_up(tenant, tenant.web.url("/none.img?token=hidden"), "SourceNotFound")
    assert message == f"{tenant.web.url('/none.img')}: the server answered 404: there is no such file"
    store = tenant.store()
    tenant.image("good", tenant.serve("good.img", ONE) + "?token=hidden", stores=[store])
    assert tenant.ready("good")["artifact"]["sourceUrl"] == tenant.web.url("/good.img")
    assert "hidden" not in tenant.glimpse.processes["operator"].log.read_text()


def test_401(tenant: Tenant) -> None:
    """A server that wants credentials is given up, and the message says where to put them."""
    message = given_up(tenant, tenant.serve("private", Reply(b"who?", 401)), "SourceUnauthorized")
    assert "401" in message
    assert "secretRef" in message
    assert "who?" not in message, "what a server says is not repeated"


def test_closes_early(tenant: Tenant) -> None:
    """A body that ends before its announced length is never stored."""
    assert "ended early" in tried_again(tenant, Reply(ONE, cut=100_000))


def test_closes_early_without_content_length(tenant: Tenant) -> None:
    """The same in chunks, where only the last one's mark tells the end."""
    assert "ended early" in tried_again(tenant, Reply(ONE, chunked=10_000, cut=100_000))


def test_resets(tenant: Tenant) -> None:
    """A connection that breaks is tried again."""
    tried_again(tenant, Reply(ONE, cut=100_000, reset=True))


def test_sends_more_than_it_said(tenant: Tenant) -> None:
    """A body that is longer than announced is never stored."""
    assert f"announced {len(ONE) - 1000} bytes" in tried_again(tenant, Reply(ONE, length=len(ONE) - 1000))


def test_stalls(tenant: Tenant) -> None:
    """A server that falls silent in the middle is left after the idle timeout."""
    assert "2 s" in tried_again(tenant, Reply(ONE, stall=100_000))


def test_stalls_before_the_answer(tenant: Tenant) -> None:
    """The same if it never begins."""
    assert "2 s" in tried_again(tenant, Reply(ONE, stall_head=True))


def test_nobody_listens(tenant: Tenant) -> None:
    """A port without a server is tried again."""
    store = tenant.store()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    tenant.image("bad", f"http://{place}/none", stores=[store])
    assert place in tenant.retried("bad", "SourceUnavailable")


def test_time_mends(tenant: Tenant) -> None:
    """A server that fails for a moment is asked again at once, and then later."""
    store = tenant.store()
    tenant.image("busy", tenant.serve("busy", *[Reply(b"later", 503)] * 2, Reply(ONE)), stores=[store])
    tenant.ready("busy")
    assert len(tenant.web.asked("/busy")) == 3
    assert "503" in tenant.event("busy", reason="SourceUnavailable")


def test_a_server_that_says_when(tenant: Tenant) -> None:
    """What a busy server asks for is waited for, and status tells until when; force does not wait."""
    store = tenant.store()
    busy = Reply(b"later", 429, {"Retry-After": "3000"})
    tenant.image("busy", tenant.serve("busy", busy, Reply(ONE)), stores=[store])
    assert "429" in tenant.retried("busy", "SourceUnavailable")
    failure = tenant.read("busy")["status"]["pending"]["failure"]
    wait = datetime.fromisoformat(failure["nextAttemptAt"]) - datetime.now(UTC)
    assert timedelta(minutes=40) < wait <= timedelta(minutes=50)
    assert failure["attempt"] == 1
    tenant.annotate("busy", REQUESTED_AT, "now")
    tenant.ready("busy")


def test_many_long_urls_that_fail(tenant: Tenant) -> None:
    """Eight mirrors with the longest names give a message that the API server takes, with what each of them said."""
    urls = [tenant.web.url(f"/{number}{'x' * 1900}") for number in range(8)]
    store = tenant.store()
    tenant.image("bad", urls, stores=[store])
    message = tenant.stalled("bad", "SourceNotFound")
    assert len(message) <= 2048
    assert message.count("the server answered 404") == len(urls)
    assert tenant.event("bad", reason="SourceNotFound") == message[:1024]
    tenant.works(store)


def test_loops_redirects(tenant: Tenant) -> None:
    """A circle of redirects is seen as one, and given up."""
    tenant.serve("a", Reply.redirect("/b"))
    tenant.serve("b", Reply.redirect("/a"))
    assert "redirects in a circle" in given_up(tenant, tenant.web.url("/a"), "SourceRefused")


def test_redirects_without_end(tenant: Tenant) -> None:
    """More redirects than the installation follows are given up."""
    for number in range(6):
        tenant.serve(f"r{number}", Reply.redirect(f"/r{number + 1}"))
    assert "more than 3 times" in given_up(tenant, tenant.web.url("/r0"), "SourceRefused")


def test_redirects_to_a_forbidden_address(tenant: Tenant) -> None:
    """A redirect into a network that images may not come from is given up, whatever the address is written like."""
    store = tenant.store()
    targets = (
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[::1]:8080/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "//192.168.0.1/x",
    )
    for number, target in enumerate(targets):
        tenant.image(f"bad-{number}", tenant.serve(f"trap-{number}", Reply.redirect(target)), stores=[store])
    for number in range(len(targets)):
        message = tenant.stalled(f"bad-{number}", "SourceForbidden")
        assert "GLIMPSE_ADDRESSES__ALLOW" in message
    assert tenant.objects(store) == {}
    tenant.works(store)


def test_a_forbidden_address(tenant: Tenant) -> None:
    """The same without a redirect."""
    message = given_up(tenant, "http://10.0.0.1/a.img", "SourceForbidden")
    assert "10.0.0.1" in message


def test_redirects_to_a_file(tenant: Tenant) -> None:
    """A redirect to what is no web server is given up."""
    url = tenant.serve("trap", Reply.redirect("file:///etc/passwd"))
    assert "no plain http" in given_up(tenant, url, "SourceRefused")


@pytest.mark.parametrize("length", [-1, None], ids=["with Content-Length", "without"])
def test_wrong_digest(tenant: Tenant, length: int | None) -> None:
    """Bytes that are not those that the spec names are never stored; the message says which they are."""
    url = tenant.serve("other", Reply(ONE, length=length))
    wanted = digest(content(2))
    message = given_up(tenant, url, "ChecksumMismatch", checksum={"digest": wanted})
    assert digest(ONE).partition(":")[2] in message
    assert wanted.partition(":")[2] in message


@pytest.fixture
def qcow2(tmp_path: Path) -> Callable[..., bytes]:
    """The bytes of a qcow2 that qemu-img makes with these options."""
    program = require_tool("qemu-img", "qemu-utils")
    (tmp_path / "base.raw").write_bytes(bytes(1 << 20))

    def make(*options: str) -> bytes:
        command = [program, "create", "-q", "-f", "qcow2", *options, "disk.qcow2", "1M"]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        return (tmp_path / "disk.qcow2").read_bytes()

    return make


def test_a_good_qcow2(tenant: Tenant, qcow2: Callable[..., bytes]) -> None:
    """A qcow2 that stands alone is taken, and its virtual size told."""
    store = tenant.store()
    tenant.image("good", tenant.serve("good", qcow2()), stores=[store], format={"disk": "qcow2"})
    artifact = tenant.ready("good")["artifact"]
    assert (artifact["diskFormat"], artifact["virtualSize"]) == ("qcow2", 1 << 20)


def test_a_qcow2_with_a_backing_file(tenant: Tenant, qcow2: Callable[..., bytes]) -> None:
    """A qcow2 that would read another file on the host that runs it is never stored."""
    url = tenant.serve("bad", qcow2("-b", "base.raw", "-F", "raw"))
    assert "backing file" in given_up(tenant, url, "UnsafeImage")


def test_a_qcow2_with_a_data_file(tenant: Tenant, qcow2: Callable[..., bytes]) -> None:
    """The same with its data elsewhere."""
    url = tenant.serve("bad", qcow2("-o", "data_file=other.raw"))
    assert "its data in another file" in given_up(tenant, url, "UnsafeImage", format={"disk": "qcow2"})


def test_a_declared_qcow2_that_is_raw(tenant: Tenant) -> None:
    """Bytes that contradict `format.disk` are never stored."""
    message = given_up(tenant, tenant.serve("raw", ONE), "FormatMismatch", format={"disk": "qcow2"})
    assert "qcow2" in message
    assert "raw" in message


def test_over_the_size_limit_with_content_length(tenant: Tenant) -> None:
    """An image that is announced as too large is given up before its first byte is stored."""
    url = tenant.serve("big", Reply(b"x" * 1000, length=LIMIT + 1))
    assert "32 MiB" in given_up(tenant, url, "TooLarge")


def test_over_the_size_limit_without_content_length(tenant: Tenant) -> None:
    """One that is not announced is stopped at the limit."""
    url = tenant.serve("big", Reply(bytes(LIMIT + 1), chunked=1 << 20))
    assert "32 MiB" in given_up(tenant, url, "TooLarge")


@pytest.mark.parametrize("chunked", [0, 10_000], ids=["with Content-Length", "without"])
def test_over_the_limit_of_the_store(tenant: Tenant, chunked: int) -> None:
    """`maxImageSize` holds for its store alone, another one takes the bytes; to raise it is to try again."""
    small, large = tenant.store(maxImageSize="100Ki"), tenant.store()
    url = tenant.serve("big", Reply(ONE, chunked=chunked))
    tenant.image("one", url, stores=[small])
    message = tenant.stalled("one", "TooLarge")
    assert small in message
    assert "maxImageSize" in message
    tenant.image("two", url, stores=[small, large])
    assert small in tenant.stalled("two", "TooLarge")
    found = tenant.read("two")
    assert holds(found, "Ready"), "one store is enough to be served"
    assert not holds(found, "Stored")
    assert tenant.objects(small) == {}
    assert list(tenant.objects(large).values()) == [ONE]
    body = {"spec": {"maxImageSize": "1Mi"}}
    path = tenant.cluster.path(tenant.ref(small, "ImageStore"))
    tenant.cluster.request("PATCH", path, body, content_type="application/merge-patch+json")
    tenant.ready("one")
    tenant.ready("two")
    assert list(tenant.objects(small).values()) == [ONE, ONE]
