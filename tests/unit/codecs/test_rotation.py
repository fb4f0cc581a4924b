import numpy as np
import pytest

from fedge.codecs import rotation
from fedge.codecs.rotation import BLOCK

TAILS = [32, 33, 40, 63, 64, 65, 127, 128, 129, 200, 511, 513, 1000, 2049, 4095]


def matrix(n: int, seed: int) -> np.ndarray:
    """The rotation of a tail as a float64 matrix, column by column."""
    return np.stack([rotation.rotate_tail(e, seed, 0) for e in np.eye(n, dtype=np.float32)], axis=1).astype(float)


@pytest.mark.parametrize("n", [32, 33, 63, 100, 130])
def test_the_tail_rotation_is_orthonormal(n):
    r = matrix(n, seed=5)
    assert np.abs(r @ r.T - np.eye(n)).max() < 1e-6


@pytest.mark.parametrize("n", TAILS)
def test_unrotating_a_tail_undoes_it(n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    back = rotation.unrotate_tail(rotation.rotate_tail(x, 9, 3), 9, 3)
    np.testing.assert_allclose(back, x, atol=3e-6)


def test_unrotating_full_blocks_undoes_it_up_to_the_power_of_two():
    x = np.random.default_rng(0).standard_normal((BLOCK, 3)).astype(np.float32)
    lanes, work = rotation.block_lanes(7, 2, 3), rotation.Workspace(3)
    work.x[:] = x
    work.rotate(lanes)
    np.testing.assert_allclose(np.linalg.norm(work.x, axis=0), BLOCK * np.linalg.norm(x, axis=0), rtol=1e-5)
    work.unrotate(lanes)
    np.testing.assert_allclose(work.x / BLOCK**2, x, atol=1e-5)


def test_the_full_rotation_is_two_hadamard_transforms_with_signs():
    h = np.array([[1.0]])
    while h.shape[0] < 64:
        h = np.block([[h, h], [h, -h]])
    x = np.random.default_rng(0).standard_normal(BLOCK).astype(np.float32)
    d1, d2 = np.where(rotation.sign_sets(7, 0, 2) >> 31, -1.0, 1.0)
    expected = (h @ (d1 * x).reshape(64, 64) @ h).T
    expected = (h @ (d2 * expected.reshape(-1)).reshape(64, 64) @ h).T.reshape(-1)
    work = rotation.Workspace(1)
    work.x[:, 0] = x
    work.rotate(rotation.block_lanes(7, 0, 1))
    np.testing.assert_allclose(work.x[:, 0], expected, rtol=1e-3, atol=0.05)


def test_a_block_is_rotated_to_the_same_bits_whichever_blocks_are_beside_it():
    x = np.random.default_rng(0).standard_normal((BLOCK, 5)).astype(np.float32)
    together = rotation.Workspace(5)
    together.x[:] = x
    together.rotate(rotation.block_lanes(7, 10, 5))
    for k in range(5):
        alone = rotation.Workspace(1)
        alone.x[:, 0] = x[:, k]
        alone.rotate(rotation.block_lanes(7, 10 + k, 1))
        assert alone.x.tobytes() == np.ascontiguousarray(together.x[:, k]).tobytes()


@pytest.mark.parametrize("n", TAILS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_coordinate_is_spread_over_the_whole_tail(n, place):
    x = np.zeros(n, dtype=np.float32)
    x[{"first": 0, "middle": n // 2, "last": n - 1}[place]] = 1
    energy = np.mean([rotation.rotate_tail(x, seed, 0) ** 2 for seed in range(400)], axis=0) * n
    assert energy.max() < 1.6 and energy.min() > 0.6  # 1 everywhere, up to the noise of 400 draws
    assert [part.mean() for part in np.array_split(energy, 4)] == pytest.approx([1] * 4, abs=0.08)


def test_signs_are_fair_and_differ_between_sets_blocks_and_seeds():
    signs = np.where(rotation.sign_sets(3, 0, 64) >> 31, -1.0, 1.0)
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    correlation = signs @ signs.T / BLOCK - np.eye(64)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(BLOCK)
    other = np.where(rotation.sign_sets(4, 0, 64) >> 31, -1.0, 1.0)
    assert np.abs(signs @ other.T / BLOCK).max() < 5.5 / np.sqrt(BLOCK)


def test_the_sets_of_a_block_do_not_depend_on_how_many_are_asked_for():
    assert np.array_equal(rotation.block_lanes(3, 5, 2)[:, :, 1], rotation.block_lanes(3, 6, 1)[:, :, 0])
    assert np.array_equal(rotation.sign_sets(3, 10, 4)[2], rotation.sign_sets(3, 12, 1)[0])
