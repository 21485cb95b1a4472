"""The segments that came last are there, as many as fit."""

from p2pnode.peering.recent import Recent
from tests.p2pnode.swarming import BLOB, BLOB_ID, CODE
from tests.small import make_blob

OTHER = make_blob(CODE, 100, seed=3)


def segment(index: int) -> bytes:
    return BLOB.data[index * CODE.segment_bytes : (index + 1) * CODE.segment_bytes]


def held(recent: Recent) -> list[int]:
    return [index for index in range(13) if recent.segment(BLOB_ID, index) is not None]


def test_what_was_put_is_there_with_its_header() -> None:
    recent = Recent()
    assert (recent.header(BLOB_ID), recent.segment(BLOB_ID, 3)) == (None, None)
    recent.put(BLOB_ID, BLOB.header, 3, segment(3))
    assert (recent.header(BLOB_ID), recent.segment(BLOB_ID, 3)) == (BLOB.header, segment(3))
    assert (held(recent), recent.blob_ids()) == ([3], ())


def test_the_oldest_goes_for_the_newest() -> None:
    recent = Recent(3 * CODE.segment_bytes)
    for index in range(6):
        recent.put(BLOB_ID, BLOB.header, index, segment(index))
    recent.put(BLOB_ID, BLOB.header, 5, segment(5))
    assert held(recent) == [3, 4, 5]


def test_a_header_goes_with_its_last_segment() -> None:
    recent = Recent(2 * CODE.segment_bytes)
    recent.put(OTHER.header.blob_id, OTHER.header, 0, OTHER.data)
    recent.put(BLOB_ID, BLOB.header, 0, segment(0))
    assert recent.header(OTHER.header.blob_id) == OTHER.header
    recent.put(BLOB_ID, BLOB.header, 1, segment(1))
    assert (recent.header(OTHER.header.blob_id), held(recent)) == (None, [0, 1])


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    recent = Recent(CODE.segment_bytes - 1)
    recent.put(BLOB_ID, BLOB.header, 0, segment(0))
    assert (recent.header(BLOB_ID), held(recent)) == (None, [])
