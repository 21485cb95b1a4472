"""Noise sessions on the standard `/noise` wire, whose writes only queue. Knows nothing of streams or protocols.

The library's session writes to the socket inside `write`. Two faults follow: its muxer's only reader task writes too,
so two peers that send to each other wait for each other for ever; and a cancelled write leaves half a Noise message on
the wire, which kills every stream of the connection. Here `queue` encrypts and returns, one task owns the socket, and
nobody else can be blocked or cancelled inside a message. Being asynchronous in name only, the queue needs a fuse.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import ISecureTransport
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.patterns import PatternXX

Buffer = bytes | bytearray | memoryview

TAG_BYTES = 16
LENGTH_BYTES = 2
PLAINTEXT_MAX = 65_535 - TAG_BYTES
"""Payload of one Noise message: its length, tag included, is a 16-bit number."""
JOIN_MAX = 8 * 1024
"""Parts up to this size share one message: copying 8 KiB costs less than a second message (1.5 us and 18 bytes)."""
READ_BYTES = 256 * 1024
"""One `recv`: large enough that the system calls vanish from the profile, small enough for a thousand sockets."""
BATCH_BYTES = 256 * 1024
"""Queued messages are joined into one `send` up to about this size."""
QUEUE_HIGH_BYTES = 256 * 1024
"""Senders of bulk wait while this much ciphertext is queued: one more round for the writer, and on a line of 10 Mbit/s
0.4 s that a vote waits behind bulk, the frame that came last included."""
LINGER_S = 1.0
"""A closing session gives its queue this long to reach the socket."""
SILENCE_MAX_S = 75.0
"""A peer that sends nothing for this long is dead: yamux pings every 30 s, and a living peer must answer."""
WATCH_TICKS = 5
"""The silence is counted in this many steps, so a stall of our own loop is not taken for the peer's silence."""

CLOSED = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a socket raises through the library's wrappers once it is gone."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    queue_bytes_max: int = 64 * 1024 * 1024
    """Fuse: ciphertext waiting for the socket beyond which the connection is closed. Senders of ours stop at
    QUEUE_HIGH_BYTES; only a foreign muxer, or control frames to a peer that stopped reading, come this far."""


class NoiseTransport(ISecureTransport):  # type: ignore[misc]
    """The library's XX handshake, then our session. `nursery` owns one writer task per session."""

    def __init__(self, key_pair: KeyPair, static_key: PrivateKey, nursery: trio.Nursery, limits: SessionLimits) -> None:
        self._key_pair = key_pair
        self._static_key = static_key
        self._nursery = nursery
        self._limits = limits
        self._local_peer = ID.from_pubkey(key_pair.public_key)

    def _pattern(self) -> PatternXX:
        return PatternXX(self._local_peer, self._key_pair.private_key, self._static_key)

    async def secure_inbound(self, conn: Any) -> "NoiseSession":
        return await self._secure(conn, self._pattern().handshake_inbound(conn))

    async def secure_outbound(self, conn: Any, peer_id: ID) -> "NoiseSession":
        return await self._secure(conn, self._pattern().handshake_outbound(conn, peer_id))

    async def _secure(self, conn: Any, handshake: Any) -> "NoiseSession":
        """Raise `HandshakeFailure` for every fault of the peer: the library's own handshake lets `InvalidTag`,
        `ValueError` and others out, which its callers do not expect."""
        try:
            stock = await handshake
        except Exception as fault:  # the border: whatever a hostile handshake provokes inside the library
            raise HandshakeFailure(f"noise handshake failed: {fault!r}") from fault
        session = NoiseSession(stock, conn, self._limits)
        self._nursery.start_soon(session.run)
        return session


