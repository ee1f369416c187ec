"""Admission policies that are installed with the definitions.

They say no at the moment of the request, where a condition would come too late: before bytes that somebody protects
are gone, and before bytes that somebody must not publish are seen.
"""

from typing import Any, Final

from glimpse.api.base import GROUP, VERSION
from glimpse.api.store import READ_ONLY

_LABELS: Final = {
    "app.kubernetes.io/name": "glimpse",
    "app.kubernetes.io/instance": "glimpse",
    "app.kubernetes.io/component": "policy",
    "app.kubernetes.io/part-of": "glimpse",
    "app.kubernetes.io/managed-by": "glimpse",
}
_BYTES: Final = ("source", "checksum", "format", "revisions.?pin")
"""Members of the spec that decide which bytes there are, and which of them are served."""


def policies() -> list[dict[str, Any]]:
    """The policies, each with its binding."""
    return [*_protected(), *_published(), *_read_only()]


def _protected() -> list[dict[str, Any]]:
    """An Image with `spec.protected` is not deleted, whoever asks, the namespace controller included."""
    return _policy(
        f"protected-images.{GROUP}",
        operations=["DELETE"],
        conditions=[],
        validation={
            "expression": "!has(oldObject.spec.protected) || !oldObject.spec.protected",
            "messageExpression": (
                "'image ' + oldObject.metadata.name + ' is protected: unset spec.protected, then delete it'"
            ),
            "message": "this image is protected: unset spec.protected, then delete it",
            "reason": "Invalid",
        },
    )


def _published() -> list[dict[str, Any]]:
    """To show everybody an Image, or other bytes in it, takes `create images/public` in its namespace."""
    allowed = (
        f"authorizer.group('{GROUP}').resource('images').subresource('public')"
        ".namespace(request.namespace).check('create').allowed()"
    )
    others = " || ".join(f"oldObject.spec.?{field} != object.spec.?{field}" for field in _BYTES)
    return _policy(
        f"published-images.{GROUP}",
        operations=["CREATE", "UPDATE"],
        conditions=[
            {
                "name": "shows-everybody-something-new",
                "expression": (
                    "has(object.spec.visibility) && object.spec.visibility in ['community', 'public'] &&"
                    " (oldObject == null || !has(oldObject.spec.visibility) ||"
                    f" oldObject.spec.visibility != object.spec.visibility || {others})"
                ),
            }
        ],
        validation={
            "expression": allowed,
            "messageExpression": (
                "'visibility ' + object.spec.visibility + ' needs the permission to create images/public in namespace '"
                " + request.namespace + ', and so do other bytes: '"
                " + 'ask an administrator to bind the ClusterRole glimpse-publisher to you there'"
            ),
            "message": "visibility community and public need the permission to create images/public",
            "reason": "Forbidden",
        },
    )


def _read_only() -> list[dict[str, Any]]:
    """An Image does not name a store that takes no bytes, unless it registers what is there.

    The API server judges it once for each ImageStore: parameters are chosen by name or by labels, and the names here
    are in the Image. It is asked again only where the Image names other stores, so that one which is there is never
    held up; and a store that comes later is found out by the operator.
    """
    name = "params.metadata.name"
    return _policy(
        f"read-only-stores.{GROUP}",
        operations=["CREATE", "UPDATE"],
        conditions=[
            {
                "name": "names-other-stores",
                "expression": (
                    "has(object.spec.stores) && (oldObject == null ||"
                    " oldObject.spec.?stores != object.spec.?stores ||"
                    " oldObject.spec.source.?location != object.spec.source.?location)"
                ),
            }
        ],
        validation={
            "expression": (
                f"!has(params.spec.{READ_ONLY}) || !({name} in object.spec.stores)"
                f" || object.spec.source.?location.?store.orValue('') == {name}"
            ),
            "messageExpression": (
                f"'store ' + {name} + ' is a web server, which takes no bytes: name another one, '"
                " + 'or register what it has with source.location'"
            ),
            "message": "a store of this Image is a web server, which takes no bytes: name another one",
            "reason": "Invalid",
        },
        params="ImageStore",
    )


def _policy(
    name: str,
    *,
    operations: list[str],
    conditions: list[dict[str, str]],
    validation: dict[str, str],
    params: str | None = None,
) -> list[dict[str, Any]]:
    """A policy on Images. `params`: our kind of which every object is looked at beside the Image."""
    rule = {"apiGroups": [GROUP], "apiVersions": [VERSION], "operations": operations, "resources": ["images"]}
    head = {"name": name, "labels": dict(_LABELS)}
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": head,
            "spec": {
                "failurePolicy": "Fail",
                **({"paramKind": {"apiVersion": f"{GROUP}/{VERSION}", "kind": params}} if params else {}),
                "matchConstraints": {"resourceRules": [rule]},
                **({"matchConditions": conditions} if conditions else {}),
                "validations": [validation],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": head,
            "spec": {
                "policyName": name,
                **({"paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"}} if params else {}),
                "validationActions": ["Deny"],
            },
        },
    ]
