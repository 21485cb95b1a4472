"""A testnet's processes: what can be told without starting any."""

import socket
from pathlib import Path

import pytest

from p2pnode.testnet import free_addresses

HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not HANDED_OUT.exists(), reason="only Linux says which ports it hands out")
def test_a_node_s_port_is_none_that_others_get_by_chance() -> None:
    """Between its choice and its use, and while the node is down, any connection on the machine could have taken it."""
    first, last = map(int, HANDED_OUT.read_text().split())
    if first <= 10_000:
        pytest.skip("this machine hands out all ports")
    addresses = free_addresses(100)
    ports = {int(address.rpartition("/")[2]) for address in addresses}
    assert len(ports) == 100
    assert not any(first <= port <= last for port in ports)
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
