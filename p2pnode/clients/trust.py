"""What a client's home takes for true: where trust begins, and the newest epoch that it has followed, on disk."""

from collections.abc import Callable
from pathlib import Path

from economics.block import genesis_header
from economics.errors import Reason, Rejected
from economics.genesis import Genesis
from economics.ledger import Ledger
from economics.light import RECEIPT_BYTES_MAX, Trusted, is_stale
from p2pnode.clients.chainview import Seating
from p2pnode.clients.seating import decode_seating, encode_seating
from p2pnode.errors import ConfigError
from p2pnode.files import make_directory, read_bounded, replace_synced


class Trust:
    """The trust of one home in one network. Writing is for worker threads."""

    def __init__(self, genesis: Genesis, cache: Path, clock_ms: Callable[[], int]) -> None:
        self.genesis = genesis
        self.origin = trusted_genesis(genesis)
        """Where trust begins: the genesis, or a checkpoint that the user named."""
        self._cache = cache
        self._clock_ms = clock_ms
        self.newest = self._load_newest()
        """The newest epoch that has been followed."""
        self.seating = self._load_seating()
        """Who holds what in that epoch, where it has been asked for."""

    def _load_newest(self) -> Trusted:
        if self._cache.exists():
            try:
                data = read_bounded(self._cache, RECEIPT_BYTES_MAX)
                return Trusted.decode(data, chain_id=self.genesis.chain_id)
            except (OSError, Rejected) as fault:
                raise ConfigError(f"{self._cache} is no checkpoint of this network: remove it") from fault
        return self.origin

    def _load_seating(self) -> Seating | None:
        try:
            return decode_seating(read_bounded(self._seating_cache, RECEIPT_BYTES_MAX), self.newest)
        except (OSError, Rejected):
            return None

    @property
    def _seating_cache(self) -> Path:
        return self._cache.with_suffix(".seats")

    def begin(self, checkpoint: bytes) -> None:
        """Begin from a checkpoint that the user vouches for, and keep it; raises `Rejected` as `read_checkpoint`."""
        self.newest = self.origin = read_checkpoint(checkpoint, self.genesis, now_ms=self._clock_ms())
        self.seating = None
        keep_trusted(self._cache, self.newest)

    def verify_age(self) -> None:
        """Raise `ConfigError` if those who made the newest epoch could lie about what came after it."""
        if is_stale(self.newest, now_ms=self._clock_ms(), parameters=self.genesis.parameters):
            raise ConfigError(
                "the newest epoch this client has followed is older than the unbonding time, so old keys could forge "
                "what came after it: have a recent checkpoint from a source you trust (`p2pnode checkpoint` writes "
                "one there) and name it with `p2pnode trust CHECKPOINT`"
            )

    def known_seating(self) -> Seating | None:
        """Return who holds what, if that cannot have changed by this clock: no epoch is shorter than `epoch_ms`.

        A clock that is not as far as the epoch's beginning is wrong, and says nothing of its end.
        """
        begins_ms = self.newest.root.time_ms
        ends_ms = begins_ms + self.genesis.parameters.epoch_ms
        known = self.seating
        return known if known is not None and known.is_handed_over and begins_ms <= self._clock_ms() < ends_ms else None

    def keep_newest(self) -> None:
        keep_trusted(self._cache, self.newest)

    def keep_seating(self, seating: Seating) -> None:
        _keep(self._seating_cache, encode_seating(seating, root=self.newest.root.hash))


def read_checkpoint(data: bytes, genesis: Genesis, *, now_ms: int) -> Trusted:
    """Return the epoch of a checkpoint; raises `Rejected` if it is none of this network, or too old to be trusted."""
    trusted = Trusted.decode(data, chain_id=genesis.chain_id)
    if is_stale(trusted, now_ms=now_ms, parameters=genesis.parameters):
        raise Rejected(Reason.EXPIRED, "it is older than the unbonding time: have a newer one made")
    return trusted


def keep_trusted(cache: Path, trusted: Trusted) -> None:
    """Write down the newest epoch followed."""
    _keep(cache, trusted.encode())


def _keep(cache: Path, data: bytes) -> None:
    """Write a file that commands which run at the same time share, and so do clients in one process."""
    make_directory(cache.parent)
    replace_synced(cache, (data,))


def trusted_genesis(genesis: Genesis) -> Trusted:
    """Return what the genesis file alone makes trusted."""
    ledger = Ledger.at_genesis(genesis)
    header = genesis_header(
        chain_id=genesis.chain_id,
        time_ms=genesis.time_ms,
        state_root=ledger.root,
        committee_hash=ledger.committee.hash,
        next_committee_hash=ledger.next_committee_hash,
    )
    return Trusted(header, ledger.committee)