class NoiseSession(BaseSession):  # type: ignore[misc]
    """One authenticated connection: `queue` never blocks, `receive` yields decrypted messages."""

    def __init__(self, stock: Any, conn: Any, limits: SessionLimits) -> None:
        super().__init__(
            local_peer=stock.local_peer,
            local_private_key=stock.local_private_key,
            remote_peer=stock.remote_peer,
            remote_permanent_pubkey=stock.remote_permanent_pubkey,
            is_initiator=stock.is_initiator,
        )
        # The library keeps its ciphers in the handshake state; the version is pinned, and a test pins these names.
        states = stock.conn.noise_state.noise_protocol
        self._encrypt, self._encrypt_nonce = ChaCha20Poly1305(states.cipher_state_encrypt.k), 0
        self._decrypt, self._decrypt_nonce = ChaCha20Poly1305(states.cipher_state_decrypt.k), 0
        assert states.cipher_state_encrypt.n == states.cipher_state_decrypt.n == 0
        self._conn = conn
        self._limits = limits
        self._outbox: deque[bytearray] = deque()
        self._queued_bytes = 0
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._is_writable = True
        self._closing = False
        self._broken = False
        self._drained = trio.Event()
        self._tail = b""
        self._plain = bytearray()
        self._heard = False
        self._silence_max_s = SILENCE_MAX_S
        self._tick = trio.CancelScope()
        self.is_overfull: Callable[[], bool] = lambda: False
        """Asked after each read; a muxer that cannot bound its own memory has the connection ended by it."""

    @property
    def is_broken(self) -> bool:
        """Whether the session has ended, even if those above it have not yet noticed."""
        return self._broken or not self._is_writable

    # Sending

    @property
    def is_congested(self) -> bool:
        """Whether bulk should wait; control frames are queued all the same."""
        return self._queued_bytes >= QUEUE_HIGH_BYTES

    async def wait_room(self) -> None:
        """Wait until the queue is short. Raise `ConnectionClosedError` if the connection ended."""
        while self.is_congested and self._is_writable:
            await self._room.park()
        if not self._is_writable:
            raise ConnectionClosedError("the connection is closed")

    def queue(self, *parts: Buffer) -> None:
        """Encrypt `parts` as one run of bytes and queue it. The buffers may be reused at once. Costs about 0.6 ms per
        MiB. Raise `ConnectionClosedError` if the connection is closed, or by this call, when it blows the fuse."""
        if not self._is_writable:
            raise ConnectionClosedError("the connection is closed")
        sealed = self._seal(plan_messages(parts))
        self._outbox.append(sealed)
        self._queued_bytes += len(sealed)
        self._work.unpark()
        if self._queued_bytes > self._limits.queue_bytes_max:
            self._break()
            raise ConnectionClosedError(f"the peer let {self._queued_bytes} bytes pile up")

    def _seal(self, messages: Sequence[Buffer]) -> bytearray:
        """Return the messages as they go on the wire: each a length and a ciphertext."""
        sealed = bytearray(sum(len(message) + LENGTH_BYTES + TAG_BYTES for message in messages))
        with memoryview(sealed) as view:
            at = 0
            for message in messages:
                size = len(message) + TAG_BYTES
                sealed[at : at + LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
                at += LENGTH_BYTES
                self._encrypt.encrypt_into(nonce_of(self._encrypt_nonce), message, None, view[at : at + size])
                self._encrypt_nonce += 1
                at += size
        return sealed

    async def write(self, data: bytes) -> None:
        """The library's verb: queue, and let others run."""
        self.queue(data)
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Own the socket until the session ends. Never raises but `Cancelled`: it runs beside all other sessions."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_silence)
                    await self._drain()
                    nursery.cancel_scope.cancel()
        finally:
            self._break()
            self._drained.set()
            with trio.CancelScope(shield=True):
                await self._conn.close()

    async def _drain(self) -> None:
        """Write what is queued until the session ends. When the peer takes nothing any more, the session lives on
        until its reader has seen the end: what the peer said before it left may be unread."""
        while not self._broken:
            if self._outbox:
                await self._write_batch()
            elif self._closing:
                return
            else:
                await self._work.park()

    async def _write_batch(self) -> None:
        batch = self._next_batch()
        try:
            await self._conn.write(batch)
        except CLOSED:
            self._is_writable = False
            self._outbox.clear()
            self._queued_bytes = 0
        else:
            self._queued_bytes -= len(batch)
        if not self.is_congested:
            self._room.unpark_all()

    def _next_batch(self) -> bytearray:
        batch = self._outbox.popleft()
        while self._outbox and len(batch) + len(self._outbox[0]) <= BATCH_BYTES:
            batch += self._outbox.popleft()
        return batch

    def tolerate_silence(self, seconds: float) -> None:
        """Set how long the peer may send nothing before the connection is taken for dead."""
        self._silence_max_s = seconds
        self._tick.cancel()

    async def _watch_silence(self) -> None:
        """Break the connection when WATCH_TICKS steps in a row brought nothing: a frozen peer keeps its TCP alive."""
        missed = 0
        while missed < WATCH_TICKS:
            self._heard = False
            self._tick = trio.CancelScope(deadline=trio.current_time() + self._silence_max_s / WATCH_TICKS)
            with self._tick:
                await trio.sleep_forever()
            missed = 0 if self._heard else missed + 1
        self._break()

    # Receiving

    async def receive(self) -> list[Buffer]:
        """Return the next decrypted bytes, at least one buffer; none means that the connection has ended."""
        if self._plain:
            rest, self._plain = self._plain, bytearray()
            return [rest]
        return await self._receive_messages()

    async def _receive_messages(self) -> list[Buffer]:
        while not self._broken:
            chunk = await self._read_chunk()
            if not chunk:
                break
            self._heard = True
            if self.is_overfull():
                break
            try:
                messages = self._open(b"".join((self._tail, chunk)) if self._tail else chunk)
            except (InvalidTag, ValueError):
                break  # a forged or malformed message: nothing after it can be trusted
            if messages:
                return messages
        self._break()
        return []

    async def _read_chunk(self) -> bytes:
        try:
            chunk: bytes = await self._conn.read(READ_BYTES)
        except CLOSED:
            return b""
        return chunk

    def _open(self, chunk: bytes) -> list[Buffer]:
        """Decrypt every whole message of `chunk` and keep the rest. Each gets a buffer of its own, so a reader that
        holds on to one piece pins 64 KiB at most."""
        messages: list[Buffer] = []
        view, at, end = memoryview(chunk), 0, len(chunk)
        while end - at >= LENGTH_BYTES:
            size = int.from_bytes(view[at : at + LENGTH_BYTES], "big")
            if size < TAG_BYTES:
                raise ValueError("a Noise message is shorter than its tag")
            if end - at - LENGTH_BYTES < size:
                break
            at += LENGTH_BYTES
            plain = bytearray(size - TAG_BYTES)
            self._decrypt.decrypt_into(nonce_of(self._decrypt_nonce), view[at : at + size], None, plain)
            self._decrypt_nonce += 1
            at += size
            if plain:
                messages.append(plain)
        self._tail = bytes(view[at:])
        return messages

    async def read(self, n: int | None = None) -> bytes:
        """The library's verb: return `n` bytes, fewer only at the end; raise `ConnectionClosedError` after it."""
        wanted = 1 if n is None else n
        while len(self._plain) < wanted:
            messages = await self._receive_messages()
            if not messages:
                break
            for message in messages:
                self._plain += message
        if wanted and not self._plain:
            raise ConnectionClosedError("the connection is closed")
        size = len(self._plain) if n is None else n
        taken = bytes(self._plain[:size])
        del self._plain[:size]
        return taken

    # Ending

    def _break(self) -> None:
        """End now and wake everybody; the writer task closes the socket, even if it is stuck in a write."""
        self._broken = True
        self._is_writable = False
        self._scope.cancel()
        self._outbox.clear()
        self._work.unpark_all()
        self._room.unpark_all()

    async def close(self) -> None:
        """Let the queue drain for LINGER_S, then close the socket. Never raises `Cancelled` (see `TcpStream.close`)."""
        self._closing = True
        self._is_writable = False
        self._work.unpark_all()
        self._room.unpark_all()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(LINGER_S):
                await self._drained.wait()
            self._break()
            await self._conn.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._conn.get_remote_address()
        return address

    def get_transport_addresses(self) -> Any:
        return self._conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        return self._conn.get_connection_type()


def nonce_of(counter: int) -> bytes:
    """Return Noise's ChaChaPoly nonce: 32 zero bits, then the counter, little-endian (Noise specification, 12.3)."""
    return b"\0\0\0\0" + counter.to_bytes(8, "little")


def plan_messages(parts: Sequence[Buffer]) -> list[Buffer]:
    """Cut one run of bytes into messages of 1 to PLAINTEXT_MAX bytes: small neighbours joined, large parts sliced."""
    messages: list[Buffer] = []
    small = bytearray()
    for part in parts:
        if len(part) <= JOIN_MAX and len(small) + len(part) <= PLAINTEXT_MAX:
            small += part
            continue
        if small:
            messages.append(small)
            small = bytearray()
        view = memoryview(part)
        messages += [view[at : at + PLAINTEXT_MAX] for at in range(0, len(view), PLAINTEXT_MAX)]
    if small:
        messages.append(small)
    return messages
