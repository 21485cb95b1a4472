"""What the routes of a gateway share: the way to the network, the cache, the wallet, the limits. Knows no HTTP."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2pnode.gateway.access import Access
from p2pnode.home import Home
from p2pnode.keys import Key
from p2pnode.session import Session

if TYPE_CHECKING:
    from economics.blob import BlobId
    from p2pnode.views import View


@dataclass(frozen=True, slots=True)
class Limits:
    """What one gateway does at once, and for how long."""

    downloads_max: int = 256
    """Answers with a body that are under way; more are refused with 429. Walrus' aggregator has the same bound."""
    uploads_max: int = 8
    """Uploads under way, each of which encodes; more are refused with 429. Walrus' publisher has the same bound."""
    blob_bytes_max: int = 1 << 30
    """Of one body that is stored; it waits on the disk until it is certified."""
    quilt_bytes_max: int = 256 << 20
    """Of all files of one quilt together."""


@dataclass(frozen=True, slots=True)
class Services:
    """All that a route may use."""

    home: Home
    session: Session
    owner: Key | None
    """Who pays for what is stored and may delete it; None for a gateway that only reads."""
    access: Access
    limits: Limits = field(default_factory=Limits)

    async def open_view(self, blob_id: "BlobId") -> "View":
        """Return a blob's bytes, read through the cache. Raises `HttpFault` for 404, 410, 422 and 503."""
        from p2pnode.views import BlobView

        return BlobView(self.session.reader, await self.session.reader.header(blob_id))
