"""The gateway against its OpenAPI document: whatever that allows is asked, and each answer is one that it promises.

Requests are made by schemathesis, the same in each run, good ones and bad ones; most name images that are there.
"""

import contextlib
import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks as promises
from tests.operator.support import Tenant, condition, content

from servers.shelf import Shelf, ask

EXAMPLES = 20
"""Requests of each operation in each mode."""
CHECKS = [
    checks.not_a_server_error,
    promises.status_code_conformance,
    promises.content_type_conformance,
    promises.response_headers_conformance,
    promises.response_schema_conformance,
]
ENDLESS = "/v1/images/events"


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Images that are there."""
    return ["served", "waiting"]


def known(tenant: Tenant, names: list[str]) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:
    """A token; and what stands for the parts and the query of paths to images that are there, and to a revision."""
    shelf = Shelf(tenant.cluster, tenant.folder)
    with contextlib.closing(shelf):
        token = shelf.grant(tenant.namespace, "person", verbs=("get", "update"))
    tenant.image(names[0], tenant.serve("disk", content(1)), stores=[tenant.store()])
    tenant.specs[names[1]] = {"source": {"upload": {}}, "stores": [tenant.store()]}
    tenant._apply(names[1])
    tenant.ready(names[0])
    tenant.wait(names[1], lambda o: condition(o, "Ready").get("reason") == "WaitingForUpload")
    made = ask(f"{tenant.link(names[0])}/links", token=token, method="POST", body=b"")
    assert made.status == 201, made.body
    query = dict(parse_qsl(urlsplit(json.loads(made.body)["url"]).query))
    parts = [{"namespace": tenant.namespace, "name": name, "file": name} for name in names]
    revisions = [
        {"query": query, "path": {**parts[0], "file": "1"}},
        {"query": {"uid": query["uid"]}, "path": {**parts[0], "file": "1.sha256"}},
    ]
    return token, [{"query": {}, "path": each} for each in parts], revisions


def test_each_answer_is_as_promised(tenant: Tenant, names: list[str]) -> None:
    """No server error, and no status, type, header or form that is not in the document, whatever is asked."""
    gateway = tenant.glimpse.installation.gateway_url
    token, images, revisions = known(tenant, names)
    schema = schemathesis.openapi.from_dict(json.loads(ask(gateway + "/openapi.json").body))
    seen: dict[str, set[int]] = {}

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path == ENDLESS:
            continue  # tests/gateway/test_events.py reads it
        there = revisions if "/revisions/" in operation.path else images
        takes = bool(list(operation.iter_parameters()) or operation.body)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[: 1 + takes]:

            @settings(
                max_examples=EXAMPLES,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(
                case=operation.as_strategy(generation_mode=mode),
                real=st.none() | st.sampled_from(there),
                login=st.sampled_from((token, token, token, "nonsense", None)),
                bare=st.booleans(),
            )
            def asked(case: schemathesis.Case[Any], real: dict[str, Any] | None, login: str | None, bare: bool) -> None:
                if real and case.path_parameters:
                    case.path_parameters = {name: real["path"][name] for name in case.path_parameters}
                    case.query = {**(case.query or {}), **real["query"]}
                if bare:  # most preconditions and digests fit nothing
                    case.headers.clear()
                headers = {"Authorization": f"Bearer {login}"} if login else {}
                answer = case.call(base_url=gateway, headers=headers, timeout=60)
                seen.setdefault(case.operation.label, set()).add(answer.status_code)
                case.validate_response(answer, checks=CHECKS, headers=headers)

            asked()
    # it was no empty exercise
    for label, statuses in EXPECTED.items():
        assert statuses <= seen[label], (label, seen[label])


EXPECTED = {
    "GET /v1/namespaces/{namespace}/images/{file}": {200, 401, 404},
    "GET /v1/namespaces/{namespace}/images/{name}/revisions/{file}": {200, 403, 404},
    "PUT /v1/namespaces/{namespace}/images/{file}": {201, 401, 404, 409},
    "POST /v1/namespaces/{namespace}/images/{name}/links": {201, 400, 401, 404},
    "GET /v1/images": {200, 400, 401},
}
"""Answers that must have been among them."""
