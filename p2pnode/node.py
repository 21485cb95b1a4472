"""One running node: composes network, discovery, gossip, store and the storage server, and owns their tasks."""

import json
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from dht.discovery import Discovery, DiscoveryError, open_discovery
from economics import cbor
from economics.blob import build_blob_id_text
from economics.consensus import Quiet
from economics.crypto import NodeId
from economics.genesis import Genesis, build_key_text
from economics.ledger import Ledger
from gossip.pubsub import Bucket, Gossip, Ignored, open_gossip
from p2pnode.adversary import MANNERS, Behaviour, speaker
from p2pnode.auditing.answers import Answers
from p2pnode.auditing.audit import Auditor
from p2pnode.auditing.rounds import Rounds
from p2pnode.auditing.watch import Watch
from p2pnode.backup import clear_restored, is_restored, mark_restored, set_chain_aside
from p2pnode.coding.codec import Codec
from p2pnode.coding.kernel import Kernel, load_kernel
from p2pnode.consensus.chain import ChainStore, DamagedChain
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.journal import Binding, Journal
from p2pnode.consensus.participant import Participant
from p2pnode.consensus.snapshots import Snapshots
from p2pnode.consensus.votelog import Replay, VoteLog
from p2pnode.content.keyring import Keyring
from p2pnode.dialling import bootstrap_of, clock_ms, dialable, dialler
from p2pnode.errors import SpaceError
from p2pnode.files import allow_descriptors, lock_directory
from p2pnode.home import Config, Home
from p2pnode.keys import Key
from p2pnode.members import Members
from p2pnode.mending.upkeep import Upkeep
from p2pnode.network.host import Network, open_network
from p2pnode.peering.blobserver import BlobServer
from p2pnode.peering.library import Library
from p2pnode.peering.peer import begin_serving, telling
from p2pnode.protocols import (
    blocks_topic,
    chain_protocol,
    commitments_topic,
    consensus_protocol,
    storage_protocol,
    transactions_topic,
)
from p2pnode.slivers.admission import Admission
from p2pnode.slivers.certifier import BATCH_BYTES_MAX, Certifier, parse_batch
from p2pnode.slivers.certifier import Entry as CommitmentEntry
from p2pnode.slivers.serving import Serving
from p2pnode.slivers.storage import Operation, StorageServer
from p2pnode.slivers.store import SliverStore
from p2pnode.version import VERSION

if TYPE_CHECKING:
    from p2pnode.gateway.running import Options

log = logging.getLogger("p2pnode.node")

BATCH_SECONDS_PER_MEMBER = 0.1
"""A gossip message costs each node 5 ms of CPU (scripts/bench): one batch per max(1 s, members / 10 s)."""
BATCHES_BURST = 8
BATCHES_SHARE = 2
"""Batches of one member that are checked and passed on: this many times what it sends at its own pace."""

SWITCH_S = 0.0005
"""How long a worker thread may keep the interpreter while the trio thread wants it. Each of its system calls gives it
away: at Python's 5 ms every frame sent while a block is executed takes that long."""
STREAMS_PER_PEER = 16
"""A reader keeps a few requests open at each node, an uploader one stream; both may share a peer key."""


