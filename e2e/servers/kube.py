"""A real Kubernetes API server with its etcd, on loopback, in four seconds.

There is no controller-manager and no node: namespaces are never removed and ownerReferences are not acted upon;
all else (admission, RBAC, tokens, CEL, watches) is what a cluster does.
"""

import json
import os
import secrets
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import yaml

from servers import ROOT, Server, ServerError, run, tool, wait_until
from servers.programs import find, have

NAMESPACE: Final = "glimpse-system"
"""The operator's own namespace."""


Object = dict[str, Any]


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, status: int, body: str) -> None:
        """`status`: of HTTP; `body`: usually a `metav1.Status`."""
        try:
            answer = json.loads(body)
            self.reason, message = str(answer.get("reason", "")), str(answer.get("message", body))
        except (ValueError, AttributeError):
            self.reason, message = "", body
        super().__init__(f"{status} {self.reason}: {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes API server and an administrator's way into it."""

    url: str
    ca_file: Path
    token: str = field(repr=False)
    """An administrator's bearer token."""
    kubeconfig: Path
    """An administrator's."""
    folder: Path
    """Where kubeconfigs that are made here go."""

    @classmethod
    def named_by(cls, kubeconfig: Path, folder: Path) -> Self:
        """The cluster of the kubeconfig's current context. Raises ServerError if it cannot be used."""
        view = json.loads(
            run(_kubectl(), f"--kubeconfig={kubeconfig}", "config", "view", "--raw", "--minify", "--flatten", "-o=json")
        )
        server = view["clusters"][0]["cluster"]
        user = view["users"][0]["user"]
        folder.mkdir(parents=True, exist_ok=True)
        ca_file = folder / "ca.crt"
        if "certificate-authority-data" not in server:
            raise ServerError(f"{kubeconfig} names no certificate authority, so {server['server']} cannot be trusted")
        ca_file.write_bytes(_decode(server["certificate-authority-data"]))
        cluster = cls(server["server"].rstrip("/"), ca_file, user.get("token", ""), kubeconfig, folder)
        if cluster.token:
            return cluster
        # A certificate or a plugin speaks for this person; tests want a token with the same rights.
        cluster.kubectl("apply", "--server-side", "-f-", stdin=_ADMIN)
        return cls(cluster.url, ca_file, cluster.token_for(NAMESPACE, "glimpse-tests"), kubeconfig, folder)

    def kubectl(
        self, *args: str | Path, stdin: str | None = None, kubeconfig: Path | None = None, timeout: float = 60
    ) -> str:
        """What kubectl printed, as the administrator or by another kubeconfig. Raises ServerError with its words."""
        return run(_kubectl(), f"--kubeconfig={kubeconfig or self.kubeconfig}", *args, stdin=stdin, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        content_type: str = "application/json",
        timeout: float = 30,
    ) -> Any:
        """One call of the API; the JSON that came back. Faster than kubectl. Raises ApiError."""
        request = urllib.request.Request(  # noqa: S310 - our own https URL
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token or self.token}",
                "Content-Type": content_type,
                "Accept": "application/json",
            },
        )
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(error.code, error.read().decode(errors="replace")) from None
        return json.loads(text) if text.startswith("{") else text

    def apply(self, *objects: Object, manager: str = "person") -> list[Object]:
        """Server-side apply as a person would; the objects as stored. Raises ApiError with the server's message."""
        return [
            self.request(
                "PATCH",
                f"{self.path(o)}?fieldManager={manager}&fieldValidation=Strict",
                o,
                content_type="application/apply-patch+yaml",
            )
            for o in objects
        ]

    def read(self, o: Object) -> Object:
        """The object as it is now; `o` names it (apiVersion, kind, metadata). Raises ApiError."""
        found: Object = self.request("GET", self.path(o))
        return found

    def path(self, o: Object) -> str:
        """The URL path of one object. Plurals are regular for every kind that is used here."""
        version, kind, meta = o["apiVersion"], o["kind"].lower(), o["metadata"]
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("s") else f"{kind}s"
        space = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
        return f"/{'api' if version == 'v1' else 'apis'}/{version}{space}/{plural}/{meta['name']}"

    def namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> str:
        """Create a namespace with a name that was never used before; its name."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        self.request(
            "POST",
            "/api/v1/namespaces",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}},
        )
        return name

    def token_for(
        self, namespace: str, serviceaccount: str, *, audience: str | None = None, ttl: int = 24 * 3600
    ) -> str:
        """A token of this ServiceAccount (TokenRequest), for the API server or another audience.

        The account is created if it is missing; it may do nothing then. `ttl`: in seconds, at least 600.
        """
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            self.request("POST", accounts, {"metadata": {"name": serviceaccount}})
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        spec: Object = {"expirationSeconds": ttl}
        if audience is not None:
            spec["audiences"] = [audience]
        answer = self.request("POST", f"{accounts}/{serviceaccount}/token", {"spec": spec})
        return str(answer["status"]["token"])

    def kubeconfig_for(self, namespace: str, serviceaccount: str, *, ttl: int = 24 * 3600) -> Path:
        """A kubeconfig that speaks as this ServiceAccount for `ttl` seconds; its default namespace is this one."""
        path = self.folder / f"{namespace}.{serviceaccount}.kubeconfig"
        token = self.token_for(namespace, serviceaccount, ttl=ttl)
        write_kubeconfig(path, self.url, self.ca_file, token, namespace=namespace)
        return path

    def install(self) -> None:
        """Apply the project's CRDs, admission policies and RBAC, and wait until the kinds are served."""
        self.kubectl("apply", "--server-side", "-f-", stdin=_NAMESPACE)
        for folder in (ROOT / "crds", ROOT / "charts" / "glimpse" / "rbac"):
            if any(folder.glob("*.yaml")):
                self.kubectl("apply", "--server-side", "--force-conflicts", "-f", folder)
        names = [
            o["metadata"]["name"]
            for file in (ROOT / "crds").glob("*.yaml")
            for o in yaml.safe_load_all(file.read_text())
            if o and o["kind"] == "CustomResourceDefinition"
        ]
        if names:
            self.kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", *names)

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        # No proxy of the environment may see these calls.
        context = ssl.create_default_context(cafile=str(self.ca_file))
        return urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )


