import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.sharding.addresses import AddressPolicy, ForbiddenAddressError

PUBLIC = AddressPolicy()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "fec0::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
        "2002:a00:1::1",
        "2001:0:7f00:1::1",
    ],
)
def test_private_and_reserved_addresses_are_not_public(address: str) -> None:
    assert not PUBLIC.admits(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.1.69", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert PUBLIC.admits(address)


@given(st.ip_addresses(network="127.0.0.0/8") | st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fc00::/7"))
def test_no_private_address_is_ever_admitted(address: object) -> None:
    assert not PUBLIC.admits(str(address))


def test_an_allowed_network_admits_its_addresses_and_no_others() -> None:
    policy = AddressPolicy.parse(["127.0.0.2/32", "fd00::/16"])
    assert policy.admits("127.0.0.2")
    assert policy.admits("::ffff:127.0.0.2")
    assert policy.admits("fd00::9")
    assert not policy.admits("127.0.0.1")


def test_an_allowed_network_that_does_not_parse_is_refused() -> None:
    with pytest.raises(InputError, match=r"allowed_networks: .* such as 10\.1\.2\.0/24"):
        AddressPolicy.parse(["example.com"])


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"])
def test_every_spelling_of_an_address_is_judged_by_the_address(host: str) -> None:
    for address in socket.getaddrinfo(host, 80, family=socket.AF_INET, type=socket.SOCK_STREAM):
        with pytest.raises(ForbiddenAddressError):
            PUBLIC.open_socket(address)


def test_sockets_of_other_address_families_are_refused() -> None:
    with pytest.raises(ForbiddenAddressError):
        PUBLIC.open_socket((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("/tmp/socket", 0)))
