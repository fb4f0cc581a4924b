import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.budget import MIN_BITS, bytes_allowed, rate
from fedge.errors import BudgetError
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import update_bytes
from schemas.specs import DownlinkSpec, LinkLimit, UplinkSpec

LAYOUT = Layout.of([TensorSpec("w", (300, 500), Kind.WEIGHT), TensorSpec("b", (500,), Kind.RAW)])
SMALL = Layout.of([TensorSpec("w", (40, 50), Kind.WEIGHT), TensorSpec("b", (50,), Kind.RAW)])


def test_without_a_limit_the_plan_decides():
    assert rate(LAYOUT, UplinkSpec(bits=1.7), LinkLimit()) == 1.7


def test_a_limit_in_bits_lowers_the_rate_and_never_raises_it():
    assert rate(LAYOUT, UplinkSpec(bits=2.0), LinkLimit(bits=0.5)) == 0.5
    assert rate(LAYOUT, UplinkSpec(bits=2.0), LinkLimit(bits=4.0)) == 2.0


@given(st.sampled_from([LAYOUT, SMALL]), st.integers(1, 200_000))
def test_frames_never_exceed_a_budget_in_bytes_and_use_nearly_all_of_it(layout, budget):
    spec = UplinkSpec(bits=8.0)
    try:
        bits = rate(layout, spec, LinkLimit(bytes_per_round=budget))
    except BudgetError:
        assert update_bytes(layout, spec.codec_name, MIN_BITS) > budget
        return
    used = update_bytes(layout, spec.codec_name, bits)
    assert used <= budget
    # The next rate that changes anything costs a byte in some segment; allow one such step for each.
    assert bits == 8.0 or budget - used <= 16 * len(layout.segments)


def test_a_speed_held_for_some_seconds_is_a_budget_in_bytes():
    assert bytes_allowed(LinkLimit(bytes_per_second=1000.0, deadline_seconds=12.5)) == 12_500
    assert bytes_allowed(LinkLimit(bytes_per_second=10.0, deadline_seconds=5.0, bytes_per_round=40)) == 40
    assert bytes_allowed(LinkLimit()) is None


def test_a_budget_too_small_for_anything_names_the_minimum():
    least = update_bytes(LAYOUT, UplinkSpec().codec_name, MIN_BITS)
    with pytest.raises(BudgetError, match=f"at least {least} bytes"):
        rate(LAYOUT, UplinkSpec(), LinkLimit(bytes_per_round=least - 1))
    assert rate(LAYOUT, UplinkSpec(), LinkLimit(bytes_per_round=least)) >= MIN_BITS


def test_float32_has_one_rate_only():
    spec = DownlinkSpec(codec="none")
    needed = update_bytes(LAYOUT, "none", 4.0)
    assert rate(LAYOUT, spec, LinkLimit(bytes_per_round=needed)) == spec.bits
    with pytest.raises(BudgetError, match=f"at least {needed} bytes"):
        rate(LAYOUT, spec, LinkLimit(bytes_per_round=needed - 1))
    with pytest.raises(BudgetError, match="codec is none"):
        rate(LAYOUT, spec, LinkLimit(bits=1.0))


def test_a_speed_and_a_deadline_beyond_all_numbers_are_no_limit():
    endless = LinkLimit(bytes_per_second=1e200, deadline_seconds=1e200)
    assert rate(LAYOUT, UplinkSpec(bits=3.0), endless) == 3.0
