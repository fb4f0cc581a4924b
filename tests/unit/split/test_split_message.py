"""Messages of a split step that go up: their bytes, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from fedge.errors import CodecError
from fedge.split import Coding, Memory, Options, Shape, Shared, Start, quantize, read_labels, write_labels
from fedge.split.message import ActivationMessage, Codebook, CodebookKind, IndexKind

BOOK = np.array([[[0.0, 0.5], [1.0, 2.0]]], np.float32)
SHAPE = Shape(3, 8, 4)
INDEX = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], np.uint8)
HEAD = bytes.fromhex("01 01 00 01 0300 0400 0100 08000000")


def message() -> ActivationMessage:
    return ActivationMessage(SHAPE, Codebook.float32(BOOK), INDEX, IndexKind.PACKED)


def shared() -> Shared:
    return Memory(SHAPE).after([(BOOK, INDEX)]).publish(model=True)


def test_activations_have_these_bytes_for_ever():
    # By position, then by example: 010 111 000 100, the first in the lowest bit.
    data = HEAD + BOOK.tobytes() + bytes([0b00_111_010, 0b0010])
    assert message().to_bytes() == data
    read = ActivationMessage.from_bytes(data)
    assert (read.index == INDEX).all() and (read.codebook.centroids == BOOK).all() and read.shape == SHAPE
    assert 8 * (len(data) - len(HEAD)) == SHAPE.bits() + 4  # a half-empty byte


def test_a_codebook_of_eight_bits_is_within_half_a_step():
    book = np.random.default_rng(0).normal(size=(3, 16, 8)).astype(np.float32)
    rounded = Codebook.eight_bits(book)
    step = (book.max((1, 2)) - book.min((1, 2))) / 255
    assert (np.abs(rounded.centroids - book).max((1, 2)) <= 0.501 * step).all()
    assert len(rounded.data) == 3 * 8 + book.size
    flat = Codebook.eight_bits(np.full((2, 4, 1), -3.0, np.float32))
    assert (flat.centroids == -3).all()


def test_indices_travel_packed_where_coding_would_make_them_longer():
    rng = np.random.default_rng(0)
    index = rng.integers(0, 2, (4, 3)).astype(np.uint8)
    data = replace(message(), index=index, indices=IndexKind.CODED).to_bytes()
    assert data[2] >> 4 == IndexKind.PACKED and (ActivationMessage.from_bytes(data).index == index).all()
    shape = Shape(20, 400, 200)
    rare = (rng.random((200, 20)) < 0.05).astype(np.uint8)
    coded = ActivationMessage(shape, Codebook.float32(BOOK), rare, IndexKind.CODED)
    data = coded.to_bytes()
    assert data[2] >> 4 == IndexKind.CODED and len(data) < len(replace(coded, indices=IndexKind.PACKED).to_bytes()) / 2
    assert (ActivationMessage.from_bytes(data).index == rare).all()


def test_one_centroid_needs_no_indices():
    book, index = Codebook.float32(BOOK[:, :1]), np.zeros((4, 3), np.uint8)
    data = ActivationMessage(Shape(3, 8, 4, 1, 1), book, index, IndexKind.CODED).to_bytes()
    assert len(data) == len(HEAD) + 8 and not ActivationMessage.from_bytes(data).index.any()


def test_a_message_names_the_state_it_needs_and_is_read_with_that_alone():
    state, other = shared(), Memory(SHAPE).after([(BOOK + 1, INDEX)]).publish(model=True)
    own = ActivationMessage(SHAPE, Codebook.shared(state), INDEX, IndexKind.PACKED, bytes.fromhex(state.id))
    data = own.to_bytes(state)
    assert len(data) == len(HEAD) + 8 + 2 and data[14:22].hex() == state.id
    read = ActivationMessage.from_bytes(data, state)
    assert (read.codebook.centroids == BOOK).all() and read.needs_state
    for wrong in (None, other):
        with pytest.raises(CodecError, match=f"expected shared state {state.id}, got"):
            ActivationMessage.from_bytes(data, wrong)


def test_a_state_of_another_shape_or_without_what_is_needed_is_refused():
    state = shared()
    data = ActivationMessage(SHAPE, Codebook.shared(state), INDEX, IndexKind.PACKED, bytes.fromhex(state.id)).to_bytes(
        state
    )
    longer = bytearray(data)
    longer[10:14] = struct.pack("<I", 16)
    with pytest.raises(CodecError, match=r"expected a shared codebook of shape \(1, 2, 4\), got \(1, 2, 2\)"):
        ActivationMessage.from_bytes(bytes(longer), state)
    model_alone = Memory(SHAPE).after([(BOOK, INDEX)]).publish(codebook=False, model=True)
    with pytest.raises(CodecError, match="expected a shared codebook in state"):
        Codebook.shared(model_alone)
    coded = bytearray(data)
    coded[2] = CodebookKind.FLOAT32 | IndexKind.CODED_SHARED << 4
    book_alone = Memory(SHAPE).after([(BOOK, INDEX)]).publish()
    coded[14:22] = bytes.fromhex(book_alone.id)
    with pytest.raises(CodecError, match="expected a shared model of shape"):
        ActivationMessage.from_bytes(bytes(coded) + BOOK.tobytes(), book_alone)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"\x02", "version 1, got kind 1 of version 2"),
        (1, b"\x02", "got kind 2"),
        (2, b"\x03", "known kind"),
        (2, b"\x30", "known kind"),
        (2, b"\x02", "expected shared state"),
        (3, b"\x02", "bytes of codebook|bytes for"),
        (4, b"\x00\x00", "examples"),
        (4, b"\x05\x00", "expected 3 bytes for 20 codes"),
        (6, b"\x03\x00", "divide 8 values"),
        (6, b"\x00\x00", "divide 8 values"),
        (8, b"\x00\x00", "groups"),
        (8, b"\x05\x00", "groups"),
        (10, b"\x00\x00\x00\x00", "values"),
        (10, b"\xfc\xff\xff\xff", "activations or fewer"),
        (14, struct.pack("<f", np.nan), "magnitude"),
        (14, struct.pack("<f", -np.inf), "magnitude"),
        (14, struct.pack("<f", 3e38), "magnitude"),
    ],
)
def test_fields_that_cannot_be_are_refused(at, value, message):
    data = bytearray(HEAD + BOOK.tobytes() + bytes([0b00_111_010, 0b0010]))
    data[at : at + len(value)] = value
    with pytest.raises(CodecError, match=message):
        ActivationMessage.from_bytes(bytes(data))


def test_an_index_of_no_centroid_is_refused():
    book = Codebook.float32(np.zeros((1, 3, 2), np.float32))
    data = bytearray(ActivationMessage(Shape(3, 8, 4, 1, 3), book, INDEX, IndexKind.PACKED).to_bytes())
    data[-1] |= 0b11
    with pytest.raises(CodecError, match="expected indices below 3, got 3"):
        ActivationMessage.from_bytes(bytes(data))


def test_every_truncation_and_extension_is_refused():
    options = Options(4, centroids=2)
    z = np.random.default_rng(0).random((3, 8)).astype(np.float32)
    for own in (options, Options.paper(4), replace(options, centroids=3)):
        data = quantize(z, own, 0, 1).data
        for bad in (*(data[:stop] for stop in range(len(data))), data + b"\x00"):
            with pytest.raises(CodecError):
                ActivationMessage.from_bytes(bad)


def test_labels_come_back_and_others_are_refused():
    labels = np.arange(20) % 10
    data = write_labels(labels, 4)
    assert len(data) == 6 + 10 and (read_labels(data, 20) == labels).all()
    for bad, count in (
        (data, 19),
        (data[:-1], 20),
        (data + b"\x00", 20),
        (data[:2] + b"\x00" + data[3:], 20),
        (b"", 0),
    ):
        with pytest.raises(CodecError):
            read_labels(bad, count)
    for wrong, bits in ((np.array([16]), 4), (np.array([-1]), 4), (np.array([], np.int64), 4), (labels, 9)):
        with pytest.raises(CodecError):
            write_labels(wrong, bits)


def test_a_shared_state_comes_back_under_the_same_name_and_every_other_length_is_refused():
    for state in (shared(), Memory(SHAPE).after([(BOOK, INDEX)]).publish(), Shared(SHAPE)):
        data = state.to_bytes()
        read = Shared.from_bytes(data, 8)
        assert read.id == state.id and read.to_bytes() == data
        for bad in (*(data[:stop] for stop in range(len(data))), data + b"\x00"):
            with pytest.raises(CodecError):
                Shared.from_bytes(bad, 8)
    with pytest.raises(CodecError, match="for 7 values"):
        Shared.from_bytes(shared().to_bytes(), 7)
    bad = bytearray(shared().to_bytes())
    bad[12:16] = struct.pack("<f", np.inf)
    with pytest.raises(CodecError, match="magnitude"):
        Shared.from_bytes(bytes(bad), 8)


def test_the_memory_averages_codebooks_by_their_vectors_and_counts_bits_by_position():
    other = INDEX * 0
    memory = Memory(SHAPE).after([(BOOK, INDEX), (BOOK + 10, other)])
    # Centroid 0 has 7 vectors in the first batch and 12 in the second, centroid 1 has 5 and none.
    assert np.allclose(memory.codebook[0, 0], BOOK[0, 0] + 10 * 12 / 19) and np.allclose(
        memory.codebook[0, 1], BOOK[0, 1]
    )
    model = memory.publish(model=True).model
    assert model.shape == (4, 1) and model[1, 0] > model[0, 0] > model[2, 0] and model[2, 0] < 64
    later = memory.after([(None, other)])
    assert (later.codebook == memory.codebook).all() and later.publish(model=True).model[1, 0] < model[1, 0]


def test_coding_by_a_shared_model_is_shorter_where_positions_differ():
    rng = np.random.default_rng(0)
    scale = np.exp(2 * rng.normal(size=(1, 200))).repeat(4, 1)
    options = Options(200, centroids=4, start=Start.WARM, coding=Coding.SHARED)
    draw = lambda: np.maximum(rng.normal(size=(20, 800)) * scale, 0).astype(np.float32)  # noqa: E731
    memory, lengths = Memory(options.shape(20, 800)), []
    for step in range(8):
        state = memory.publish(model=True) if step else None
        z = draw()
        data = quantize(z, options, step, step, state).data
        alone = quantize(z, replace(options, coding=Coding.ADAPTIVE), step, step, state).data
        lengths.append((len(data), len(alone)))
        read = ActivationMessage.from_bytes(data, state)
        memory = memory.after([(read.codebook.centroids, read.index)])
    assert sum(own for own, _ in lengths[3:]) < 0.95 * sum(other for _, other in lengths[3:])
