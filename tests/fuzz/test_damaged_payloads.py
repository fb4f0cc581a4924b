"""A slice of what ``make fuzz`` does, and proof that the fuzzer would notice."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest

from fedge.codecs import Eden, Identity, native_available
from fedge.errors import CodecError
from fedge.frames import FrameReader
from tests.fuzz import fuzz_payloads, payloads, streams
from tests.fuzz.damage import DAMAGES
from tests.support.kernels import ISAS


def test_thousands_of_damaged_payloads_are_refused_or_decode_to_finite_numbers():
    tally = fuzz_payloads.fuzz(seed=0, first=0, count=20_000 if native_available() else 1_500)
    assert {*DAMAGES, "stream"} == {*tally.decoded, *tally.refused}
    assert all(tally.decoded[kind] > 0 for kind in ("whole", "noise_behind_the_version", "flipped", "stream"))
    assert tally.refused.total() > 500


def test_no_case_calls_for_gigabytes_of_zeros_that_a_few_bytes_may_stand_for():
    declared = {case.size for case in (payloads.draw(Random(20261129 << 40 | number)) for number in (55_069, 536_751))}
    assert declared == {payloads.MOST_ZEROS}


def test_the_same_case_is_drawn_from_the_same_number():
    first, again = (fuzz_payloads.fuzz(seed=3, first=1000, count=200) for _ in range(2))
    other = fuzz_payloads.fuzz(seed=4, first=1000, count=200)
    assert first.digest.digest() == again.digest.digest() != other.digest.digest()


def crash(*arguments, **named):
    raise ValueError("read behind the end")


def not_a_number(codec, data, size, seed, received=None):
    return np.full(size, np.nan, np.float32)


def another_size(codec, data, size, seed, received=None):
    return np.zeros(max(size, 0) + 1, np.float32)


def adds_too_much(codec, data, size, seed, weight, out, received=None):
    out += 1


def writes_before_it_checks(codec, data, size, seed, weight, out, received=None):
    out[:1] += 1
    codec.decode(data, size, seed, received)
    raise CodecError("too late")


genuine = Identity.decode


def hoards(codec, data, size, seed, received=None):
    np.zeros(20_000_000 + 4 * min(max(size, 0), 1 << 20), np.uint8)
    return genuine(codec, data, size, seed, received)


@pytest.mark.parametrize(
    ("method", "broken", "message"),
    [
        ("decode", crash, "read behind the end"),
        ("decode", not_a_number, "not finite"),
        ("decode", another_size, "of shape"),
        ("decode", hoards, "bytes of memory"),
        ("accumulate", adds_too_much, "another sum|not decoded"),
        ("accumulate", writes_before_it_checks, "another sum|not accumulated"),
    ],
)
def test_a_codec_that_breaks_a_promise_is_found_with_the_way_to_see_it_again(monkeypatch, method, broken, message):
    monkeypatch.setattr(Identity, method, broken)
    with pytest.raises(AssertionError, match=rf"--seed 1 --first \d+ --count 1: .*({message})"):
        fuzz_payloads.fuzz(seed=1, first=0, count=4000)


def test_a_codec_that_hangs_ends_the_run_with_a_traceback():
    script = (
        "import sys, time; from fedge.codecs import Identity; from tests.fuzz import fuzz_payloads; "
        "Identity.decode = lambda *arguments: time.sleep(1000); "
        "sys.argv[1:] = ['--count', '500', '--batch-seconds', '2']; fuzz_payloads.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Timeout" in done.stderr and "payloads.py" in done.stderr


@pytest.mark.skipif(not ISAS, reason="the twin is alone")
def test_implementations_that_disagree_are_found(monkeypatch):
    monkeypatch.setattr("fedge.codecs.twin.HEADROOM", 32.001)
    with pytest.raises(AssertionError, match="numpy decodes to other numbers"):
        fuzz_payloads.fuzz(seed=1, first=0, count=8000)


def test_a_reader_that_lets_anything_pass_is_found(monkeypatch):
    monkeypatch.setattr(FrameReader, "feed", lambda reader, data: [b"short"])
    with pytest.raises(AssertionError):
        fuzz_payloads.fuzz(seed=1, first=0, count=100)


def test_sound_payloads_and_streams_come_through():
    case = payloads.Case(Eden(2.0), Eden(2.0).encode(np.ones(100), 9), 100, 9, None, 1.0, "whole")
    for number in range(300):
        assert payloads.check(case, number) is not None
    upload = streams.Upload(b"".join(streams.frames("eden", 2.5)), "eden", 2.5, 7, "whole")
    assert len(streams.check(upload)) == len(streams.LAYOUT.segments)
