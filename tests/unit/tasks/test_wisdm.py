import hashlib

import numpy as np
import pytest

from fedge import seeds
from fedge.aggregation import SegmentSums
from fedge.algorithms import FedDyn
from fedge.algorithms.local import LocalSpec, evaluate, train
from fedge.errors import TaskError
from fedge.layout import Kind
from fedge.tasks import wisdm
from fedge.tasks.torch_model import get_params, layout_of

TASK = wisdm.task


@pytest.fixture(scope="module")
def archive():
    with wisdm.DATA.open("rb") as file, np.load(file) as data:
        return dict(data)


def test_the_data_is_the_published_one_and_its_terms_travel_with_it():
    digest = hashlib.sha256(wisdm.DATA.read_bytes()).hexdigest()
    assert digest == "db63292ba326fe9a430e0f1c5a07c18590ef63cc7a2e89fd5759370523f24540"
    terms = (wisdm.DATA.parent / "readme.txt").read_text(encoding="latin-1")
    assert "we request that this readme.txt file is always included" in " ".join(terms.split())


def test_medians_means_and_deviations_are_those_of_all_training_examples(archive):
    features = archive["X"][~archive["is_test"]].astype(np.float64)
    medians = np.nanmedian(features, axis=0)
    filled = np.where(np.isnan(features), medians, features)
    deviations = filled.std(axis=0)
    deviations[deviations == 0] = 1  # XAVG is 0 everywhere
    with wisdm.STATISTICS.open() as file:
        rows = [line.strip().split(",") for line in file][1:]
    assert [row[0] for row in rows] == archive["feature_names"].tolist()
    shipped = np.array([row[1:] for row in rows], float).T
    np.testing.assert_allclose(shipped, [medians, filled.mean(axis=0), deviations], rtol=1e-7, atol=1e-12)


def test_the_36_people_hold_all_training_examples_between_them(archive):
    sizes = [len(TASK.train_data({"user": user})) for user in wisdm.USERS]
    assert sum(sizes) == (~archive["is_test"]).sum() == 4402
    assert (min(sizes), max(sizes)) == (49, 220)
    assert len(TASK.test_data()) == 1016


def test_features_come_without_gaps_and_standardised():
    everyone = np.concatenate([TASK.train_data({"user": user}).inputs for user in wisdm.USERS])
    assert everyone.dtype == np.float32 and everyone.shape == (4402, 43)
    np.testing.assert_allclose(everyone.mean(axis=0), 0, atol=1e-5)
    constant = everyone.std(axis=0) == 0
    assert constant.nonzero()[0].tolist() == [30]
    np.testing.assert_allclose(everyone[:, ~constant].std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"user": 0}, {"user": 37}, {"user": "x"}, {"user": True}, {"user": 1.5}, {"user": 1, "day": 2}]
)
def test_a_bad_user_is_answered_with_the_range_and_what_came(options):
    with pytest.raises(TaskError, match=r"expected the option user, 1\.\.36, got \{"):
        TASK.train_data(options)


def test_a_user_may_be_written_as_text():
    assert len(TASK.train_data({"user": "7"})) == len(TASK.train_data({"user": 7}))


def test_the_model_has_about_eight_segments():
    layout = layout_of(TASK.model(0))
    assert layout.size == 27_558
    assert [s.size for s in layout.segments if s.kind is Kind.WEIGHT] == [4096] * 6 + [2688]


def test_feddyn_learns_it_in_a_few_rounds():
    model = TASK.model(0)
    layout = layout_of(model)
    data = {user: TASK.train_data({"user": user}) for user in wisdm.USERS}
    mean_size = np.mean([len(own) for own in data.values()])
    algorithm, spec = FedDyn(alpha=0.1), LocalSpec(3, 16, 0.1, 1e-3, 10.0)
    state = algorithm.initial(get_params(model, layout))
    duals = {user: np.zeros(layout.size) for user in data}
    for t in range(8):
        sums = SegmentSums(layout)
        for user in (seeds.permutation(seeds.derive(0, t), 36)[:12] + 1).tolist():
            terms = algorithm.local_terms(duals[user], len(data[user]) / mean_size)
            delta = train(TASK, model, data[user], state.params, layout, terms, spec, seeds.derive(t, user)).delta
            for segment in layout.segments:
                sums.add(segment.index, delta[segment.slice], algorithm.weight(len(data[user])))
            duals[user] = algorithm.commit(duals[user], layout.segments, delta)
        state = algorithm.server_step(state, sums, num_devices=36)
    assert evaluate(TASK, model, state.published, layout, TASK.test_data())["accuracy"] > 0.68


def test_every_person_is_a_site_whose_data_can_be_loaded():
    sites = wisdm.task.sites()
    assert list(sites)[:2] == ["user-01", "user-02"]
    assert sum(len(wisdm.task.train_data(options)) for options in sites.values()) == 4402
