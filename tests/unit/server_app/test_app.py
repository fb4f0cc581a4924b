"""The description of the interface says what the routes do."""

from __future__ import annotations

import json

from server_app.app import ROUTES, describe


def test_every_route_is_described_with_who_may_use_it() -> None:
    paths = describe()["paths"]
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        assert operation["summary"].endswith(".")
        assert operation.get("x-role", "") == route.who


def test_every_reference_of_the_description_leads_somewhere() -> None:
    text = json.dumps(describe())
    models = describe()["components"]["schemas"]
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(models)
    assert {"Plan", "RunStatus", "Assignment", "Problem"} <= set(models)
