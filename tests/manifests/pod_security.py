"""The Pod Security Standard "restricted", control by control, as predicates on a pod's spec.

https://kubernetes.io/docs/concepts/security/pod-security-standards: all of "baseline", and what "restricted" adds.
"""

from collections.abc import Callable, Iterator
from typing import Any

Spec = dict[str, Any]

VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"},
)
SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    }
)
SELINUX_TYPES = frozenset({"container_t", "container_init_t", "container_kvm_t", "container_engine_t"})


def violations(spec: Spec) -> set[str]:
    """The names of the controls that ``spec`` violates."""
    return {control.__name__ for control in CONTROLS if not control(spec)}


def _containers(spec: Spec) -> Iterator[Spec]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind, [])


def _contexts(spec: Spec) -> Iterator[Spec]:
    yield spec.get("securityContext", {})
    yield from (container.get("securityContext", {}) for container in _containers(spec))


def _said_for_all(spec: Spec, read: Callable[[Spec], bool | None]) -> bool:
    """Each container says it, or the pod does and no container says otherwise."""
    pod = read(spec.get("securityContext", {}))
    each = [read(container.get("securityContext", {})) for container in _containers(spec)]
    return all(said if said is not None else pod for said in each)


def no_host_process(spec: Spec) -> bool:
    return not any(context.get("windowsOptions", {}).get("hostProcess") for context in _contexts(spec))


def no_host_namespaces(spec: Spec) -> bool:
    return not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))


def no_privileged_containers(spec: Spec) -> bool:
    return not any(context.get("privileged") for context in _contexts(spec))


def capabilities_dropped(spec: Spec) -> bool:
    each = [container.get("securityContext", {}).get("capabilities", {}) for container in _containers(spec)]
    return all("ALL" in one.get("drop", []) and set(one.get("add", [])) <= {"NET_BIND_SERVICE"} for one in each)


def volumes_of_the_allowed_types(spec: Spec) -> bool:
    return all(set(volume) - {"name"} <= VOLUMES for volume in spec.get("volumes", []))


def no_host_ports(spec: Spec) -> bool:
    return not any(port.get("hostPort") for container in _containers(spec) for port in container.get("ports", []))


def app_armor_not_disabled(spec: Spec) -> bool:
    return not any(context.get("appArmorProfile", {}).get("type") == "Unconfined" for context in _contexts(spec))


def selinux_not_widened(spec: Spec) -> bool:
    options = [context.get("seLinuxOptions", {}) for context in _contexts(spec)]
    return all(one.get("type", "container_t") in SELINUX_TYPES and not one.get("user") and not one.get("role") for one in options)


def proc_masked(spec: Spec) -> bool:
    return all(context.get("procMount", "Default") == "Default" for context in _contexts(spec))


def sysctls_safe(spec: Spec) -> bool:
    return {one["name"] for one in spec.get("securityContext", {}).get("sysctls", [])} <= SYSCTLS


def no_privilege_escalation(spec: Spec) -> bool:
    return all(container.get("securityContext", {}).get("allowPrivilegeEscalation") is False for container in _containers(spec))


def runs_as_non_root(spec: Spec) -> bool:
    return _said_for_all(spec, lambda context: context.get("runAsNonRoot"))


def no_root_user(spec: Spec) -> bool:
    return all(context.get("runAsUser") != 0 for context in _contexts(spec))


def seccomp_confined(spec: Spec) -> bool:
    def confined(context: Spec) -> bool | None:
        return context["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost") if "seccompProfile" in context else None

    return _said_for_all(spec, confined)


CONTROLS = (
    no_host_process,
    no_host_namespaces,
    no_privileged_containers,
    capabilities_dropped,
    volumes_of_the_allowed_types,
    no_host_ports,
    app_armor_not_disabled,
    selinux_not_widened,
    proc_masked,
    sysctls_safe,
    no_privilege_escalation,
    runs_as_non_root,
    no_root_user,
    seccomp_confined,
)
