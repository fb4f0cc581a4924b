from collections import Counter

from fedge.selection import choose_cohort

DEVICES = [f"d{i}" for i in range(20)]


def test_the_draw_does_not_depend_on_the_order_of_the_devices():
    assert choose_cohort(1, 4, DEVICES, 5) == choose_cohort(1, 4, reversed(DEVICES), 5)


def test_a_missing_device_leaves_the_order_of_the_others_as_it_was():
    cohort = choose_cohort(1, 4, DEVICES, 20)
    without = choose_cohort(1, 4, [d for d in DEVICES if d != cohort[3]], 20)
    assert without == cohort[:3] + cohort[4:]


def test_fewer_devices_than_wanted_are_all_chosen():
    assert set(choose_cohort(1, 1, DEVICES[:3], 12)) == set(DEVICES[:3])


def test_every_device_is_drawn_equally_often():
    rounds = 4000
    counts = Counter(device for n in range(rounds) for device in choose_cohort(5, n, DEVICES, 5))
    expected, deviation = rounds / 4, (rounds * 0.25 * 0.75) ** 0.5
    assert all(abs(counts[device] - expected) < 5 * deviation for device in DEVICES)
