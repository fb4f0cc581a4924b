"""How log records look."""

import json
import logging

from device_app.logs import JsonLines, OneLine


def record(**facts):
    made = logging.getLogger("device_app.agent").makeRecord(
        "device_app.agent", logging.INFO, "agent.py", 1, "idle -> fetching", (), None, extra=facts
    )
    made.created = 0.25
    return made


def test_a_line_for_people_ends_with_its_facts():
    line = OneLine().format(record(device="pi-1", round=7, loss=0.123456, reason="no luck"))
    assert line.endswith('INFO    agent: idle -> fetching  device=pi-1 round=7 loss=0.1235 reason="no luck"')


def test_a_line_for_programs_is_one_json_object():
    line = json.loads(JsonLines().format(record(device="pi-1", round=7)))
    assert line == {
        "at": "1970-01-01T00:00:00.250+00:00",
        "level": "INFO",
        "logger": "device_app.agent",
        "event": "idle -> fetching",
        "device": "pi-1",
        "round": 7,
    }