class Kube(Server[Cluster]):
    """etcd and kube-apiserver of our own. Started again in its folder, it has its data, ports and tokens again."""

    name: ClassVar[str] = "kube"
    cluster: Cluster

    def start(self) -> Cluster:
        """Start both, wait for /readyz. Raises Missing, ServerError."""
        self._etcd, self._apiserver = have("etcd"), have("kube-apiserver")
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2, 3):
            try:
                return self._start()
            except ServerError as error:
                self.stop()
                # Somebody took a port between our look and the bind.
                if attempt == 3 or "address already in use" not in str(error):
                    raise
                self.ports(3, fresh=True)
            except BaseException:
                self.stop()
                raise
        raise AssertionError

    def _start(self) -> Cluster:
        client, peer, api = self.ports(3)
        certs = self.folder / "certs"
        token = self._secrets()
        self._start_etcd(client, peer)
        self.spawn(
            "kube-apiserver",
            [
                self._apiserver,
                f"--etcd-servers=http://127.0.0.1:{client}",
                f"--secure-port={api}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
                f"--cert-dir={certs}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={self.folder / 'sa.pub'}",
                f"--service-account-signing-key-file={self.folder / 'sa.key'}",
                "--authorization-mode=Node,RBAC",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--allow-privileged=true",
            ],
        )
        # The self-signed certificate that the server makes is also the authority that clients trust.
        certificate = certs / "apiserver.crt"
        kubeconfig = self.folder / "admin.kubeconfig"
        self.cluster = Cluster(f"https://127.0.0.1:{api}", certificate, token, kubeconfig, self.folder)
        wait_until("kube-apiserver", self.ready, timeout=90, alive=list(self.processes.values()))
        write_kubeconfig(kubeconfig, self.cluster.url, certificate, token)
        return self.cluster

    def _start_etcd(self, client: int, peer: int) -> None:
        self.spawn(
            "etcd",
            [
                self._etcd,
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{client}",
                f"--advertise-client-urls=http://127.0.0.1:{client}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )

    def ready(self) -> bool:
        """Whether the API server says so itself."""
        try:
            return bool(self.cluster.request("GET", "/readyz", timeout=5) == "ok")
        except (ApiError, OSError):  # an unfinished certificate is an OSError too
            return False

    def describe(self) -> dict[str, str]:
        """Address and kubeconfig."""
        return {"url": self.cluster.url, "KUBECONFIG": str(self.cluster.kubeconfig)}

    def state(self) -> dict[str, Any]:
        """The address; all else is in the folder."""
        return {"url": self.cluster.url}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the address."""
        self.cluster = Cluster(
            state["url"],
            self.folder / "certs" / "apiserver.crt",
            self._secrets(),
            self.folder / "admin.kubeconfig",
            self.folder,
        )

    def _secrets(self) -> str:
        """The administrator's token; makes it and the key that signs ServiceAccounts' tokens, once."""
        tokens, key = self.folder / "tokens.csv", self.folder / "sa.key"
        if not tokens.exists():
            tool("openssl", "openssl")
            run("openssl", "genrsa", "-out", key, "2048")
            run("openssl", "rsa", "-in", key, "-pubout", "-out", self.folder / "sa.pub")
            tokens.touch(mode=0o600)
            tokens.write_text(f'{secrets.token_hex(24)},admin,admin,"system:masters"\n')
        return tokens.read_text().partition(",")[0]


def write_kubeconfig(path: Path, url: str, ca_file: Path, token: str, *, namespace: str = "default") -> None:
    """Write a kubeconfig that only its owner can read."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "glimpse", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
        "users": [{"name": "glimpse", "user": {"token": token}}],
        "contexts": [{"name": "glimpse", "context": {"cluster": "glimpse", "user": "glimpse", "namespace": namespace}}],
        "current-context": "glimpse",
    }
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(yaml.safe_dump(document))
    fresh.replace(path)


def _kubectl() -> Path:
    """Ours, or with a cluster of the person's own also the machine's."""
    if path := find("kubectl"):
        return path
    if os.environ.get("GLIMPSE_KUBECONFIG"):
        return Path(tool("kubectl", "kubernetes-client"))
    return have("kubectl")


def _decode(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


_NAMESPACE: Final = f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"
_ADMIN: Final = f"""
{_NAMESPACE}
---
{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: glimpse-tests, namespace: {NAMESPACE}}}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: glimpse-tests}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}
subjects: [{{kind: ServiceAccount, name: glimpse-tests, namespace: {NAMESPACE}}}]
"""