class Node:
    """What a running node consists of."""

    def __init__(
        self,
        *,
        genesis: Genesis,
        key: Key,
        config: Config,
        home: Home,
        kernel: Kernel,
        behaviour: Behaviour,
        executor: Executor,
    ) -> None:
        self.genesis = genesis
        self.key = key
        self.node_id = NodeId(key.public)
        self.kernel = kernel
        self.started = trio.current_time()
        codec = Codec(genesis.code, kernel)
        self.store = SliverStore(
            home.store_path, codec=codec, chain_id=genesis.chain_id, quota_bytes=config.quota_bytes
        )
        self.executor = executor
        self.rounds = Rounds(executor=executor, store=self.store)
        self.admission = Admission(
            config.upload_limits, code=genesis.code, node=self.node_id, ledger=lambda: executor.ledger
        )
        self.certifier = Certifier(
            chain_id=genesis.chain_id,
            committee=executor.ledger.committee,
            committee_of=lambda epoch: executor.ledger.committee_of(epoch),
        )
        self._batches: dict[NodeId, Bucket] = {}
        """What members of this epoch and its neighbours may still gossip."""
        self.watch: Watch | None = None
        self.participant: Participant | None = None
        self.upkeep: Upkeep | None = None
        self.blobs: BlobServer | None = None
        """What is served to peers besides slivers."""
        self._restore()
        self.server = StorageServer(
            genesis=genesis,
            node=self.node_id,
            store=self.store,
            codec=codec,
            admission=self.admission,
            certifier=self.certifier,
            sign=key.sign,
            ledger=lambda: executor.ledger,
            status=self.status,
            on_commitment=self.handle_own_commitment,
            operations=dict(self._operations(codec)),
            manner=MANNERS[behaviour],
        )

    def _operations(self, codec: Codec) -> Mapping[str, Operation]:
        serving = Serving(store=self.store, codec=codec, ledger=lambda: self.executor.ledger, frozen=self.rounds.frozen)
        answers = Answers(rounds=self.rounds, store=self.store, codec=codec, node=self.node_id)
        return {**serving.operations(), **answers.operations()}

    @property
    def index(self) -> int | None:
        """This node's place in the committee of the current epoch."""
        return self.executor.ledger.committee.index_of(self.node_id)

    def _restore(self) -> None:
        """Take up what the store holds: statements signed for, and commitments that have no certificate yet."""
        epoch = self.executor.ledger.epoch
        for record in self.store.records().values():
            self.admission.restore(entry.statement for entry in record.entries)
            for entry in record.entries if record.certificate is None else ():
                if self.index is not None and entry.epoch == epoch:
                    certificate = self.certifier.add(entry.as_commitment(self.index), own=True)
                    if certificate is not None:  # a member that is a quorum by itself hears of it from nobody else
                        self.store.put_certificate(certificate)

    def status(self) -> dict[str, cbor.Value]:
        return {
            "blobs": self.store.blobs,
            "chain": None if self.participant is None else self.participant.status(),
            "caught": [] if self.watch is None else [str(fault) for fault in self.watch.last_faults.values()],
            "certificates": self.store.certificates,
            "corrupt_slivers": self.store.corrupt_slivers,
            "kernel": self.kernel.name,
            "node": build_key_text(self.node_id),
            "upkeep": None if self.upkeep is None else self.upkeep.status(),
            "quota_bytes": self.store.quota_bytes,
            "refused": {f"{peer} {reason}": count for (peer, reason), count in self.server.refused.most_common(32)},
            "unclosed_bytes": self.store.unclosed_bytes,
            "uptime_s": int(trio.current_time() - self.started),
            "used_bytes": self.store.used_bytes,
            "version": VERSION,
        }

    # --- commitments ---------------------------------------------------------------------------------------------

    async def handle_own_commitment(self, entry: CommitmentEntry) -> None:
        await self._count(entry, own=True)

    def verify_gossip(self, author: NodeId, data: bytes) -> None:
        """Raise `Rejected` for a batch that must not be passed on, `Ignored` for one of too many."""
        entries = self.certifier.open_batch(data, author=author)
        if not self._budget_of(author).take():
            raise Ignored("more batches of one member than it has to send")
        self.certifier.verify_batch(entries, height=self.executor.height)

    def _budget_of(self, author: NodeId) -> Bucket:
        """Return a member's budget of batches: each costs every node up to 15 ms."""
        if author not in self._batches:
            self._batches[author] = Bucket(burst=BATCHES_BURST, per_s=BATCHES_SHARE / self._batch_s)
        return self._batches[author]

    @property
    def _batch_s(self) -> float:
        """Seconds from one batch of this node's to the next."""
        return max(1.0, BATCH_SECONDS_PER_MEMBER * len(self.executor.ledger.committee.members))

    async def handle_gossip(self, author: NodeId, data: bytes) -> None:
        for entry in parse_batch(data, chain_id=self.genesis.chain_id):
            if entry[2].epoch == self.certifier.committee.epoch:
                await self._count(entry, own=False)

    async def _count(self, entry: CommitmentEntry, *, own: bool) -> None:
        certificate = self.certifier.add(entry, own=own)
        if certificate is None:
            return
        if self.participant is not None:
            self.participant.operator.certify(certificate)
        try:
            if await trio.to_thread.run_sync(self.store.put_certificate, certificate):
                log.info("certified %s", build_blob_id_text(certificate.statement.blob_id))
        except SpaceError as fault:
            log.error("the certificate of a blob held here is not kept: %s", fault)

    async def watch_epochs(self) -> None:
        """At the start and in each new epoch sign again what is not on chain yet, and tally for the new committee."""
        await self.server.sign_again()
        while True:
            await self.executor.wait_epoch_beyond(self.certifier.committee.epoch)
            self.certifier.begin_epoch(self.executor.ledger.committee)
            self._batches.clear()
            await self.server.sign_again()

    async def gossip_commitments(self, gossip: Gossip) -> None:
        """Send own commitments in batches, only when there is news."""
        while True:
            await trio.sleep(self._batch_s)
            batch = self.certifier.take_batch()
            if batch is not None:
                await gossip.publish(commitments_topic(self.genesis), batch)

    async def watch_members(self, network: Network, discovery: Discovery, pause_s: float) -> None:
        """Spot-check the other members for as long as the node runs; who holds no blob has nothing to check them by."""
        if not pause_s:
            return
        committee = self.executor.ledger.committee
        members = Members(network, self.genesis, storage_protocol(self.genesis), discovery, committee=committee)
        rng = random.Random(os.urandom(16))
        self.watch = Watch(members=members, store=self.store, codec=self.server.codec, own=self.node_id, rng=rng)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch.run, pause_s)
            while True:
                await self.executor.wait_epoch_beyond(members.committee.epoch)
                await members.seat(self.executor.ledger.committee)

    async def audit(self, network: Network, discovery: Discovery, participant: Participant) -> None:
        """Audit the challenged members of each round in which this node has a seat."""
        auditor = Auditor(
            rounds=self.rounds,
            store=self.store,
            codec=self.server.codec,
            members=Members(network, self.genesis, storage_protocol(self.genesis), discovery),
            node=self.node_id,
            want=participant.operator.want,
        )
        await auditor.run()

    async def announce(self, discovery: Discovery) -> None:
        """Put the node's record where others look for it; failing that, say so and leave it to the next refresh."""
        try:
            await discovery.announce()
        except DiscoveryError as fault:
            log.warning("not announced yet: %s", fault)


