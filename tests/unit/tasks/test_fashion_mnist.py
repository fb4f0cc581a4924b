import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedge.algorithms import FedAvg
from fedge.algorithms.local import LocalSpec, evaluate, train
from fedge.errors import TaskError
from fedge.layout import Kind
from fedge.tasks import fashion_mnist
from fedge.tasks.fashion_mnist import DEVIATION, MEAN, task
from fedge.tasks.sources import FASHION_MNIST
from fedge.tasks.torch_model import get_params, layout_of

SAMPLE = Path(__file__).parents[2] / "data"


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("FEDGE_DATA", raising=False)


def options(**others):
    return {"folder": str(SAMPLE), "devices": 4, "device": 0, **others}


@pytest.mark.parametrize("how", fashion_mnist.PARTITIONS)
def test_the_devices_hold_different_pictures_of_the_same_number(how):
    parts = [task.train_data(options(partition=how, device=device)) for device in range(4)]
    assert [len(part) for part in parts] == [40] * 4
    pictures = {picture.tobytes() for part in parts for picture in part.inputs}
    assert len(pictures) == 160
    assert sorted(np.concatenate([part.targets for part in parts]).tolist()) == sorted([*range(10)] * 16)


def test_pictures_and_labels_are_those_of_the_file():
    part = task.train_data(options(partition="iid", devices=1))
    with gzip.open(SAMPLE / "fashion-mnist" / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    assert part.inputs.dtype == np.float32 and part.targets.dtype == np.int64
    np.testing.assert_allclose(part.inputs * DEVIATION + MEAN, pixels / 255, atol=1e-6)
    assert part.targets[0] == 9  # the first picture of the data set is an ankle boot


def test_options_may_be_written_as_text():
    text = options(partition="dirichlet", devices="4", device="2", beta="0.3", seed="5")
    numbers = options(partition="dirichlet", devices=4, device=2, beta=0.3, seed=5)
    assert task.train_data(text).inputs.tobytes() == task.train_data(numbers).inputs.tobytes()


def test_the_environment_names_the_folder_where_the_options_do_not(monkeypatch):
    with pytest.raises(TaskError, match=r"expected the option folder, or FEDGE_DATA.*fedge data get fashion-mnist"):
        task.train_data({"device": 0})
    assert task.test_data() is None
    monkeypatch.setenv("FEDGE_DATA", str(SAMPLE))
    assert len(task.train_data({"device": 0, "devices": 4})) == 40
    test = task.test_data()
    assert len(test) == 50 and np.bincount(test.targets).tolist() == [5] * 10


def test_the_folder_may_be_that_of_the_data_set_itself():
    assert len(task.train_data(options(folder=str(SAMPLE / "fashion-mnist")))) == 40


def test_its_sites_are_the_hundred_devices_of_one_partition(monkeypatch):
    monkeypatch.setenv("FEDGE_DATA", str(SAMPLE))
    sites = task.sites()
    assert len(sites) == 100 and list(sites)[7] == "fashion-07"
    assert sum(len(task.train_data(named)) for named in sites.values()) == 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"partition": "random"}, "expected a partition of iid, dirichlet, shards, got 'random'"),
        ({"device": 4}, r"expected the option device in 0\.\.3, got 4"),
        ({"device": -1}, r"0\.\.3"),
        ({"device": True}, "device to be a whole number, got True"),
        ({"device": 1.5}, "device to be a whole number, got 1.5"),
        ({"device": "x"}, "device to be a whole number, got 'x'"),
        ({"device": None}, "device to be a whole number"),
        ({"beta": "inf"}, "beta to be a number"),
        ({"beta": 0}, "beta above 0"),
        ({"devices": 161}, "expected 1 to 160 devices"),
        ({"betta": 1}, "got 'betta'"),
        ({"folder": 3}, "folder to be a path, got 3"),
        ({"folder": "nowhere"}, "expected the file nowhere/train-labels-idx1-ubyte.gz, there is none"),
    ],
)
def test_a_wrong_option_is_answered_with_what_is_right(wrong, message):
    with pytest.raises(TaskError, match=message):
        task.train_data(options(**wrong))


def test_which_device_this_is_has_no_default():
    with pytest.raises(TaskError, match="expected the option device"):
        task.train_data({"folder": str(SAMPLE)})


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SAMPLE / "fashion-mnist", tmp_path / "fashion-mnist")
    return tmp_path


def packed(*dims, magic, body=b""):
    return gzip.compress(np.array([magic, *dims], ">u4").tobytes() + body, mtime=0)  # the same bytes at any time


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels-idx1", b"no gzip", "expected a whole gzip file"),
        ("labels-idx1", packed(160, magic=2049, body=bytes(159)), "expected 160 more bytes, got 159"),
        ("labels-idx1", packed(160, magic=2051, body=bytes(160)), "begins with 2049, got 2051"),
        ("labels-idx1", packed(160, magic=2049, body=b"\x0a" * 160), r"expected labels 0\.\.9, got \[10\]"),
        ("images-idx3", packed(160, 28, 27, magic=2051), "expected 160 pictures of 28 x 28"),
        ("images-idx3", packed(161, 28, 28, magic=2051), "as many as labels"),
        ("images-idx3", packed(160, 28, 28, magic=2051, body=bytes(1000)), "more bytes, got 1000"),
        ("images-idx3", packed(160, 28, 28, magic=2051, body=bytes(125440))[:-30], "expected a whole gzip file"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(copy, name, content, message):
    path = copy / "fashion-mnist" / f"train-{name}-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message) as caught:
        task.train_data(options(folder=str(copy)))
    assert str(path) in str(caught.value)


def test_the_model_has_ten_segments():
    layout = layout_of(task.model(0))
    assert layout.size == 80_202
    assert [s.size for s in layout.segments if s.kind is Kind.WEIGHT] == [8192] * 9 + [6288]


def test_it_learns_the_sample(monkeypatch):
    monkeypatch.setenv("FEDGE_DATA", str(SAMPLE))
    model = task.model(0)
    layout, data = layout_of(model), task.train_data(options(partition="iid", devices=1))
    anchor, terms = get_params(model, layout), FedAvg().local_terms(None, 1.0)
    result = train(task, model, data, anchor, layout, terms, LocalSpec(8, 10, 0.05, 1e-3, 10.0), seed=0)
    figures = evaluate(task, model, anchor + result.delta, layout, task.test_data())
    assert figures["accuracy"] > 0.55


def test_its_licence_travels_with_the_sample():
    assert "The MIT License (MIT) Copyright © 2017 Zalando SE" in (SAMPLE / "fashion-mnist" / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in (SAMPLE / "fashion-mnist").iterdir()) < 100_000
    assert {file.name for file in FASHION_MNIST.files} < {path.name for path in (SAMPLE / "fashion-mnist").iterdir()}
