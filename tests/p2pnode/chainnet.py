"""The chain protocol between nodes in memory: honest servers, and liars that answer whatever a test has them say."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import cast

import trio

from economics import cbor
from economics.crypto import NodeId
from economics.errors import Rejected
from economics.genesis import Genesis
from p2pnode.consensus.chainserver import ChainServer, refuse
from p2pnode.consensus.executor import Executor
from p2pnode.consensus.mempool import Mempool
from p2pnode.errors import NetworkError, PeerUnreachable
from p2pnode.members import Members
from p2pnode.network.frames import Incoming, receive_message_or_end, send_message
from p2pnode.network.host import Network
from p2pnode.network.stream import Stream
from tests.p2pnode.finalchain import GENESIS
from tests.small import OPERATORS, UPLOADER
from tests.streams import as_stream, stream_pair

Handler = Callable[[Stream], Awaitable[None]]
Answer = Callable[[Incoming, bytes], tuple[Mapping[str, cbor.Value], bytes]]
CLIENT = NodeId(UPLOADER.public)


def serve(executor: Executor) -> ChainServer:
    """Return an honest server; what is submitted to it waits in a mempool."""
    mempool = Mempool()

    async def submit(signed: object) -> None:
        mempool.add(signed, ledger=executor.ledger)  # type: ignore[arg-type]

    return ChainServer(
        executor=executor,
        submit=submit,
        waiting=mempool.get,
        next_nonce=lambda owner: mempool.next_nonce(owner, ledger=executor.ledger),
    )


def liar(answer: Answer) -> Handler:
    """Return a handler that answers with what `answer` makes of each request."""

    async def handle(stream: Stream) -> None:
        while (message := await receive_message_or_end(stream)) is not None:
            payload = await stream.receive_exactly(message.size)
            header, reply = answer(message, payload)
            await send_message(stream, {"ok": True, **header}, reply)

    return handle


def passing(
    server: ChainServer,
    *,
    before: Callable[[Incoming], None] = lambda _: None,
    then: Callable[[Incoming], Awaitable[None]] | None = None,
    head: Mapping[str, cbor.Value] | None = None,
) -> Handler:
    """Return an honest server's handler; something happens before each answer is made, or before it is sent."""

    async def handle(stream: Stream) -> None:
        while (message := await receive_message_or_end(stream)) is not None:
            payload = await stream.receive_exactly(message.size)
            before(message)
            try:
                header, parts = await server._dispatch(message, payload, True)
            except Rejected as fault:
                await refuse(stream, fault)
                continue
            if then is not None:
                await then(message)
            changes = head if head is not None and message.header["op"] == "head" else {}
            await send_message(stream, {"ok": True, **header, **changes}, *parts)

    return handle


def lying_head(server: ChainServer, changes: Mapping[str, cbor.Value]) -> Handler:
    """Return a handler that is honest but for what it says of its head."""
    return passing(server, head=changes)


async def silent(stream: Stream) -> None:
    """Take a request and never answer."""
    await stream.receive_some(1)
    await trio.sleep_forever()


class ChainNet:
    """Dials the handlers of operators in memory, members or not; one without a handler does not answer."""

    def __init__(self, handlers: Sequence[Handler | None], nursery: trio.Nursery, genesis: Genesis = GENESIS) -> None:
        self.genesis = genesis
        self.handlers = {
            NodeId(key.public): handler for key, handler in zip(OPERATORS, handlers, strict=False) if handler
        }
        self.asked: list[int] = []
        """Operators in the order of dialling."""
        self._nursery = nursery

    async def open_stream(
        self, peer: NodeId, protocol: str, *, addresses: Sequence[str] = (), deadline_s: float = 10.0
    ) -> Stream:
        await trio.lowlevel.checkpoint()
        self.asked.append([key.public for key in OPERATORS].index(peer))
        if peer not in self.handlers:
            raise PeerUnreachable("no answer")
        client, server = stream_pair(CLIENT, peer, window=64 << 20)

        async def handle() -> None:
            with suppress(NetworkError):
                await self.handlers[peer](as_stream(server))

        self._nursery.start_soon(handle)
        return as_stream(client)

    def members(self) -> Members:
        return Members(cast(Network, self), self.genesis, "/memory/1", None)
