import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import LayoutError
from fedge.layout import BLOCK, MAX_SEGMENT, MIN_SEGMENT, Kind, Layout, TensorSpec, segment_sizes


def small() -> Layout:
    return Layout.of(
        [
            TensorSpec("bias", (3,), Kind.RAW),
            TensorSpec("weight", (3, 2), Kind.WEIGHT),
            TensorSpec("count", (), Kind.BUFFER, "int64"),
            TensorSpec("last", (2, 2), Kind.WEIGHT),
        ]
    )


def arrays() -> dict[str, np.ndarray]:
    return {
        "weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "bias": np.array([7, 8, 9], np.float32),
        "count": np.array(41),
        "last": np.full((2, 2), 0.5, np.float32),
    }


@given(st.integers(0, 3_000_000))
def test_segments_of_one_kind_cover_it_and_are_neither_long_nor_short(count):
    sizes = segment_sizes(count)
    assert sum(sizes) == count
    assert all(0 < size <= MAX_SEGMENT for size in sizes)
    assert all(size >= min(count, MIN_SEGMENT) for size in sizes)


@given(st.integers(8 * MIN_SEGMENT, 8 * MAX_SEGMENT))
def test_a_small_model_has_about_eight_segments(count):
    assert 5 <= len(segment_sizes(count)) <= 12


@given(st.integers(1, 3_000_000))
def test_all_segments_but_the_last_two_are_of_one_round_size(count):
    sizes = segment_sizes(count)
    if len(sizes) > 2:
        assert len(set(sizes[:-2])) == 1
        assert sizes[0] % BLOCK == 0 or sizes[0] in (1024, 2048)


def test_a_short_tail_at_the_size_limit_is_shared_evenly():
    assert segment_sizes(10 * MAX_SEGMENT + 101)[-2:] == [32_819, 32_818]


KINDS = st.sampled_from(list(Kind))


@given(st.lists(st.tuples(KINDS, st.lists(st.integers(1, 40), max_size=3)), min_size=1, max_size=12))
def test_segments_follow_one_another_and_never_cross_kinds(drawn):
    layout = Layout.of(TensorSpec(f"t{i}", tuple(shape), kind) for i, (kind, shape) in enumerate(drawn))
    kind_at = [tensor.kind for tensor in layout.tensors for _ in range(tensor.size)]
    at = 0
    for index, segment in enumerate(layout.segments):
        assert (segment.index, segment.start) == (index, at)
        assert set(kind_at[segment.slice]) == {segment.kind}
        at = segment.stop
    assert at == layout.size
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_tensors_lie_by_kind_then_in_model_order():
    layout = small()
    assert dict(layout.offsets) == {"weight": 0, "last": 6, "bias": 10, "count": 13}
    assert (layout.size, layout.num_trained) == (14, 13)


def test_unpack_undoes_pack():
    layout = small()
    vector = layout.pack(arrays())
    assert vector.dtype == np.float32 and vector.flags.c_contiguous
    unpacked = layout.unpack(vector)
    for name, array in arrays().items():
        np.testing.assert_array_equal(unpacked[name], array)
    assert unpacked["count"].dtype == np.int64


def test_unpack_gives_views_of_the_vector():
    vector = small().pack(arrays())
    small().unpack(vector)["last"][0, 0] = 99
    assert vector[6] == 99


def test_a_vector_of_float64_is_unpacked_for_the_model():
    assert small().unpack(np.zeros(14))["weight"].dtype == np.float32


def test_integers_are_rounded_and_kept_in_range():
    layout = Layout.of([TensorSpec("n", (3,), Kind.BUFFER, "uint8"), TensorSpec("on", (2,), Kind.BUFFER, "bool")])
    unpacked = layout.unpack(np.array([6.6, -3, 1e30, 0.4, 0.6], np.float32))
    assert unpacked["n"].tolist() == [7, 0, 255]
    assert unpacked["on"].tolist() == [False, True]


def test_an_integer_that_float32_cannot_hold_is_refused():
    exact = Layout.of([TensorSpec("n", (), Kind.BUFFER, "int64")])
    assert exact.unpack(exact.pack({"n": np.array(2**24)}))["n"] == 2**24
    with pytest.raises(LayoutError, match=r"expected integers up to 16777216.*got 16777217"):
        exact.pack({"n": np.array(2**24 + 1)})


