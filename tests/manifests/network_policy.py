"""What a set of NetworkPolicies lets through: their documented meaning, for the parts of it that the manifests use.

https://kubernetes.io/docs/concepts/services-networking/network-policies: a pod that no policy selects for a direction may
do everything in it; one that some select, what at least one of them allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Peer:
    """The other end: an address outside the cluster's pods, or a pod (then ``labels`` are its, ``namespace`` its namespace's name)."""

    address: str | None = None
    labels: Labels = field(default_factory=dict)
    namespace: str = "rglcd"


def allowed(
    policies: list[dict[str, Any]], *, direction: str, pod: Labels, peer: Peer, port: int, protocol: str = "TCP", named: Mapping[str, int]
) -> bool:
    """Whether ``pod`` may talk with ``peer`` (``direction``: ``egress`` or ``ingress``); ``named``: the receiver's ports."""
    selecting = [
        policy["spec"]
        for policy in policies
        if direction.capitalize() in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], pod)
    ]
    rules = [rule for spec in selecting for rule in spec.get(direction, [])]
    side = "to" if direction == "egress" else "from"
    return not selecting or any(
        any(_is_peer(one, peer) for one in rule.get(side, [])) and _is_port(rule.get("ports"), port, protocol, named) for rule in rules
    )


def _selects(selector: dict[str, Any], labels: Labels) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "Exists" for one in expressions), "only Exists is understood here"
    return selector.get("matchLabels", {}).items() <= labels.items() and all(one["key"] in labels for one in expressions)


def _is_peer(given: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in given:
        # A policy's address blocks are for what lies outside the cluster; no pod is meant by them.
        return peer.address is not None and _in_block(given["ipBlock"], peer.address)
    if peer.address is not None:
        return False
    names = {"kubernetes.io/metadata.name": peer.namespace}
    in_namespace = _selects(given["namespaceSelector"], names) if "namespaceSelector" in given else peer.namespace == "rglcd"
    return in_namespace and _selects(given.get("podSelector", {}), peer.labels)


def _in_block(block: dict[str, Any], address: str) -> bool:
    where = ip_address(address)

    def holds(cidr: str) -> bool:
        return ip_network(cidr).version == where.version and where in ip_network(cidr)

    return holds(block["cidr"]) and not any(holds(one) for one in block.get("except", []))


def _is_port(ports: list[dict[str, Any]] | None, port: int, protocol: str, named: Mapping[str, int]) -> bool:
    return ports is None or any(
        one.get("protocol", "TCP") == protocol and (named.get(one["port"]) if isinstance(one["port"], str) else one["port"]) == port
        for one in ports
    )
