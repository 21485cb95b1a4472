"""Who holds what now: how a client proves it, and how its home remembers it. Asks nobody itself."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from economics import cbor
from economics.committee import Committee
from economics.crypto import Digest, NodeId
from economics.errors import Reason, Rejected
from economics.light import Trusted
from economics.nodes import Handover, NodeEntry, Seats, Terms
from economics.slots import HANDOVER_SLOT, SYSTEM_SLOT, node_slot, seats_slot, state_key, terms_slot
from economics.state import System
from economics.tree import StateKey
from p2pnode.clients.chainview import KEYS_AT_ONCE, Seating

VERSION = 2
BUDGET = cbor.Budget(size_max=1 << 21, depth_max=4, elements_max=1 << 14)
"""Five committees of 256 members with 8 addresses each."""

Prove = Callable[[Sequence[StateKey]], Awaitable[tuple[bytes | None, ...]]]
"""Returns the values of these keys, each proven under a recent header; None where the state has none."""


async def prove_seating(prove: Prove, trusted: Trusted) -> Seating | None:
    """Return who holds what, or None if the state that was proven is of another epoch than the trusted one.

    One request for up to 61 members, one more while what was certified before has not been handed over.
    """
    current = trusted.committee
    keys = [SYSTEM_SLOT, HANDOVER_SLOT, terms_slot(current.epoch)]
    wanted = [member.node for member in current.members]
    first = wanted[: KEYS_AT_ONCE - len(keys)]
    values = await prove([*map(state_key, keys), *(state_key(node_slot(node)) for node in first)])
    system, handed, terms, *entries = values
    if system is None or System.decode(system).epoch != current.epoch or handed is None or terms is None:
        return None
    handover = Handover.decode(handed)
    addresses = _addresses(entries) | await _find_addresses(prove, wanted[len(first) :])
    found = Seating(with_addresses(current, addresses), None, handover.since_epoch, Terms.decode(terms))
    if handover.is_done:
        return found
    seats = await prove([state_key(seats_slot(stage.source_epoch)) for stage in handover.stages])
    sources = [Seats.decode(value).committee for value in seats if value is not None]
    if len(sources) < len(seats):
        return None
    left = {member.node for source in sources for member in source.members} - addresses.keys()
    addresses |= await _find_addresses(prove, sorted(left))
    sources = [with_addresses(source, addresses) for source in sources]
    older = tuple((stage.since_epoch, source) for stage, source in zip(handover.older, sources, strict=False))
    return replace(found, source=sources[-1], older=older)


def _addresses(entries: Sequence[bytes | None]) -> dict[NodeId, tuple[str, ...]]:
    nodes = [NodeEntry.decode(entry) for entry in entries if entry is not None]
    return {node.node: node.addresses for node in nodes}


async def _find_addresses(prove: Prove, nodes: Sequence[NodeId]) -> dict[NodeId, tuple[str, ...]]:
    found: dict[NodeId, tuple[str, ...]] = {}
    for at in range(0, len(nodes), KEYS_AT_ONCE):
        found |= _addresses(await prove([state_key(node_slot(node)) for node in nodes[at : at + KEYS_AT_ONCE]]))
    return found


def addresses_of(*committees: Committee | None) -> dict[NodeId, tuple[str, ...]]:
    """Return what these committees know of where their members are."""
    members = (member for committee in committees if committee is not None for member in committee.members)
    return {member.node: member.addresses for member in members if member.addresses}


def with_addresses(committee: Committee, addresses: Mapping[NodeId, tuple[str, ...]]) -> Committee:
    """Return the committee with what is known of where its members are."""
    members = (replace(member, addresses=addresses.get(member.node, member.addresses)) for member in committee.members)
    return replace(committee, members=tuple(members))


def encode_seating(seating: Seating, *, root: Digest) -> bytes:
    """Return what a home remembers of the epoch that began with this root."""
    known: list[cbor.Value] = [
        [bytes(node), list(addresses)] for node, addresses in sorted(addresses_of(*seating.committees).items())
    ]
    return cbor.encode(
        {
            "addresses": known,
            "older": [[since, source.encode()] for since, source in seating.older],
            "root": bytes(root),
            "since_epoch": seating.since_epoch,
            "source": b"" if seating.source is None else seating.source.encode(),
            "terms": seating.terms.encode(),
            "version": VERSION,
        }
    )


def decode_seating(data: bytes, trusted: Trusted) -> Seating | None:
    """Return what was remembered if it is of the trusted epoch; raises `Rejected` for what nobody has encoded."""
    match cbor.decode(data, budget=BUDGET):
        case {
            "addresses": list(known),
            "older": list(older),
            "root": bytes(root),
            "since_epoch": int(since),
            "source": bytes(source),
            "terms": bytes(terms),
            "version": int(version),
        } if version == VERSION:
            if root != trusted.root.hash:
                return None
            addresses = dict(map(_parse_known, known))
            return Seating(
                with_addresses(trusted.committee, addresses),
                with_addresses(Committee.decode(source), addresses) if source else None,
                since,
                Terms.decode(terms),
                tuple(_parse_older(row, addresses) for row in older),
            )
        case _:
            raise Rejected(Reason.MALFORMED, "not what a home remembers of a committee")


def _parse_older(row: Any, addresses: Mapping[NodeId, tuple[str, ...]]) -> tuple[int, Committee]:
    match row:
        case [int(since), bytes(source)]:
            return since, with_addresses(Committee.decode(source), addresses)
        case _:
            raise Rejected(Reason.MALFORMED, "a stage is an epoch and a committee")


def _parse_known(row: Any) -> tuple[NodeId, tuple[str, ...]]:
    match row:
        case [bytes(node), list(addresses)] if all(isinstance(address, str) for address in addresses):
            return NodeId(node), tuple(addresses)
        case _:
            raise Rejected(Reason.MALFORMED, "a node's addresses are its ID and texts")
