"""Signed links from the whole installation: the operator makes the keys, the gateway signs with them."""

import json

from tests.operator.support import Tenant, content

from glimpse import linkkeys
from servers import wait_until
from servers.kube import NAMESPACE
from servers.shelf import Answer, ask

BYTES = content(7)


def test_keys_need_nobody(tenant: Tenant) -> None:
    """An image's link works without a token; the key is there by itself, and again after somebody has revoked all."""
    tenant.image("a", tenant.serve("a", BYTES), stores=[tenant.store()])
    tenant.ready("a")
    tenant.download(tenant.link("a"), body=BYTES)

    def wish() -> Answer:
        return ask(tenant.link("a") + "/links", token=tenant.token, method="POST")

    wait_until("a key", lambda: wish().status == 201, timeout=90)
    url = json.loads(wish().body)["url"]
    assert ask(url).body == BYTES
    tenant.cluster.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/{linkkeys.SECRET_NAME}")
    wait_until("the link to be revoked", lambda: ask(url).status == 403, timeout=30)
    wait_until("a new key", lambda: wish().status == 201, timeout=90)
    assert ask(json.loads(wish().body)["url"]).body == BYTES
    assert ask(url).status == 403
