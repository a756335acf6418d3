"""Where things are in the Kubernetes API: the paths of resources, and what RBAC calls the asking for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, or with `sub` a subresource of it, as a path and a rule of RBAC name it."""

    plural: str
    group: str = ""
    version: str = "v1"
    sub: str = ""

    def at(self, namespace: str | None, name: str | None = None) -> Place:
        """One object, or without `name` all of them in a namespace. namespace: None for what is cluster-scoped."""
        return Place(self, namespace, name)

    @property
    def rule(self) -> str:
        """As a rule of RBAC has it: `deployments/scale`."""
        return f"{self.plural}/{self.sub}" if self.sub else self.plural


@dataclass(frozen=True, slots=True)
class Place:
    """Something that is asked for."""

    resource: Resource
    namespace: str | None
    name: str | None = None

    @property
    def path(self) -> str:
        """Of the URL."""
        kind = self.resource
        parts = ["api", kind.version] if not kind.group else ["apis", kind.group, kind.version]
        if self.namespace is not None:
            parts += ["namespaces", self.namespace]
        parts.append(kind.plural)
        if self.name is not None:
            parts.append(self.name)
            if kind.sub:
                parts.append(kind.sub)
        return "/" + "/".join(parts)

    @property
    def words(self) -> str:
        """For people: `pods "vllm-0" in namespace "llm"`."""
        text = self.resource.rule
        if self.name is not None:
            text += f' "{self.name}"'
        if self.namespace is not None:
            text += f' in namespace "{self.namespace}"'
        return text


PODS = Resource("pods")
SERVICES = Resource("services")
VLLM_MODELS = Resource("vllmmodels", "vllm.sir-alfred.io", "v1alpha1")
VLLM_MODELS_STATUS = Resource("vllmmodels", "vllm.sir-alfred.io", "v1alpha1", "status")
LEASES = Resource("leases", "coordination.k8s.io")


def workload(kind: str, sub: str = "") -> Resource:
    """`deployment` or `statefulset`, or a subresource of it."""
    return Resource(f"{kind}s", "apps", "v1", sub)