@asynccontextmanager
async def open_node(home: Home, *, behaviour: Behaviour = Behaviour.HONEST) -> AsyncIterator[tuple[Node, Network]]:
    """Run the node of a home while the block lasts. Raises `ConfigError` and `NetworkError` at the start."""
    genesis, config, key = home.load_genesis(), home.load_config(), home.load_operator()
    topics = (commitments_topic(genesis), transactions_topic(genesis), blocks_topic(genesis))
    with lock_directory(home.path):
        home.claim_store(genesis.chain_id)
        kernel = await trio.to_thread.run_sync(load_kernel)
        with open_chain(home, genesis) as chain:
            node = Node(
                genesis=genesis,
                key=key,
                config=config,
                home=home,
                kernel=kernel,
                behaviour=behaviour,
                executor=chain.executor,
            )
            async with open_network(seed=key.seed, listen=config.listen) as network:
                network.serve(storage_protocol(genesis), node.server.handle, streams_per_peer=STREAMS_PER_PEER)
                async with (
                    open_discovery(
                        host=network.host,
                        connect=dialler(network),
                        chain_id=genesis.chain_id,
                        sign=key.sign,
                        node_id=node.node_id,
                        addresses=lambda: config.announce or dialable(network.addresses()),
                        server=True,
                        bootstrap=bootstrap_of(config, (*genesis.members, *chain.executor.ledger.committee.members)),
                        cache_path=home.make_cache(),
                        clock_ms=clock_ms,
                    ) as discovery,
                    open_gossip(host=network.host, topics=topics) as gossip,
                    trio.open_nursery() as nursery,
                ):
                    await gossip.subscribe(
                        commitments_topic(genesis),
                        size_max=BATCH_BYTES_MAX,
                        validate=node.verify_gossip,
                        handle=node.handle_gossip,
                    )
                    node.participant = participant = join(
                        chain, node, network, discovery, gossip, config=config, behaviour=behaviour
                    )
                    node.upkeep = upkeep = keep_up(node, network, discovery, config=config)
                    library = Library(home.library_path, key_of=Keyring(home).key_of)
                    node.blobs = blobs = BlobServer(library, tell=telling(discovery, None))
                    begin_serving(network, discovery, blobs, library, nursery)
                    nursery.start_soon(participant.run)
                    nursery.start_soon(upkeep.run)
                    nursery.start_soon(node.watch_epochs)
                    nursery.start_soon(node.rounds.run)
                    nursery.start_soon(node.audit, network, discovery, participant)
                    nursery.start_soon(node.gossip_commitments, gossip)
                    nursery.start_soon(node.announce, discovery)
                    nursery.start_soon(node.watch_members, network, discovery, config.spot_check_s)
                    yield node, network
                    nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class OpenChain:
    """What of the chain is on this node's disk, opened."""

    executor: Executor
    votes: VoteLog
    replay: Replay
    quiet: Quiet | None
    home: Home

    def end_quiet(self) -> None:
        """Say durably that the chain has passed whatever this node may have signed and does not know of."""
        self.votes.heal()
        clear_restored(self.home)


