"""One client's session with a network: who asks its members, and what every command needs of them.

Storing is in publish, reading in streaming; what a program is meant to use is in client.
"""

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from dht.discovery import Discovery, open_discovery
from economics import cbor
from economics.blob import BlobId, parse_blob_id
from economics.commitments import Certificate
from economics.committee import Committee
from economics.crypto import NodeId
from economics.errors import Reason, Rejected
from economics.genesis import Genesis, build_key_text
from economics.nodes import Marks, Seats
from economics.slots import invalid_slot, seats_slot, state_key
from p2pnode.clients.attesting import Claim, gather
from p2pnode.clients.chainclient import ChainClient
from p2pnode.clients.chainview import Seating
from p2pnode.clients.download import Reader
from p2pnode.clients.overview import Overview, find_overview
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import load_kernel
from p2pnode.dialling import bootstrap_of, clock_ms, dialler
from p2pnode.errors import InconsistentBlob, InputError, NodeError, Unavailable, say_form
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.members import REQUEST_FAULTS, Fault, Members, shorten
from p2pnode.network.host import Network, open_network
from p2pnode.protocols import chain_protocol, storage_protocol

STATUS_BYTES_MAX = 65_536
CERTIFICATE_BYTES_MAX = 65_536


class Session:
    """A session of one client with one network."""

    def __init__(self, *, genesis: Genesis, key: Key, members: Members, chain: ChainClient, codec: Codec) -> None:
        self.chain = chain
        self.genesis = genesis
        self.key = key
        """Of this session alone: it names the uploader."""
        self.members = members
        self.codec = codec
        self.has_workers = True
        """Whether encoding may start processes: each runs the program's main module again, which must expect that."""
        self.reader = Reader(members=members, seats=self.seats, codec=codec, rng=random.Random(os.urandom(16)))

    async def seats(self, *, fresh: bool = False) -> Seating:
        """Return who holds what, proven, and ask these members from here on."""
        seating = await self.chain.seats(fresh=fresh)
        if self.members.committee != seating.current:
            await self.members.seat(seating.current)
        return seating

    def forgive(self) -> None:
        """Ask first again whoever failed a while ago, but no liar: for sessions that stay open."""
        for members in (self.members, self.chain.members):
            members.forgive_all()

    async def judge(self, blob_id: BlobId, fault: NodeError) -> NodeError:
        """Return what the user is to know of a read that failed: whether it is its writer's fault, for ever.

        A writer that is found out here is accused before the network.
        """
        if isinstance(fault, InconsistentBlob):
            return await self.accuse(fault)
        is_suspect = self.reader.said_invalid or isinstance(fault, Unavailable)  # in time nobody has it any more
        if is_suspect and await self._is_shown_invalid(blob_id):
            return InconsistentBlob(
                "the chain has it proven that the blob was encoded inconsistently by its writer: no node keeps it"
            )
        return fault

    async def accuse(self, fault: InconsistentBlob) -> InconsistentBlob:
        """Give members the proof that a read's writer encoded inconsistently, and return what the user is to know.

        Whoever has checked the proof keeps it, and has the network drop the blob.
        """
        suspect = self.reader.suspect
        proof = None if suspect is None else await self.reader.prove_inconsistent(*suspect)
        if suspect is None or proof is None:
            return InconsistentBlob(f"{fault}; there is no proof of it yet, so others may still read other bytes")
        committee, blob_id = (await self.seats()).current, suspect[0].blob_id
        claim = Claim.before(committee, self.genesis, blob_id, proof.encode())
        attested = await gather(
            claim, committee, self.members.request, own={}, shards=committee.n, failed=self.members.blame
        )
        shards = committee.weight(attested)
        if shards <= committee.n - committee.quorum:
            return InconsistentBlob(f"{fault}; members with {shards} shards took the proof of it: read it again later")
        return InconsistentBlob(f"{fault}; members with {shards} shards checked the proof of it: the network drops it")

    async def is_invalid(self, blob_id: BlobId) -> bool:
        """Return whether it is on chain, proven, that a blob is encoded wrongly."""
        return (await self.chain.prove([state_key(invalid_slot(blob_id))])).values[0] is not None

    async def _is_shown_invalid(self, blob_id: BlobId) -> bool:
        """Return the same for a read that has failed anyway: where nobody shows the chain, that is no news."""
        try:
            return await self.is_invalid(blob_id)
        except NodeError:
            return False

    async def certificate(self, blob_id: BlobId) -> Certificate | None:
        """Return a certificate of a blob that holds, from the first member that has one.

        One that is older than the committees which the chain still knows cannot be checked, and counts as none.
        """
        request: dict[str, cbor.Value] = {"blob": bytes(blob_id), "op": "certificate"}
        committees: dict[int, Committee | None] = {}
        members = (await self.seats()).current.members
        for member in sorted(members, key=lambda member: self.members.fault(member.node) is not None):
            try:
                _, data = await self.members.request(member.node, request, size_max=CERTIFICATE_BYTES_MAX)
                certificate = Certificate.decode(data, chain_id=self.genesis.chain_id)
            except REQUEST_FAULTS as fault:
                self.members.blame(member.node, fault)  # the next blob's certificate is asked of the others first
                continue
            try:
                epoch = certificate.epoch
                if epoch not in committees:
                    committees[epoch] = await self._committee_of(epoch)
                committee = committees[epoch]
                if committee is None:
                    continue
                certificate.verify(committee=committee)
            except REQUEST_FAULTS:
                continue
            if certificate.statement.blob_id == blob_id:
                return certificate
        return None

    async def _committee_of(self, epoch: int) -> Committee | None:
        """Return an epoch's committee, proven; None if the chain knows it no more."""
        value = (await self.chain.prove([state_key(seats_slot(epoch))])).values[0]
        return None if value is None else Seats.decode(value).committee

    async def status(self) -> list[dict[str, Any]]:
        """Ask every member how it is; a member that does not answer says why."""
        try:
            committee = (await self.seats()).current
        except NodeError:  # then each of those that were members last says why it does not answer
            committee = self.members.committee
        answers: dict[NodeId, dict[str, Any]] = {}

        async def ask(node: NodeId) -> None:
            try:
                reply, _ = await self.members.request(node, {"op": "status"}, size_max=STATUS_BYTES_MAX)
                answers[node] = {"reachable": True, **parse_status(reply.header.get("status"))}
            except REQUEST_FAULTS as fault:
                answers[node] = {"reachable": False, "why": str(fault)}

        async with trio.open_nursery() as nursery:
            for member in committee.members:
                nursery.start_soon(ask, member.node)
        proven = await self._overview(committee)
        return [
            {
                **answers[member.node],
                "member": index,
                "node": build_key_text(member.node),
                "shards": member.shards,
                **describe_member(proven, member.node),
            }
            for index, member in enumerate(committee.members)
        ]

    async def _overview(self, committee: Committee) -> Overview | None:
        """Return what the chain says of these members; None where no member can prove it now."""
        try:
            found = await find_overview(self.chain)
        except NodeError:
            return None
        return found if found.committee == committee else None


