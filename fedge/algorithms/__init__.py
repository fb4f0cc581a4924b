"""The table of federated algorithms.

>>> build("feddyn", alpha=0.1).name
'feddyn'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedge.algorithms.base import Algorithm, Dual, LocalTerms, ServerState
from fedge.algorithms.fedavg import FedAvg
from fedge.algorithms.feddyn import FedDyn
from fedge.algorithms.fedprox import FedProx
from fedge.errors import AlgorithmError, UnknownName
from fedge.registry import find

ALGORITHMS: Mapping[str, type[FedAvg] | type[FedProx] | type[FedDyn]] = {
    algorithm.name: algorithm for algorithm in (FedAvg, FedProx, FedDyn)
}

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmError",
    "Dual",
    "FedAvg",
    "FedDyn",
    "FedProx",
    "LocalTerms",
    "ServerState",
    "build",
]


def build(name: str, **settings: Any) -> Algorithm:
    """Return the algorithm ``name`` with ``settings``.

    Raises:
        UnknownName: if there is no such algorithm, or it has no such setting.
        AlgorithmError: if a setting's value is out of range.
    """
    algorithm = find("algorithm", name, ALGORITHMS)
    known = [field.name for field in fields(algorithm)]
    for setting in settings:
        if setting not in known:
            raise UnknownName(f"setting of {name}", setting, known)
    return algorithm(**settings)
