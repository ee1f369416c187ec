"""The resources that are asked for, and where they are.

One list, so that who may ask for what can be compared with the roles of the chart.
"""

from typing import Any, Final, NamedTuple

from glimpse.api.base import GROUP, VERSION

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


class Kind(NamedTuple):
    """A resource of the API server."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """As in an object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
        """The URL's path. Names of objects are DNS names, which need no quoting; anything else raises ValueError."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        parts += ["namespaces", namespace] if self.namespaced and namespace else []
        parts += [part for part in (self.plural, name, sub) if part]
        for part in parts[1:]:
            if not part.replace("-", "").replace(".", "").replace(":", "").isalnum() or part.strip(".") == "":
                raise ValueError(f"{part!r} is not the name of an object")
        return "/".join(parts)


IMAGE: Final = Kind(GROUP, VERSION, "images", "Image", True)
STORE: Final = Kind(GROUP, VERSION, "imagestores", "ImageStore", False)
UPLOAD: Final = Kind(GROUP, VERSION, "imageuploads", "ImageUpload", True)
NAMESPACE: Final = Kind("", "v1", "namespaces", "Namespace", False)
SECRET: Final = Kind("", "v1", "secrets", "Secret", True)
CONFIGMAP: Final = Kind("", "v1", "configmaps", "ConfigMap", True)
EVENT: Final = Kind("", "v1", "events", "Event", True)
LEASE: Final = Kind("coordination.k8s.io", "v1", "leases", "Lease", True)
SERVICE_ACCOUNT: Final = Kind("", "v1", "serviceaccounts", "ServiceAccount", True)
TOKEN_REVIEW: Final = Kind("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False)
ACCESS_REVIEW: Final = Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False)
