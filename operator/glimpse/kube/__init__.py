"""All calls to the Kubernetes API. Objects are plain JSON (dict): models belong to the callers.

What callers need of kinds, errors and the client has one address.
"""

from glimpse.kube.answers import ApiError, Conflict, Forbidden, Gone, Invalid, Unavailable
from glimpse.kube.client import Kube, Observe, Review
from glimpse.kube.kinds import (
    ACCESS_REVIEW,
    CONFIGMAP,
    EVENT,
    IMAGE,
    LEASE,
    NAMESPACE,
    SECRET,
    SERVICE_ACCOUNT,
    STORE,
    TOKEN_REVIEW,
    UPLOAD,
    Kind,
    Object,
)

__all__ = [
    "ACCESS_REVIEW",
    "CONFIGMAP",
    "EVENT",
    "IMAGE",
    "LEASE",
    "NAMESPACE",
    "SECRET",
    "SERVICE_ACCOUNT",
    "STORE",
    "TOKEN_REVIEW",
    "UPLOAD",
    "ApiError",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "Kind",
    "Kube",
    "Object",
    "Observe",
    "Review",
    "Unavailable",
]
