from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.algorithms import FedAvg
from fedge.algorithms.local import LocalSpec, evaluate, train
from fedge.errors import TaskError
from fedge.layout import Kind
from fedge.tasks import shakespeare
from fedge.tasks.shakespeare import CHARACTERS, WINDOW, task
from fedge.tasks.torch_model import get_params, layout_of

SAMPLE = Path(__file__).parents[2] / "data"
OPHELIA = 4


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("FEDGE_DATA", raising=False)


@pytest.fixture(scope="module")
def archive():
    with np.load(SAMPLE / "shakespeare" / "shakespeare_roles.npz") as file:
        return dict(file)


def options(role, folder=SAMPLE):
    return {"folder": str(folder), "role": role}


def said(windows) -> str:
    return "".join(CHARACTERS[code] for code in windows.reshape(-1))


def test_a_device_reads_its_role_and_every_target_is_the_character_after(archive):
    data = task.train_data(options("OPHELIA"))
    begin, end = archive["offsets"][OPHELIA], archive["train_end"][OPHELIA]
    text = bytes(archive["text"][begin:end]).decode()
    assert data.inputs.shape == data.targets.shape == ((len(text) - 1) // WINDOW, WINDOW)
    assert said(data.inputs) == text[: data.inputs.size]
    assert said(data.targets) == text[1 : data.targets.size + 1]


@pytest.mark.parametrize("role", [OPHELIA, str(OPHELIA), "OPHELIA", "Hamlet: OPHELIA"])
def test_a_role_goes_by_index_by_name_or_by_play_and_name(role):
    data = task.train_data(options(role))
    assert data.inputs.tobytes() == task.train_data(options(OPHELIA)).inputs.tobytes()


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("OFELIA", "such as 'OPHELIA', got 'OFELIA'"),
        ("FIRST GENTLEMAN", "one of 'Cymbeline: FIRST GENTLEMAN', 'Henry VIII: FIRST GENTLEMAN'"),
        ("BERNARDO", "at least 2000 characters, got 'BERNARDO with 1195'"),
        (6, r"a role of 0\.\.5, got 6"),
        (-1, r"0\.\.5"),
        (True, "a role's index or name"),
        (1.5, "a role's index or name"),
    ],
)
def test_a_role_that_is_none_or_not_one_is_answered_with_those_there_are(role, message):
    with pytest.raises(TaskError, match=message):
        task.train_data(options(role))


@pytest.mark.parametrize("wrong", [{}, {"folder": "x"}, {"role": 1, "play": 2}])
def test_other_options_are_refused(wrong):
    with pytest.raises(TaskError, match="expected the options role and folder"):
        task.train_data(wrong)


def test_its_sites_are_the_roles_of_two_thousand_characters_and_more(monkeypatch):
    with pytest.raises(TaskError, match="FEDGE_DATA"):
        task.sites()
    monkeypatch.setenv("FEDGE_DATA", str(SAMPLE))
    sites = task.sites()
    assert list(sites) == ["role-0000", "role-0001", "role-0003", "role-0004", "role-0005"]
    assert [len(task.train_data(named)) for named in sites.values()] == [13, 35, 22, 59, 22]


def test_the_test_data_is_what_the_roles_do_not_train_on(monkeypatch, archive):
    assert task.test_data() is None
    monkeypatch.setenv("FEDGE_DATA", str(SAMPLE))
    test = task.test_data()
    offsets, ends = archive["offsets"], archive["train_end"]
    lengths = [offsets[role + 1] - ends[role] for role in (0, 1, 3, 4, 5)]
    assert len(test) == sum((length - 1) // WINDOW for length in lengths)
    whole = bytes(archive["text"]).decode()
    assert said(test.inputs[0]) == whole[ends[0] : ends[0] + WINDOW]
    monkeypatch.setattr(shakespeare, "TEST_WINDOWS", 7)
    some, again = task.test_data(), task.test_data()
    assert len(some) == 7 and np.array_equal(some.inputs, again.inputs)


def test_a_broken_archive_is_named_with_the_layout_wanted(tmp_path, archive):
    path = tmp_path / "shakespeare_roles.npz"
    for content, message in (
        (b"nothing", "expected a NumPy archive: text uint8"),
        ({**archive, "train_end": archive["train_end"][:-1]}, "expected offsets and train_end that cut 18378"),
        ({**archive, "offsets": archive["offsets"][::-1]}, "expected offsets and train_end"),
        ({**archive, "text": archive["text"][:-1]}, "that cut 18377 characters"),
        ({name: part for name, part in archive.items() if name != "play"}, "expected a NumPy archive"),
    ):
        path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
        with pytest.raises(TaskError, match=message) as caught:
            task.train_data(options(0, tmp_path))
        assert str(path) in str(caught.value)


def test_a_character_that_is_not_in_the_plays_is_refused(tmp_path, archive):
    text = archive["text"].copy()
    text[5] = ord("#")
    np.savez(tmp_path / "shakespeare_roles.npz", **{**archive, "text": text})
    with pytest.raises(TaskError, match="of the 76 characters of the plays, got '#'"):
        task.train_data(options(0, tmp_path))


def test_the_model_has_eight_segments():
    layout = layout_of(task.model(0))
    assert layout.size == 133_084
    assert [s.size for s in layout.segments if s.kind is Kind.WEIGHT] == [16_384] * 7 + [16_720]


def test_loss_and_accuracy_are_means_over_all_positions():
    outputs = torch.zeros(2, 3, 76)
    targets = torch.tensor([[1, 2, 3], [4, 5, 0]])
    assert task.loss(outputs, targets).item() == pytest.approx(np.log(76))
    assert task.metrics(outputs, targets)["accuracy"] == pytest.approx(1 / 6)


def test_it_learns_the_sample(monkeypatch):
    monkeypatch.setenv("FEDGE_DATA", str(SAMPLE))
    model = task.model(0)
    layout, data = layout_of(model), task.train_data(options("OPHELIA"))
    anchor, terms = get_params(model, layout), FedAvg().local_terms(None, 1.0)
    result = train(task, model, data, anchor, layout, terms, LocalSpec(4, 10, 2.0, 0.0, 10.0), seed=0)
    figures = evaluate(task, model, anchor + result.delta, layout, task.test_data())
    assert figures["loss"] < 3.5 < np.log(76)


def test_the_sample_is_small_and_says_that_it_is_free():
    folder = SAMPLE / "shakespeare"
    assert "public domain" in (folder / "LICENSE.txt").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000
