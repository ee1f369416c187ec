"""The gateway's token: minted for its own account, renewed in time, replaced at once."""

import asyncio
import stat
from pathlib import Path

import pytest

from glimpse.control import tokens
from glimpse.control.tokens import GatewayToken
from glimpse.kube import Kube
from glimpse.settings import Settings
from servers.kube import NAMESPACE, Cluster


async def test_the_operator_may_mint_the_gateway_s_token(cluster: Cluster, tmp_path: Path) -> None:
    """With the operator's own rights the file holds a token that speaks as the gateway; group-readable, no more."""
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    file = tmp_path / "token"
    minted = GatewayToken(kube, Settings(gateway_token_file=file))
    assert 2000 < await minted._renew(file) <= 2400
    first = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    gateway = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-gateway"))
    assert (await gateway.token_review(first)).user == f"system:serviceaccount:{NAMESPACE}:glimpse-gateway"
    await minted._renew(file)
    assert file.read_text() != first
    assert [path.name for path in tmp_path.iterdir()] == ["token"]  # noqa: ASYNC240 - a small folder
    await gateway.close()
    await kube.close()


async def test_a_failure_leaves_the_old_token(cluster: Cluster, tmp_path: Path, namespace: str) -> None:
    """Who may not mint, or cannot write, keeps what is there and tries again."""
    kube = await Kube.connect(cluster.kubeconfig_for(namespace, "nobody"))
    file = tmp_path / "token"
    file.write_text("old")
    assert await GatewayToken(kube, Settings(gateway_token_file=file))._renew(file) == tokens._RETRY
    assert file.read_text() == "old"
    with pytest.raises(FileNotFoundError):
        tokens.write(tmp_path / "absent" / "token", "new")
    await kube.close()


async def test_it_runs_until_it_is_closed(cluster: Cluster, tmp_path: Path) -> None:
    """Started, the file comes by itself; without a file nothing is started."""
    kube = await Kube.connect(cluster.kubeconfig_for(NAMESPACE, "glimpse-operator"))
    file = tmp_path / "token"
    minted = GatewayToken(kube, Settings(gateway_token_file=file))
    minted.start()
    async with asyncio.timeout(120):
        while not file.exists():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.02)
    await minted.close()
    none = GatewayToken(kube, Settings())
    none.start()
    await none.close()
    await kube.close()