def describe_member(proven: Overview | None, node: NodeId) -> dict[str, Any]:
    """Return what the chain proves of a member, None where it is not to be had."""
    if proven is None or node not in proven.nodes:
        return {"challenged": None, "next_shards": None, "passed": None, "stake_frost": None}
    index = proven.committee.index_of(node)
    marks = Marks() if index is None else proven.marks(index)
    later = proven.following
    return {
        "challenged": marks.challenged,
        "next_shards": None if later is None else len(later.shards_of_node(node)),
        "passed": marks.passed,
        "stake_frost": proven.nodes[node].stake_frost,
    }


def parse_status(status: Any) -> dict[str, Any]:
    """Return what a member says of itself, fit to be shown; raises `Rejected` where the essential is not there."""
    match status:
        case {"blobs": int(), "used_bytes": int(), "caught": list(caught)}:
            shown = {shorten(name): clean(value) for name, value in status.items() if name != "reachable"}
            return {**shown, "caught": [clean(fault) for fault in caught]}
        case _:
            raise Rejected(Reason.MALFORMED, "its status is not one")


def clean(value: object) -> object:
    match value:
        case str():
            return shorten(value)
        case dict():
            return {shorten(name): clean(inner) for name, inner in value.items()}
        case int() | None:
            return value
        case _:
            return "?"


def once_a_member(on_fault: Callable[[Fault], None]) -> Callable[[Fault], None]:
    """Return how to tell of a member's first fault alone: one that is down fails in each protocol."""
    told: set[str] = set()

    def tell(fault: Fault) -> None:
        if fault.node not in told:
            told.add(fault.node)
            on_fault(fault)

    return tell


@asynccontextmanager
async def open_session(home: Home, *, on_fault: Callable[[Fault], None] = lambda fault: None) -> AsyncIterator[Session]:
    """Join the network of a home as a client while the block lasts. Raises `ConfigError`."""
    genesis = home.load_genesis()
    key = Key.generate()
    async with (
        open_network(seed=key.seed, listen=()) as network,
        open_discovery(
            host=network.host,
            connect=dialler(network),
            chain_id=genesis.chain_id,
            sign=key.sign,
            node_id=NodeId(key.public),
            addresses=network.addresses,
            server=False,
            bootstrap=bootstrap_of(home.load_config_or_default(), genesis.members),
            cache_path=home.make_cache(),
            clock_ms=clock_ms,
        ) as discovery,
    ):
        yield await build_session(home, key, network, discovery, on_fault=on_fault)


async def build_session(
    home: Home, key: Key, network: Network, discovery: Discovery, *, on_fault: Callable[[Fault], None]
) -> Session:
    """Return a session over a network and a DHT that are open already."""
    genesis = home.load_genesis()
    kernel = await trio.to_thread.run_sync(load_kernel)
    tell = once_a_member(on_fault)
    chain = ChainClient(
        members=Members(network, genesis, chain_protocol(genesis), discovery, on_fault=tell),
        cache=home.trusted_path,
        clock_ms=clock_ms,
    )
    members = Members(network, genesis, storage_protocol(genesis), discovery, on_fault=tell)
    return Session(genesis=genesis, key=key, members=members, chain=chain, codec=Codec(genesis.code, kernel))


def parse_id(text: str) -> BlobId:
    """Return the blob ID, or raise `InputError`."""
    try:
        return parse_blob_id(text)
    except Rejected as fault:
        raise InputError(f"{text!r} is not a blob ID: {say_form(text)}") from fault
