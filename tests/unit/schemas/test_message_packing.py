"""Messages as bytes: whatever arrives is either the message that was sent or one of two errors, soon and in bounds."""

import struct

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import InvalidInput, PackingError, SchemaError
from schemas.messages import Assignment, Enroll, Receipts, TaskOffer, UpdateHeader, UpdateStatus, Work
from schemas.packing import MAX_BYTES, MAX_DEPTH, VERSION, pack, unpack
from schemas.specs import DownlinkSpec, FedDyn, Limits, LinkLimit, LocalSpec, UplinkSpec

# A busy machine is no reason to fail.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,62}\Z")
DIGESTS = st.from_regex(r"\A[0-9a-f]{16,64}\Z")
SECRETS = st.from_regex(r"\A[A-Za-z0-9_-]{32,128}\Z")
FINITE = st.floats(allow_nan=False, allow_infinity=False)

HEADERS = st.builds(
    UpdateHeader,
    update=DIGESTS,
    num_examples=st.integers(1, 2**53),
    loss=st.none() | FINITE,
    reason=st.text(max_size=500),
)
ENROLMENTS = st.builds(
    Enroll,
    credential=SECRETS,
    name=NAMES,
    token=st.none() | SECRETS,
    tasks=st.dictionaries(
        st.sampled_from(["a:b", "fedge.tasks.wisdm:task"]),
        st.builds(TaskOffer, num_examples=st.integers(1, 10**9), layout=DIGESTS),
    ),
    limits=st.builds(
        Limits, uplink=st.builds(LinkLimit, bits=st.none() | st.floats(0.05, 8.0)), downlink=st.just(LinkLimit())
    ),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=30,
)


def body(document: object) -> bytes:
    return bytes([VERSION]) + msgpack.packb(document)


def assignment(**changes: object) -> Assignment:
    values = {
        "run": "wisdm-1",
        "round": 3,
        "task": "fedge.tasks.wisdm:task",
        "layout": "0123456789abcdef",
        "seed": 7,
        "algorithm": FedDyn(name="feddyn"),
        "relative_size": 1.0,
        "local": LocalSpec(),
        "uplink": UplinkSpec(),
        "downlink": DownlinkSpec(),
        "seconds_left": 12.5,
        "dual_epoch": 0,
        "last_applied": 2,
    }
    return Assignment.model_validate(values | changes)


@given(HEADERS)
@CALM
def test_an_update_header_comes_back_as_it_left(header: UpdateHeader) -> None:
    assert unpack(UpdateHeader, pack(header)) == header


@given(ENROLMENTS)
@CALM
def test_an_enrolment_comes_back_as_it_left(enroll: Enroll) -> None:
    assert unpack(Enroll, pack(enroll)) == enroll


def test_an_assignment_keeps_its_algorithm_inside_a_union() -> None:
    work = Work(assignment=assignment(algorithm=FedDyn(name="feddyn", alpha=0.3)))
    assert unpack(Work, pack(work)) == work


@given(st.binary(max_size=400))
@settings(CALM, max_examples=200)
def test_any_bytes_are_a_message_or_one_of_two_errors(data: bytes) -> None:
    for model in (Work, Enroll, UpdateHeader, Receipts):
        for prefixed in (data, bytes([VERSION]) + data):
            try:
                unpack(model, prefixed)
            except SchemaError as error:
                assert isinstance(error, PackingError | InvalidInput)


@given(JUNK)
@settings(CALM, max_examples=200)
def test_any_document_is_a_message_or_one_of_two_errors(document: object) -> None:
    try:
        unpack(Work, body(document))
    except SchemaError as error:
        assert isinstance(error, PackingError | InvalidInput)
    else:
        assert document in ({}, {"assignment": None}, {"receipt": None}, {"assignment": None, "receipt": None})


@given(ENROLMENTS, st.data())
@CALM
def test_a_truncated_or_prolonged_message_is_refused(enroll: Enroll, data: st.DataObject) -> None:
    whole = pack(enroll)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(PackingError):
        unpack(Enroll, whole[:cut])
    with pytest.raises(PackingError):
        unpack(Enroll, whole + b"\xc0")


@pytest.mark.parametrize("version", [0, 2, 0x80, 255])
def test_another_version_is_refused_by_number(version: int) -> None:
    with pytest.raises(PackingError, match=rf"expected message version 1, got {version}"):
        unpack(Work, bytes([version]) + msgpack.packb({}))


@pytest.mark.parametrize(
    "opener", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xde\x00\x01\xa1a"]
)
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 200_000])
def test_a_nesting_bomb_is_refused_before_it_is_built(opener: bytes, levels: int) -> None:
    with pytest.raises(PackingError, match="levels of nesting"):
        unpack(Work, bytes([VERSION]) + opener * levels + b"\xc0", max_bytes=1 << 24)


def test_as_deep_as_allowed_is_read() -> None:
    document: object = None
    for _ in range(MAX_DEPTH - 1):
        document = [document]
    with pytest.raises(InvalidInput):
        unpack(Work, body({"assignment": document}))


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xc6", b"\xdb"])
def test_a_length_that_the_bytes_do_not_cover_is_refused(header: bytes) -> None:
    with pytest.raises(PackingError):
        unpack(Work, bytes([VERSION]) + header + struct.pack(">I", 2**32 - 1))


def test_a_message_over_its_cap_is_refused_by_size_alone() -> None:
    with pytest.raises(PackingError, match=rf"expected at most {MAX_BYTES} bytes of Work, got {MAX_BYTES + 1}"):
        unpack(Work, bytes(MAX_BYTES + 1))


def test_extension_types_are_refused_wherever_they_stand() -> None:
    timestamp = b"\xd6\xff" + bytes(4)
    for document in (body(msgpack.ExtType(5, b"x")), bytes([VERSION]) + b"\x81\xaaassignment" + timestamp):
        with pytest.raises(SchemaError):
            unpack(Work, document)


def test_a_key_that_stands_twice_is_refused() -> None:
    twice = b"\x82\xa7receipt\xc0\xa7receipt\xc0"
    with pytest.raises(PackingError, match="a key stands twice"):
        unpack(Work, bytes([VERSION]) + twice)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(PackingError):
        unpack(Work, body({7: None}))


def test_a_number_is_not_taken_for_a_text_nor_a_text_for_a_number() -> None:
    good = {"run": "r-1", "round": 1, "update": None, "segments": [], "is_complete": False, "is_open": True}
    assert unpack(UpdateStatus, body(good)).round == 1
    for key, value in (("run", 1), ("round", "1"), ("round", 1.0), ("is_open", 1), ("segments", ["1"])):
        with pytest.raises(InvalidInput, match=rf"UpdateStatus: {key}"):
            unpack(UpdateStatus, body({**good, key: value}))


def test_nan_and_infinity_are_refused() -> None:
    header = {"update": "0" * 16, "num_examples": 1}
    for loss in (float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="loss"):
            unpack(UpdateHeader, body({**header, "loss": loss}))


def test_defaults_cost_no_bytes() -> None:
    assert pack(Work()) == bytes([VERSION, 0x80])