def test_the_digest_is_that_of_names_shapes_kinds_and_dtypes():
    spec = TensorSpec("w", (2, 3), Kind.WEIGHT)
    others = [
        TensorSpec("v", (2, 3), Kind.WEIGHT),
        TensorSpec("w", (3, 2), Kind.WEIGHT),
        TensorSpec("w", (2, 3), Kind.RAW),
        TensorSpec("w", (2, 3), Kind.WEIGHT, "float64"),
    ]
    digests = {Layout.of([tensor]).digest for tensor in [spec, *others]}
    assert len(digests) == 5
    assert Layout.of([spec]).digest == "7340ab9b3741c7a709f883b36e3198d3"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TensorSpec("w", (2, -1), Kind.WEIGHT), r"'w': expected dimensions of at least 0, got \[2, -1\]"),
        (lambda: TensorSpec("w", (2,), "weights"), "expected a kind of weight, raw, buffer, got 'weights'"),
        (lambda: TensorSpec("w", (2,), Kind.RAW, "float7"), "expected a dtype of .*float32.*, got 'float7'"),
        (lambda: Layout.of([TensorSpec("w", (2,), Kind.RAW)] * 2), "every tensor name once, got 'w' more than once"),
        (lambda: Layout(()), "expected at least one coordinate, got 0 tensors"),
        (
            lambda: Layout((TensorSpec("b", (2,), Kind.RAW), TensorSpec("w", (2, 2), Kind.WEIGHT))),
            "expected all weight, then raw, .* got raw, weight",
        ),
        (lambda: Layout.from_json({"tensors": [["w", [2]]]}), "expected {'tensors'"),
        (lambda: Layout.from_json({}), "expected {'tensors'"),
        (lambda: Layout.from_json({"tensors": [["w", [2.5], "raw", "float32"]]}), r"integer dimensions, got \[2.5\]"),
        (lambda: Layout.from_json({"tensors": [["w", [2], "rwa", "float32"]]}), "expected a kind .* got 'rwa'"),
        (lambda: Layout.from_json({"tensors": [[3, [2], "raw", "float32"]]}), "expected a name and a dtype, got 3"),
        (lambda: small().unpack(np.zeros(13, np.float32)), r"shape \[14\], got \[13\]"),
        (lambda: small().pack({**arrays(), "bias": np.zeros(4)}), r"'bias': expected shape \[3\], got \[4\]"),
        (lambda: small().pack({"weight": 0, "gain": 0}), r"missing \['bias', .*not in the layout \['gain'\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected_and_what_came(build, message):
    with pytest.raises(LayoutError, match=message):
        build()


def halves() -> Layout:
    front = [TensorSpec("a.bias", (3,), Kind.RAW), TensorSpec("a.weight", (70, 70), Kind.WEIGHT)]
    back = [TensorSpec("b.weight", (60, 60), Kind.WEIGHT), TensorSpec("b.seen", (2,), Kind.BUFFER)]
    return Layout.halves([*front, TensorSpec("a.seen", (2,), Kind.BUFFER)], back)


def test_the_front_half_is_a_prefix_of_vector_and_segments():
    whole = halves()
    front = whole.front
    assert [tensor.name for tensor in whole.tensors] == ["a.weight", "a.bias", "a.seen", "b.weight", "b.seen"]
    assert front.segments == whole.segments[: len(front.segments)]
    assert front.size == 70 * 70 + 3 + 2 == whole.segments[len(front.segments)].start
    assert front.offsets == {name: whole.offsets[name] for name in front.offsets}
    assert front == Layout.of(front.tensors)


def test_a_layout_that_is_cut_has_another_name_and_comes_back_from_json():
    whole = halves()
    assert Layout.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert whole.digest != Layout.of(whole.tensors).digest
    with pytest.raises(LayoutError, match="expected the layout of a model that is cut in two"):
        small().front.size  # noqa: B018 - asking is enough


@pytest.mark.parametrize("num_front", [5, -1, 2.0, True])
def test_a_cut_outside_the_model_is_refused(num_front):
    document = {**halves().to_json(), "num_front": num_front}
    with pytest.raises(LayoutError, match="expected 0 to 4 tensors in the front half"):
        Layout.from_json(document)


def test_trained_coordinates_skip_buffers_wherever_they_lie():
    whole, prefix = halves(), small()
    kept = whole.trained(np.arange(whole.size))
    assert len(kept) == whole.num_trained == whole.size - 4
    assert not {70 * 70 + 3, 70 * 70 + 4, whole.size - 1} & set(kept.tolist())
    assert np.array_equal(prefix.trained(np.arange(prefix.size)), np.arange(prefix.size - 1))
