"""The predicates themselves: a good pod passes all of them, and each way to be bad is seen by one of them alone."""

import copy
from typing import Any

import pytest

from tests.manifests.pod_security import CONTROLS, violations

GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {"name": "a", "image": "i", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}},
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}

BAD: list[tuple[str, str, Any]] = [
    ("no_host_process", "securityContext.windowsOptions", {"hostProcess": True}),
    ("no_host_namespaces", "hostNetwork", True),
    ("no_host_namespaces", "hostPID", True),
    ("no_host_namespaces", "hostIPC", True),
    ("no_privileged_containers", "containers.0.securityContext.privileged", True),
    ("capabilities_dropped", "containers.0.securityContext.capabilities", {}),
    ("capabilities_dropped", "containers.0.securityContext.capabilities.drop", ["NET_RAW"]),
    ("capabilities_dropped", "containers.0.securityContext.capabilities.add", ["IPC_LOCK"]),
    ("volumes_of_the_allowed_types", "volumes.0", {"name": "host", "hostPath": {"path": "/"}}),
    ("no_host_ports", "containers.0.ports", [{"containerPort": 80, "hostPort": 80}]),
    ("app_armor_not_disabled", "containers.0.securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("selinux_not_widened", "securityContext.seLinuxOptions", {"type": "spc_t"}),
    ("selinux_not_widened", "securityContext.seLinuxOptions", {"role": "sysadm_r"}),
    ("proc_masked", "containers.0.securityContext.procMount", "Unmasked"),
    ("sysctls_safe", "securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("no_privilege_escalation", "containers.0.securityContext.allowPrivilegeEscalation", True),
    ("runs_as_non_root", "securityContext.runAsNonRoot", False),
    ("runs_as_non_root", "containers.0.securityContext.runAsNonRoot", False),
    ("no_root_user", "securityContext.runAsUser", 0),
    ("no_root_user", "containers.0.securityContext.runAsUser", 0),
    ("seccomp_confined", "securityContext.seccompProfile", {"type": "Unconfined"}),
    ("seccomp_confined", "containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
]


def changed(path: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    node: Any = spec
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    node[int(last) if isinstance(node, list) else last] = value
    return spec


def test_a_good_pod_violates_nothing() -> None:
    assert violations(GOOD) == set()


@pytest.mark.parametrize(("control", "path", "value"), BAD)
def test_each_fault_is_seen_by_its_control_alone(control: str, path: str, value: Any) -> None:
    assert violations(changed(path, value)) == {control}


@pytest.mark.parametrize("path", ["initContainers", "ephemeralContainers"])
def test_containers_of_every_kind_are_looked_at(path: str) -> None:
    spec = GOOD | {path: [{"name": "b", "image": "i"}]}
    assert violations(spec) == {"capabilities_dropped", "no_privilege_escalation"}


def test_every_control_has_a_fault_that_only_it_sees() -> None:
    assert {control for control, _, _ in BAD} == {control.__name__ for control in CONTROLS}
