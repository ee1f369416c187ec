"""The keys of signed links, and links on demand, for the tests of a gateway."""

import base64
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from glimpse import linkkeys
from glimpse.gateway.links import LOST, Terms
from servers.kube import NAMESPACE, ApiError, Cluster
from servers.shelf import Answer, Shown, ask

SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": linkkeys.SECRET_NAME, "namespace": NAMESPACE},
}


def made(*names: str) -> dict[str, str]:
    """Keys of these names, as a Secret holds them."""
    return {name: base64.b64encode(os.urandom(32)).decode() for name in names}


def put(cluster: Cluster, keys: dict[str, str]) -> dict[str, Any]:
    """Have exactly these keys in the Secret; it as stored."""
    drop(cluster)
    stored: dict[str, Any] = cluster.apply(SECRET | {"data": keys})[0]
    return stored


def drop(cluster: Cluster) -> None:
    """Have no Secret."""
    try:
        cluster.request("DELETE", cluster.path(SECRET))
    except ApiError as error:
        if error.reason != "NotFound":
            raise


def known(url: str, keys: Mapping[str, str]) -> bool:
    """Whether a gateway takes what these keys have signed: a link to nothing is then lost, and else refused."""
    terms = Terms("GET", "nowhere", "nothing", "none", 1, int(time.time()) + 60)
    said = set()
    for key in linkkeys.read({"data": keys}).values():
        query = {"uid": terms.uid, "expires": terms.expires, "key": key.name, "signature": terms.signature(key)}
        answer = ask(f"{url}{terms.path}?{urlencode(query)}")
        said.add(answer.problem()["detail"])
    return said == {LOST}


def wish(url: str, image: Shown, token: str | None, body: object = None, *, headers: Any = None) -> Answer:
    """Ask for a link."""
    text = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return ask(f"{url}{image.path}/links", token=token, method="POST", body=text, headers=headers)


def link(url: str, image: Shown, token: str, **body: object) -> str:
    """A link, or the failure to get one."""
    got = wish(url, image, token, body)
    assert got.status == 201, got.body
    return str(json.loads(got.body)["url"])
