"""FedDyn as its authors' code keeps it, to hold fedge's against. It shares no code with ``fedge.algorithms``.

    device:  x_k = argmin L_k(x) + α_k·⟨u_k - θ, x⟩ + (α_k/2)·‖x‖²,   α_k = α/w_k        u_k ← u_k + x_k - θ
    server:  sel = mean of x_k over the participants,   cloud = sel + mean of u_k over all devices  (θ of the next)

The server keeps every u_k, 20 vectors, and takes their mean anew each round: there is no running sum that could drift.
An upload that does not arrive leaves no trace on either side. Coordinates that nobody delivered stay as they are.

Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021 (https://arxiv.org/abs/2111.04263);
``sel`` and ``cloud`` as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tests.support.softmax_regression import Array, Device


def textbook(
    devices: Sequence[Device], sizes: Array, alpha: float, rounds: Iterable[tuple[list[int], npt.NDArray[np.bool_]]]
) -> Iterator[tuple[Array, Array]]:
    """Yield (sel, cloud) after each of ``rounds``: participants, and the coordinates that arrived, bool ``[4, d]``."""
    cloud = np.zeros_like(devices[0].x)
    sel, u = cloud, np.zeros((len(devices), cloud.size))
    for participants, arrived in rounds:
        models = np.empty(arrived.shape)
        for row, k in enumerate(participants):
            strength = alpha / sizes[k]
            models[row] = devices[k].solve(strength * (u[k] - cloud), strength)
        u[participants] += np.where(arrived, models - cloud, 0.0)
        anybody, number = arrived.any(0), np.maximum(arrived.sum(0), 1)
        mean = np.where(arrived, models, 0.0).sum(0) / number
        sel = np.where(anybody, mean, sel)
        cloud = np.where(anybody, mean + u.mean(0), cloud)
        yield sel, cloud
