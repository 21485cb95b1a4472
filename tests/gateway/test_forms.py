"""Forms of any content, cut anywhere: each file comes out as it went in, or the form is refused with a reason."""

import json
import tracemalloc
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.content.quilt import TAGS_MAX
from p2pnode.gateway.faults import HttpFault
from p2pnode.gateway.forms import METADATA_BYTES_MAX, PARTS_MAX, Form, Part, is_tags, parse_metadata, verify_name
from p2pnode.gateway.spool import Spool, Spooled
from tests.gateway.test_quilts import BOUNDARY, FORM, form, metadata, part

ROOM = 64 << 20
FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=200)
LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='/"\\')
NAMES = st.text(LETTERS, min_size=1, max_size=40).filter(lambda name: name not in (".", "..", "_metadata"))
DATA = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from([b"\r\n", b"--", b"\r\n--" + BOUNDARY.encode()[:-1], b"\r", b"\n", b"a"])).map(b"".join),
)
CUTS = st.lists(st.integers(0, 5_000), max_size=20)


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("spool"))


def take(spool: Spool, body: bytes, cuts: list[int]) -> tuple[Spooled, list[Part]]:
    """Return the files of a form that comes in pieces."""
    spooled = Spooled(spool, ROOM)
    taken = Form(FORM["Content-Type"], spooled)
    places = [0, *sorted({cut for cut in cuts if cut < len(body)}), len(body)]
    for start, stop in pairwise(places):
        taken.feed(body[start:stop])
    return spooled, taken.finish()


@given(files=st.dictionaries(NAMES, DATA, min_size=1, max_size=6), cuts=CUTS)
@FIXED
def test_files_come_out_as_they_went_in(files: dict[str, bytes], cuts: list[int], spool: Spool) -> None:
    body = form(*(part(f'name="{name}"', data) for name, data in files.items()))
    spooled, parts = take(spool, body, cuts)
    assert {one.name: one.piece.read(0, one.piece.length) for one in parts} == files
    assert spooled.length == sum(map(len, files.values()))
    spooled.close()


@given(
    files=st.dictionaries(NAMES, DATA, min_size=1, max_size=3),
    cuts=CUTS,
    at=st.integers(0, 4_000),
    change=st.binary(max_size=12),
    dropped=st.integers(0, 12),
)
@FIXED
def test_a_damaged_form_is_refused_or_holds_files_of_lawful_names(
    files: dict[str, bytes], cuts: list[int], at: int, change: bytes, dropped: int, spool: Spool
) -> None:
    whole = form(*(part(f'name="{name}"', data) for name, data in files.items()))
    at %= len(whole)
    body = whole[:at] + change + whole[at + dropped :]
    with suppress(HttpFault):
        spooled, parts = take(spool, body, cuts)
        assert spooled.length <= len(body)
        for one in parts:
            verify_name(one.name)
        spooled.close()


@given(body=st.binary(max_size=400), cuts=CUTS)
@FIXED
def test_noise_is_refused(body: bytes, cuts: list[int], spool: Spool) -> None:
    with pytest.raises(HttpFault):
        take(spool, f"--{BOUNDARY}\r\n".encode() + body, cuts)
    with pytest.raises(HttpFault):
        take(spool, body, cuts)


@given(
    value=st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@FIXED
def test_any_json_is_tags_or_refused(value: object) -> None:
    with suppress(HttpFault):
        assert all(is_tags(tags) for tags in parse_metadata(json.dumps(value).encode()).values())


def test_more_tags_than_there_may_be_are_not_kept(spool: Spool) -> None:
    spooled = Spooled(spool, ROOM)
    taken = Form(FORM["Content-Type"], spooled)
    taken.feed(part('name="_metadata"', b"")[:-2])
    for _ in range(METADATA_BYTES_MAX // (1 << 20)):
        taken.feed(bytes(1 << 20))
    with pytest.raises(HttpFault) as caught:
        taken.feed(bytes(1 << 20))
    assert (caught.value.code, caught.value.facts) == (413, {"limitBytes": METADATA_BYTES_MAX})
    assert spooled.length == 0


@pytest.mark.parametrize("row", [b"{}", b"[]", b'{"":0}', b"0"])
def test_tags_of_millions_of_things_are_never_in_memory(row: bytes) -> None:
    raw = b"[" + (row + b",") * ((METADATA_BYTES_MAX - 8) // (len(row) + 1)) + row + b"]"
    assert len(raw) <= METADATA_BYTES_MAX
    tracemalloc.start()
    try:
        with pytest.raises(HttpFault) as caught:
            parse_metadata(raw)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (caught.value.code, caught.value.reason, most < 1 << 20) == (413, "TOO_LARGE", True)


def test_as_many_tags_as_there_may_be_are_taken() -> None:
    tags = {f"tag {number}": "[a, {b}]" for number in range(TAGS_MAX)}
    rows = [{"identifier": f"{number}", "tags": tags} for number in range(PARTS_MAX)]
    raw = json.dumps(rows).encode()
    assert len(raw) <= METADATA_BYTES_MAX
    assert parse_metadata(raw) == {f"{number}": tags for number in range(PARTS_MAX)}


def test_as_many_files_as_there_may_be_are_taken(spool: Spool) -> None:
    _, parts = take(spool, form(*(part(f'name="{at}"', b"x") for at in range(PARTS_MAX))), [])
    assert len(parts) == PARTS_MAX


def test_tags_of_the_list_come_before_the_content_type_of_a_part(spool: Spool) -> None:
    listed = metadata(
        [{"identifier": "a", "tags": {"content-type": "text/x"}}, {"identifier": "b", "tags": {"k": "v"}}]
    )
    typed = [part(f'name="{name}"', b"", "Content-Type: text/plain") for name in "ab"]
    _, parts = take(spool, form(listed, *typed), [])
    assert {one.name: dict(one.tags) for one in parts} == {
        "a": {"content-type": "text/x"},
        "b": {"content-type": "text/plain", "k": "v"},
    }


def test_what_comes_behind_the_end_is_refused_however_it_is_cut(spool: Spool, tmp_path: Path) -> None:
    body = form(part('name="a"', b"x")) + b"more"
    for cut in range(len(body)):
        with pytest.raises(HttpFault, match="goes on behind"):
            take(spool, body, [cut])
    take(spool, form(part('name="a"', b"x")) + b"\r\n \r\n", [])
