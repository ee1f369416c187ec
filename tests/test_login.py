"""The way to the API server, and credentials that change under a running process."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.relay import relay

from glimpse import login
from glimpse.kube import NAMESPACE, Kube, Unavailable
from glimpse.login import Login, LoginError
from servers.kube import Cluster


def write(path: Path, cluster: Cluster, user: dict[str, Any], **more: Any) -> Path:
    """A kubeconfig with this user."""
    server = {"server": cluster.url, "certificate-authority": str(cluster.ca_file)} | more
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(document))
    return path


def plugin(folder: Path) -> dict[str, Any]:
    """An exec plugin that prints the token of a file."""
    script = folder / "plugin"
    script.write_text(
        '#!/bin/sh\nprintf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
        f'"status":{{"token":"%s"}}}}\' "$(cat {folder / "token"})"\n'
    )
    script.chmod(0o755)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(script),
            "interactiveMode": "Never",
        }
    }


async def reads(client: Kube) -> None:
    """One read works."""
    async with asyncio.timeout(120):
        assert (await client.get(NAMESPACE, "default"))["kind"] == "Namespace"


@pytest.mark.parametrize("way", ["tokenFile", "exec"])
async def test_a_token_that_changes_is_taken_up(cluster: Cluster, tmp_path: Path, way: str) -> None:
    """A refused token is read again, by file or plugin, and the caller sees only the answer."""
    token = tmp_path / "token"
    token.write_text("expired-long-ago")
    user = {"tokenFile": str(token)} if way == "tokenFile" else plugin(tmp_path)
    client = await Kube.connect(write(tmp_path / "kubeconfig", cluster, user))
    token.write_text(cluster.token)
    await reads(client)
    await client.close()


async def test_the_pod_s_token_is_read_again(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod, address and token are the kubelet's; a token that was rotated is taken up."""
    host, port = cluster.url.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(login, "_ACCOUNT", tmp_path)
    (tmp_path / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
    (tmp_path / "token").write_text("expired-long-ago")
    client = await Kube.connect(None)
    (tmp_path / "token").write_text(cluster.token + "\n")
    await reads(client)
    await client.close()

    (tmp_path / "own").write_text(cluster.token)
    (tmp_path / "token").unlink()
    client = await Kube.connect(None, token_file=tmp_path / "own")
    await reads(client)
    await client.close()


async def test_a_token_in_the_middle_of_its_rotation(cluster: Cluster, tmp_path: Path) -> None:
    """A file that is missing for a moment takes nothing away."""
    token = tmp_path / "token"
    token.write_text(cluster.token)
    client = await Kube.connect(write(tmp_path / "kubeconfig", cluster, {"tokenFile": str(token)}))
    token.unlink()
    client.login._looked -= 3600
    await reads(client)
    await client.close()


async def test_credentials_go_to_the_api_server_only(cluster: Cluster, tmp_path: Path) -> None:
    """A session of ours sends its token nowhere else."""
    async with relay(cluster, tmp_path) as between:
        found = await Login.load(cluster.kubeconfig)
        found._context.load_verify_locations(cafile=str(between.ca_file))
        async with found.session() as session, session.get(between.url + "/version") as answer:
            assert answer.status == 200
        assert between.tokens == [""]


@pytest.mark.parametrize(
    ("user", "more", "word"),
    [
        ({"token": "t"}, {"insecure-skip-tls-verify": True}, "insecure-skip-tls-verify is refused"),
        ({"token": "t"}, {"server": "http://127.0.0.1:1"}, "https only"),
        ({"token": "t"}, {"certificate-authority": "/nowhere/ca.crt"}, "/nowhere/ca.crt"),
        ({"tokenFile": "/nowhere/token"}, {}, "/nowhere/token"),
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/nowhere/plugin"}}, {}, "plugin"),
    ],
)
async def test_what_cannot_be_used_is_said(
    cluster: Cluster, tmp_path: Path, user: dict[str, Any], more: dict[str, Any], word: str
) -> None:
    """A kubeconfig that cannot be used names what is wrong; TLS is never skipped."""
    with pytest.raises(LoginError, match=word):
        await Login.load(write(tmp_path / "kubeconfig", cluster, user, **more))


async def test_a_missing_kubeconfig_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no pod: the message names the file, or the variable. KUBECONFIG is never looked at."""
    with pytest.raises(LoginError, match="absent"):
        await Login.load(tmp_path / "absent")
    (tmp_path / "broken").write_text("[not a kubeconfig")
    with pytest.raises(LoginError, match="broken"):
        await Login.load(tmp_path / "broken")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "KUBERNETES_SERVICE_HOST" not in os.environ
    with pytest.raises(LoginError, match="GLIMPSE_KUBECONFIG"):
        await Login.load()


async def test_a_wrong_token_stays_wrong(cluster: Cluster, tmp_path: Path) -> None:
    """A token that is refused for good ends as Unavailable with 401, and is not shown."""
    client = await Kube.connect(write(tmp_path / "kubeconfig", cluster, {"token": "wrong-secret"}))
    with pytest.raises(Unavailable, match="401") as caught:
        await client.ping()
    assert "wrong-secret" not in str(caught.value)
    await client.close()
