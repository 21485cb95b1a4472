"""The fleet: which nodes of a testnet should run, which are down and why, and how many shards that takes away.

It alone starts and ends nodes. It decides nothing about whom to strike, and asks the chain only who holds what.
"""

import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

from economics.committee import Committee
from economics.crypto import OwnerId
from economics.genesis import build_key_text
from economics.nodes import Handover, Seats
from economics.slots import HANDOVER_SLOT, seats_slot, state_key
from p2pnode import testnet
from p2pnode.errors import NodeError
from p2pnode.session import Session

POLL_S = 0.1
START_S_MAX = 60.0
SEATS_S = 1.0
"""Between two looks at who holds what: a committee is fixed half an epoch before it counts."""
CALL_ATTEMPTS = 5
CALL_PAUSE_S = 2.0
"""A command may meet nodes as they die: whoever joins or leaves tries again."""


class NodeFailed(Exception):
    """A node ended by itself, or did not come up; or a command about one failed again and again."""


async def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # processes have no event
        await trio.sleep(POLL_S)


class Fleet:
    """All nodes of a testnet, and what has been done to each."""

    def __init__(self, network: testnet.Network, client: Session) -> None:
        self.network = network
        self.client = client
        genesis = network.client_home.load_genesis()
        self.f = genesis.code.f
        self.committee = genesis.committee
        self.handover = Handover(0, 0, 0, tuple(range(len(self.committee.members))))
        self.retries = 0
        """Of commands that failed."""
        self.refilling: set[int] = set()
        """Nodes that lost their disk and may not have all back."""
        self.crowded_at = -1.0
        """When more than f shards were last down: then nothing is promised."""
        self._others: tuple[Committee, ...] = ()
        """The next committee once it is fixed, and while shards are handed over those before."""
        self._due: dict[int, float] = {}
        """When a node that is down is started, or one that is stopped goes on."""
        self._stopped: set[int] = set()
        self._starting: dict[int, float] = {}
        """Since when a node is on its way up: it still counts as down."""
        self._renewing: set[int] = set()
        """Nodes whose disk is being replaced."""
        self._gone: set[int] = set()
        """Nodes that have left."""
        self._saving = trio.Lock()

    @property
    def indexes(self) -> set[int]:
        """The nodes that should run, if not now then soon."""
        return {process.index for process in self.network.processes} - self._gone

    @property
    def down(self) -> set[int]:
        return set(self._due) | set(self._starting) | self._renewing

    @property
    def is_settled(self) -> bool:
        """Whether no node is stopped or on its way up."""
        return not self._starting and not self._stopped

    @property
    def seated(self) -> set[int]:
        """The nodes that have a seat in this epoch."""
        nodes = {build_key_text(member.node) for member in self.committee.members}
        return {process.index for process in self.network.processes if process.node in nodes}

    def has_reported(self, index: int) -> bool:
        """Return whether a node with a seat has told the chain that it holds what it owes of older epochs."""
        node = self.network.process(index).node
        places = (at for at, member in enumerate(self.committee.members) if build_key_text(member.node) == node)
        return any(at in self.handover.reporters for at in places)

    def shards(self, nodes: Iterable[int]) -> int:
        """Return how many shards these nodes have, in whichever committee it is most: now, next or before."""
        names = {self.network.process(index).node for index in nodes}
        return max(
            sum(member.shards for member in committee.members if build_key_text(member.node) in names)
            for committee in (self.committee, *self._others)
        )

    def can_spare(self, index: int) -> bool:
        """Whether this node may go down too: no more than f shards are without a node that has its slivers."""
        return index not in self.down and self.shards(self.down | self.refilling | {index}) <= self.f

    async def tend(self) -> None:
        """Bring nodes back when they are due, and see that the others run. Raises `NodeFailed`."""
        while True:
            for index in [index for index, at in self._due.items() if at <= trio.current_time()]:
                if index in self._stopped:
                    self.network.process(index).send(signal.SIGCONT)
                    self._stopped.remove(index)
                elif not self.network.process(index).is_running:
                    await self._start_again(index)
                else:
                    continue  # about to be killed
                del self._due[index]
            for index in list(self._starting):
                self._look_at(index)
            for index in self.indexes - self.down:
                self._verify_running(index)
            self._note_crowd()
            await trio.sleep(POLL_S)

    async def follow_seats(self) -> None:
        """Know who holds what, now and next, for as long as the fleet lasts."""
        while True:
            with suppress(NodeError):  # too many may be down just now
                await self._look_up_seats()
            await trio.sleep(SEATS_S)

    async def _look_up_seats(self) -> None:
        seating = await self.client.chain.seats(fresh=True)
        keys = [state_key(HANDOVER_SLOT), state_key(seats_slot(seating.current.epoch + 1))]
        handover, later = await self.client.chain.values(keys)
        following = [] if later is None else [Seats.decode(later).committee]
        self.committee = seating.current
        self._others = (*following, *seating.committees[:-1])
        self.handover = self.handover if handover is None else Handover.decode(handover)

    def _note_crowd(self) -> None:
        if self.shards(self.down | self.refilling) > self.f:
            self.crowded_at = trio.current_time()

    # --- down and up again ---------------------------------------------------------------------------------------

    async def kill(self, index: int, *, until: float) -> None:
        """End a node with SIGKILL; it is started again at this time."""
        self._due[index] = until
        self._verify_running(index)
        await trio.to_thread.run_sync(testnet.kill, self.network, index)

    def stop(self, index: int, *, until: float) -> None:
        """Have a node stand still until this time."""
        self._due[index] = until
        self._stopped.add(index)
        self.network.process(index).send(signal.SIGSTOP)

    async def kill_all(self, *, until: float) -> None:
        """Kill all nodes that run, at once; nobody is started before this time."""
        running = self.indexes - self.down
        self._due |= dict.fromkeys(self.indexes, until)
        async with trio.open_nursery() as nursery:
            for index in running:
                nursery.start_soon(lambda index=index: self.kill(index, until=until))

    async def _start_again(self, index: int) -> None:
        await self._keep(await trio.to_thread.run_sync(testnet.start_again, self.network, index))

    async def _keep(self, fresh: testnet.Process) -> None:
        self.network = self.network.with_process(fresh)
        self._starting[fresh.index] = trio.current_time()
        async with self._saving:
            await trio.to_thread.run_sync(self.network.save)

    def _look_at(self, index: int) -> None:
        """Count a node as up once it has printed its line."""
        self._verify_running(index)
        if (Path(self.network.process(index).home) / "ready.json").stat().st_size:
            del self._starting[index]
        elif trio.current_time() > self._starting[index] + START_S_MAX:
            raise NodeFailed(f"node {index} did not start within {START_S_MAX:.0f} s")

    def _verify_running(self, index: int) -> None:
        if not self.network.process(index).is_running:
            raise NodeFailed(f"node {index} ended by itself")

    # --- coming and going ----------------------------------------------------------------------------------------

    async def join(self) -> int:
        """Start one more node, staked by the faucet as a first member was; return its index."""
        index = len(self.network.processes)
        genesis, client_home = self.client.genesis, self.network.client_home
        stake = genesis.committee.n * genesis.parameters.stake_frost_per_shard // len(genesis.members)
        home = testnet.home_of(self.network.directory, index)
        (address,) = testnet.free_addresses(1)
        member = await trio.to_thread.run_sync(testnet.make_node, home, address, 0, {})
        home.put_genesis(genesis)
        owner = build_key_text(OwnerId(member.owner))
        await self._call("faucet", "--home", client_home.path, owner, f"{stake + testnet.NODE_FROST}frost")
        await self._call("join", "--home", home.path, "--stake", f"{stake}frost", "--no-run")
        node = build_key_text(member.node)
        fresh = testnet.start(
            self.network.directory, index, node=node, owner=owner, address=address, behaviour="honest"
        )
        await self._keep(fresh)
        await wait_until(lambda: index not in self._starting)
        return index

    async def leave(self, index: int) -> None:
        """Have a node leave, and end it when others have what it held."""
        await self._call("leave", "--home", self.network.process(index).home)
        await wait_until(lambda: index not in self.down)
        self._gone.add(index)
        process = self.network.process(index)
        process.send(signal.SIGTERM)
        if not await trio.to_thread.run_sync(testnet.wait_stopped, [process]):
            raise NodeFailed(f"node {index} has left, and does not stop")

    async def replace(self, index: int) -> None:
        """Kill a node, wipe its disk but for its keys, and start it again: empty, until it has refilled itself."""
        self._renewing.add(index)
        self.refilling.add(index)
        process = self.network.process(index)
        self._verify_running(index)
        await trio.to_thread.run_sync(testnet.kill, self.network, index)
        await trio.to_thread.run_sync(testnet.wipe, process)
        await self._call("replace", "--home", process.home)
        await self._start_again(index)
        self._renewing.remove(index)

    async def _call(self, *words: object) -> None:
        """Run a command, again if it fails; it ends with whoever waits for it."""
        command = [sys.executable, "-m", "p2pnode", *map(str, words)]
        for left in reversed(range(CALL_ATTEMPTS)):
            done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
            if not done.returncode:
                return
            if not left:
                said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise NodeFailed(f"`p2pnode {words[0]}` failed {CALL_ATTEMPTS} times: {said[-1]}")
            self.retries += 1
            await trio.sleep(CALL_PAUSE_S)
