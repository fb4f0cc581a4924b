"""Write ``table.npy``: ``python -m fedge.codecs.m22.make_table``. It takes about ten seconds.

Every node is designed to the last digits by :mod:`fedge.codecs.m22.newton`; :mod:`fedge.codecs.m22.table` says what the
nodes are and what is kept of each.
"""

from __future__ import annotations

import numpy as np

from fedge.codecs.m22.gamma import Doubles
from fedge.codecs.m22.newton import designed
from fedge.codecs.m22.table import FILE, LARGEST_BITS, LOG_K, LOG_P, Z, share_at, single


def truncations(k: Doubles, p: Doubles, share: Doubles) -> Doubles:
    """Return τ with τ/c̄(τ) = ``share``, float64 ``[laws]``, by bisecting u = τ^k; 0 where ``share`` is."""
    low, high = np.full_like(k, -600.0), np.full_like(k, np.log(400.0))  # of ln u
    for _ in range(60):
        tau = np.exp((low + high) / 2 / k)
        above = tau > share * single(k, p, tau)
        low, high = np.where(above, low, (low + high) / 2), np.where(above, (low + high) / 2, high)
    return np.where(share > 0, np.exp(low / k), 0.0)


def row(k: Doubles, p: Doubles, z: Doubles) -> Doubles:
    """Return T, float64 ``[laws, 14]``, at k, p and z, ``[laws]`` each."""
    tail = z == 1  # exponential
    k, p, z = (np.where(tail, end, v) for v, end in ((k, 1.0), (p, 1.0), (z, 0.0)))
    tau = truncations(k, p, share_at(k, z))
    span = (single(k, p, tau) - tau)[:, None]
    found = []
    for bits in range(2, LARGEST_BITS + 1):
        count = np.full(k.size, 2 ** (bits - 1))
        c = designed(np.ones_like(k), k, p - 1, count, tau, precision=1e-9)
        found.append(np.log((c - tau[:, None]) / span))
    return np.concatenate(found, axis=1)


def main() -> None:
    """Design all nodes, one k at a time, and write the file."""
    p, z = (grid.ravel() for grid in np.meshgrid(np.exp(LOG_P), Z, indexing="ij"))
    rows = [row(np.full_like(p, k), p, z) for k in np.exp(LOG_K)]
    np.save(FILE, np.stack(rows).reshape(LOG_K.size, LOG_P.size, Z.size, -1).astype(np.float16))


if __name__ == "__main__":
    main()