@contextmanager
def open_chain(home: Home, genesis: Genesis) -> Iterator[OpenChain]:
    """Open the chain's files; after a restore or with a damaged log the node is to stay silent for a while."""
    store = open_store(home, genesis)
    votes, replay = VoteLog.open(home.votelog_path, genesis.chain_id)
    if replay.corrupt:
        log.error("the vote log was damaged: this node votes again when the chain has passed what it may have signed")
    if replay.cut_bytes:
        log.warning(
            "the last write to the vote log was cut off: %d bytes dropped, nothing of it was sent", replay.cut_bytes
        )
    lost = replay.created and store.head() > 0
    if lost:
        log.error("the vote log is gone: this node votes again when the chain has passed what it may have signed")
        mark_restored(home)
    quiet = Quiet() if replay.corrupt or lost or is_restored(home) else None
    try:
        yield OpenChain(
            Executor(genesis, store, Snapshots(home.snapshots_path, genesis.chain_id)), votes, replay, quiet, home
        )
    finally:
        votes.close()
        store.close()


def open_store(home: Home, genesis: Genesis) -> ChainStore:
    """Return the chain's database; a damaged one is set aside, and the chain is fetched from peers."""
    start = list(Ledger.at_genesis(genesis).tree.items())
    try:
        return ChainStore.open(home.chain_database_path, genesis.chain_id, genesis_state=start)
    except DamagedChain as fault:
        log.error("%s: set aside; the chain is fetched from peers", fault)
        set_chain_aside(home)
        return ChainStore.open(home.chain_database_path, genesis.chain_id, genesis_state=start)


