"""Which network addresses a row's url may lead to: public ones, and those its user allows by name.

A url is hostile text: it may spell a private address in decimal or octal, name a host that resolves to one, or resolve
to another address at the second question (DNS rebinding). So nothing is judged by its spelling. What is judged is the
address a socket is about to be connected to (:meth:`AddressPolicy.open_socket`), whatever url or redirect led there.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from rglcd.errors import InputError

Network = IPv4Network | IPv6Network


# What Python's tables leave open in some of its versions.
_PROTOCOL_ASSIGNMENTS: Final = IPv4Network("192.0.0.0/24")
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")


class ForbiddenAddressError(Exception):
    """A connection was about to be made to an address that is neither public nor allowed."""


@dataclass(frozen=True)
class AddressPolicy:
    """Public addresses, and ``allowed`` networks whatever they are (one's own mirrors; a test's loopback)."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, networks: Iterable[str]) -> "AddressPolicy":
        """From networks such as ``10.1.2.0/24``. Raises :class:`InputError` for what is none."""
        try:
            return cls(tuple(ip_network(network) for network in networks))
        except ValueError as error:
            raise InputError(f"allowed_networks: {error}; name networks such as 10.1.2.0/24") from None

    def admits(self, address: str) -> bool:
        """Whether a socket may be connected to ``address``, in the canonical form that resolving gives."""
        found = _unmapped(ip_address(address.partition("%")[0]))
        return is_public(found) or any(found in network for network in self.allowed)

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for one result of ``getaddrinfo``: the last act before connecting. Raises :class:`ForbiddenAddressError`."""
        family, kind, protocol, _, (host, *_rest) = address
        if family not in (socket.AF_INET, socket.AF_INET6) or not self.admits(host):
            raise ForbiddenAddressError(f"{host} is not a public address")
        return socket.socket(family=family, type=kind, proto=protocol)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether ``address``, and any IPv4 address embedded in it, is one of the open internet (IANA's registries)."""
    address = _unmapped(address)
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return address not in _PROTOCOL_ASSIGNMENTS
    return address in _GLOBAL_UNICAST and all(is_public(inner) for inner in _tunnelled(address))


def _unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """``::ffff:127.0.0.1`` reaches 127.0.0.1."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _tunnelled(address: IPv6Address) -> list[IPv4Address]:
    """IPv4 addresses that 6to4 (RFC 3056) and Teredo (RFC 4380) carry inside."""
    return [inner for inner in (address.sixtofour, *(address.teredo or ())) if inner is not None]
