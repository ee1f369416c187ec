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
from tests.operator.support import Tenant, content
from tests.operator.test_upload import waiting
from tests.operator.tuses import metadata

from servers.shelf import Shelf, ask

EXAMPLES = 25
"""Requests of each operation in each mode."""
CHECKS = [
    checks.not_a_server_error,
    promises.status_code_conformance,
    promises.content_type_conformance,
    promises.response_headers_conformance,
    promises.response_schema_conformance,
]
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
SPOKEN = {"Tus-Resumable": "1.0.0", "Upload-Length": "100", "Upload-Offset": "0"}
"""What tus wants to hear."""
ENDLESS = "/v1/images/events"


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Images that are there."""
    return ["served", "waiting", "parts"]


def known(tenant: Tenant, names: list[str]) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """A token; and what stands for the parts and the query of paths to what is there, by a word of the path."""
    shelf = Shelf(tenant.cluster, tenant.folder)
    with contextlib.closing(shelf):
        token = shelf.grant(tenant.namespace, "person", verbs=("get", "update"))
    tenant.image(names[0], tenant.serve("disk", content(1)), stores=[tenant.store()])
    tenant.ready(names[0])
    for name in names[1:]:
        waiting(tenant, name)
    begun = ask(f"{tenant.link(names[2])}/uploads", token=token, method="POST", headers=SPOKEN)
    assert begun.status == 201, begun.body
    made = ask(f"{tenant.link(names[0])}/links", token=token, method="POST", body=b"")
    assert made.status == 201, made.body
    query = dict(parse_qsl(urlsplit(json.loads(made.body)["url"]).query))
    parts = [{"namespace": tenant.namespace, "name": name, "file": name} for name in names]
    revisions = [
        {"query": query, "path": {**parts[0], "file": "1"}},
        {"query": {"uid": query["uid"]}, "path": {**parts[0], "file": "1.sha256"}},
    ]
    upload = {**parts[2], "upload": begun.headers["Location"].rpartition("/")[2]}
    images = [{"query": {}, "path": each} for each in parts[:2]]
    return token, {"/revisions/": revisions, "{upload}": [{"query": {}, "path": upload}], "": images}


def test_each_answer_is_as_promised(tenant: Tenant, names: list[str]) -> None:
    """No server error, and no status, type, header or form that is not in the document, whatever is asked."""
    gateway = tenant.glimpse.installation.gateway_url
    token, there_is = known(tenant, names)
    schema = schemathesis.openapi.from_dict(json.loads(ask(gateway + "/openapi.json").body))
    seen: dict[str, set[int]] = {}

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path == ENDLESS:
            continue  # tests/gateway/test_events.py reads it
        there = next(each for word, each in there_is.items() if word in operation.path)
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
                if bare:  # most preconditions, digests, offsets and wishes fit nothing
                    case.body = {} if case.path.endswith("/links") else case.body
                    case.headers.clear()
                    case.headers.update(SPOKEN if "/uploads" in case.path else {})
                headers = {"Authorization": f"Bearer {login}"} if login else {}
                answer = case.call(base_url=gateway, headers=headers, timeout=300)
                seen.setdefault(case.operation.label, set()).add(answer.status_code)
                case.validate_response(answer, checks=CHECKS, headers=headers)

            asked()
    # it was no empty exercise
    assert set().union(*seen.values()) >= EXPECTED, seen


EXPECTED = {200, 201, 204, 400, 401, 403, 404, 409, 412}
"""Answers that must have been among all of them; which of the operations meets one is chance."""


def test_each_operation_succeeds(tenant: Tenant) -> None:
    """What is rightly asked succeeds as promised: every operation of the document, in the order of a life."""
    gateway = tenant.glimpse.installation.gateway_url
    token, there_is = known(tenant, ["disk", "empty", "pieces"])
    waiting(tenant, "more")
    waiting(tenant, "said")
    here, awaited = (each["path"] for each in there_is[""])
    first, upload = there_is["/revisions/"][0], there_is["{upload}"][0]["path"]
    more = {"namespace": tenant.namespace, "name": "more"}
    part = {"media_type": "application/offset+octet-stream"}
    image, uploads = "/v1/namespaces/{namespace}/images/{file}", "/v1/namespaces/{namespace}/images/{name}/uploads"
    links, numbered = uploads.replace("uploads", "links"), uploads.replace("uploads", "revisions/{file}")
    head = SPOKEN | {"X-HTTP-Method-Override": "HEAD"}
    plain: dict[str, Any] = {}
    rows: list[tuple[str, str, int, dict[str, Any]]] = [
        *(("GET", path, 200, plain) for path in ("/healthz", "/readyz", "/metrics", "/openapi.json")),
        ("GET", "/v1/images", 200, {"query": {"namespace": tenant.namespace, "limit": 1}}),
        ("GET", image, 200, {"path_parameters": here}),
        ("GET", image, 206, {"path_parameters": here, "headers": {"Range": "bytes=0-9"}}),
        ("GET", numbered, 200, {"path_parameters": first["path"], "query": first["query"]}),
        ("POST", links, 201, {"path_parameters": here, "body": {}, "media_type": "application/json"}),
        ("PUT", image, 201, {"path_parameters": awaited, "body": b"abc", "media_type": "application/octet-stream"}),
        ("OPTIONS", uploads, 204, {"path_parameters": more}),
        ("POST", uploads, 201, {"path_parameters": more, "headers": SPOKEN}),
        ("OPTIONS", "/v1/uploads", 204, plain),
        ("POST", "/v1/uploads", 201, {"headers": SPOKEN | {"Upload-Metadata": metadata(tenant.namespace, "said")}}),
        ("OPTIONS", uploads + "/{upload}", 204, {"path_parameters": upload}),
        ("PATCH", uploads + "/{upload}", 204, {"path_parameters": upload, "headers": SPOKEN, "body": b"abc", **part}),
        ("HEAD", uploads + "/{upload}", 200, {"path_parameters": upload, "headers": SPOKEN}),
        ("POST", uploads + "/{upload}", 200, {"path_parameters": upload, "headers": head}),
        ("DELETE", uploads + "/{upload}", 204, {"path_parameters": upload, "headers": SPOKEN}),
    ]
    schema = schemathesis.openapi.from_dict(json.loads(ask(gateway + "/openapi.json").body))
    told = {
        (o.method.upper(), o.path)
        for o in (found.ok() for found in schema.get_all_operations() if isinstance(found, Ok))
    }
    rows = [("HEAD", *row[1:]) for row in rows if (row[0], row[2]) == ("GET", 200)] + rows
    assert {row[:2] for row in rows} == told - {("GET", ENDLESS)}

    for method, path, status, right in rows:
        operation = schema[path][method]
        login = {"Authorization": f"Bearer {token}"}
        answer = (case := operation.Case(**right)).call(base_url=gateway, headers=login, timeout=300)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        case.validate_response(answer, checks=CHECKS, headers=login)