def join(
    chain: OpenChain,
    node: Node,
    network: Network,
    discovery: Discovery,
    gossip: Gossip,
    *,
    config: Config,
    behaviour: Behaviour,
) -> Participant:
    """Return this node's part in the chain, its protocols served from here on."""
    genesis, committee = node.genesis, chain.executor.ledger.committee
    participant = Participant(
        executor=chain.executor,
        key=node.key,
        clock_ms=clock_ms,
        binding=Binding(
            Journal(chain.votes, chain.replay.records, genesis=genesis),
            chain.quiet,
            on_silenced=lambda: mark_restored(chain.home),
            on_loud=chain.end_quiet,
        ),
        chain_members=Members(network, genesis, chain_protocol(genesis), discovery, committee=committee),
        consensus_members=Members(network, genesis, consensus_protocol(genesis), discovery, committee=committee),
        gossip=gossip,
        snapshot_blocks=config.snapshot_blocks,
        speak=speaker(behaviour, sign=node.key.sign, chain_id=genesis.chain_id),
    )
    network.serve(chain_protocol(genesis), participant.server.handle, streams_per_peer=STREAMS_PER_PEER)
    network.serve(consensus_protocol(genesis), participant.membership.handle, streams_per_peer=2)
    return participant


def keep_up(node: Node, network: Network, discovery: Discovery, *, config: Config) -> Upkeep:
    """Return what cares for this node's slivers, what it answers to others answered from here on."""
    assert node.participant is not None
    upkeep = Upkeep(
        executor=node.executor,
        key=node.key,
        store=node.store,
        codec=node.server.codec,
        admission=node.admission,
        members=Members(network, node.genesis, storage_protocol(node.genesis), discovery),
        operator=node.participant.operator,
        repair_bytes_per_s=config.repair_bytes_per_s,
        scrub_bytes_per_s=config.scrub_bytes_per_s,
        rng=random.Random(os.urandom(16)),
    )
    node.server.operations.update(upkeep.operations())
    return upkeep


@asynccontextmanager
async def serve_http(node: Node, home: Home, options: "Options | None") -> AsyncIterator[tuple[str, ...]]:
    """Serve blobs over HTTP while the block lasts, if there are options; yields the URLs.

    It reads as a client like any other, with a key of its own, since a node cannot dial itself; what it caches is
    announced and served to peers by the node.
    """
    if options is None:
        yield ()
        return
    from p2pnode.gateway.running import open_gateway, plain_owner

    assert node.blobs is not None
    owner = plain_owner(home)
    async with open_gateway(home, owner, replace(options, shares=False)) as gateway:
        log.info("HTTP at %s%s", ", ".join(gateway.urls), "" if owner else "; it only reads: no wallet is open")
        node.blobs.holdings.append(gateway.cache)
        try:
            yield gateway.urls
        finally:
            node.blobs.holdings.remove(gateway.cache)


async def run_node(home: Home, *, behaviour: Behaviour = Behaviour.HONEST, http: "Options | None" = None) -> None:
    """Run a node until SIGINT or SIGTERM; says on standard output, in one line of JSON, when it is ready."""
    sys.setswitchinterval(SWITCH_S)
    allow_descriptors()
    async with open_node(home, behaviour=behaviour) as (node, network), serve_http(node, home, http) as urls:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            ready: dict[str, object] = {"addresses": list(network.addresses()), "node": build_key_text(node.node_id)}
            if urls:
                ready["http"] = list(urls)
            print(json.dumps({"event": "ready", **ready}), flush=True)
            log.info("ready: %d shards, %s", len(node.server.shards), ", ".join(network.addresses()))
            if node.store.foreign_files:
                log.warning("%d files of the store are damaged or foreign, and left alone", node.store.foreign_files)
            if not node.server.shards:
                log.info("this node has no seat: it follows the chain, and helps with DHT and gossip")
            if behaviour is not Behaviour.HONEST:
                log.warning("this node is an adversary: %s", behaviour)
            async for number in signals:
                log.info("stopping on %s", signal.Signals(number).name)
                return
