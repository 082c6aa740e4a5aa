"""The stream: batches of the tasks come in order, repeats are encoded once, errors end it."""

import threading
import time

import numpy as np
import pytest
import torch

from dimefm.data import open_rows
from dimefm.extract.stages.base import Batch, Settings, Stage
from dimefm.extract.stages.sample_index import SampleIndex
from dimefm.extract.stages.texts import Texts
from dimefm.extract.stream import ShardTask, encoded

CPU = torch.device("cpu")


class Numbers(Stage):
    """A stage whose input and vector of row i is the number i; some rows take long or fail."""

    how = {}

    def __init__(self, encoder, batch_size=3, fails_at=None, delays=()):
        super().__init__(encoder, Settings(batch_size=batch_size))
        self.fails_at = fails_at
        self.delays = dict(delays)
        self.prepared = []

    def index(self, shard):
        return SampleIndex.from_equal_rows(shard, 1)

    def prepare(self, index, numbers):
        self.prepared.append(list(numbers))
        if self.fails_at in numbers:
            raise RuntimeError("the disk is gone")
        for number in numbers:
            time.sleep(self.delays.get(number, 0))
        batch = Batch(numbers=list(numbers), keys=[str(number) for number in numbers])
        if numbers:
            batch.inputs = torch.tensor(numbers, dtype=torch.float32)[:, None]
        return batch

    def encode(self, inputs):
        return inputs.clone()


@pytest.fixture(params=[(1, False), (1, True), (3, False), (3, True)])
def torch_threads(request):
    """Set the number of torch's threads; return whether encode threads share a batch."""
    threads, split = request.param
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield split
    torch.set_num_threads(before)


def rows_of(stream):
    """Return (task, numbers of its rows, last) of each batch, and check its vectors."""
    rows = []
    for task, batch in stream:
        if batch.pending is not None:
            vectors, _ = batch.pending.fetch()
            assert vectors[:, 0].tolist() == batch.numbers
        rows.append((task, batch.numbers, batch.last))
    return rows


def test_batches_come_in_order_whatever_takes_longest(tiny_teacher, torch_threads):
    stage = Numbers(tiny_teacher, delays={0: 0.1, 4: 0.05})
    tasks = [ShardTask(stage, SampleIndex.from_equal_rows(range(n), 1), range(n)) for n in (7, 2)]
    groups = [[task] for task in tasks]
    assert rows_of(encoded(groups, CPU, 2, torch_threads)) == [
        (tasks[0], [0, 1, 2], False),
        (tasks[0], [3, 4, 5], False),
        (tasks[0], [6], True),
        (tasks[1], [0, 1], True),
    ]


def test_a_task_without_rows_has_one_empty_batch(tiny_teacher, torch_threads):
    task = ShardTask(Numbers(tiny_teacher), SampleIndex.from_equal_rows([], 1), range(0))
    assert rows_of(encoded([[task]], CPU, 2, torch_threads)) == [(task, [], True)]


def test_tasks_of_a_group_are_prepared_together(tiny_teacher, torch_threads):
    stages = [Numbers(tiny_teacher), Numbers(tiny_teacher)]
    index = SampleIndex.from_equal_rows(range(5), 1)
    tasks = [ShardTask(stage, index, (1, 2, 3, 4)) for stage in stages]
    assert rows_of(encoded([tasks], CPU, 2, torch_threads)) == [
        (tasks[0], [1, 2, 3], False),
        (tasks[1], [1, 2, 3], False),
        (tasks[0], [4], True),
        (tasks[1], [4], True),
    ]


def test_the_next_group_is_drawn_only_when_a_thread_is_free_for_it(tiny_teacher, torch_threads):
    stage = Numbers(tiny_teacher)
    drawn = []

    def groups():
        for number in range(100):
            drawn.append(number)
            yield [ShardTask(stage, SampleIndex.from_equal_rows(range(1), 1), range(1))]

    stream = encoded(groups(), CPU, 2, torch_threads)
    next(stream)
    assert len(drawn) < 20
    stream.close()


def test_an_error_while_reading_reaches_the_consumer(tiny_teacher, torch_threads):
    stage = Numbers(tiny_teacher, fails_at=40)
    task = ShardTask(stage, SampleIndex.from_equal_rows(range(300), 1), range(300))
    rows = []
    with pytest.raises(RuntimeError, match="the disk is gone"):
        for _, batch in encoded([[task]], CPU, 2, torch_threads):
            rows += batch.numbers
    assert rows == list(range(len(rows))) and len(rows) <= 39
    assert len(stage.prepared) < 50


def test_closing_the_stream_ends_its_threads_and_restores_those_of_torch(
    tiny_teacher, torch_threads
):
    torch_before = torch.get_num_threads()
    threads_before = threading.active_count()
    stage = Numbers(tiny_teacher)
    task = ShardTask(stage, SampleIndex.from_equal_rows(range(300), 1), range(300))
    stream = encoded([[task]], CPU, 2, torch_threads)
    next(stream)
    stream.close()
    assert threading.active_count() <= threads_before
    assert torch.get_num_threads() == torch_before
    assert len(stage.prepared) < 50


@pytest.fixture
def repeats(tmp_path, tiny_teacher):
    """Return a text stage and the index of a shard of 40 different texts, each of them 8 times."""
    path = tmp_path / "repeats.txt"
    path.write_text("".join(f"text {number % 40}\n" for number in range(320)))
    (shard,) = open_rows([path], "text").shards
    stage = Texts(tiny_teacher, Settings(batch_size=2))  # 64 texts are prepared together
    return stage, stage.index(shard)


def test_repeats_of_a_shard_refer_to_the_vector_of_the_first(repeats):
    stage, index = repeats
    task = ShardTask(stage, index, range(320))
    vectors = []
    vector_numbers = []
    for _, batch in encoded([[task]], CPU, 2, stage.split_batch_across_threads):
        if batch.pending is not None:
            vectors.append(batch.pending.fetch()[0])
        vector_numbers += batch.vector_numbers.tolist()
    assert [len(part) for part in vectors] == [40]
    assert vector_numbers == [number % 40 for number in range(320)]
    assert task.seen is None


def test_without_deduplication_every_input_is_encoded(repeats):
    stage, index = repeats
    task = ShardTask(stage, index, range(320), None)
    vectors = []
    for _, batch in encoded([[task]], CPU, 2, stage.split_batch_across_threads):
        assert batch.vector_numbers is None
        vectors.append(batch.pending.fetch()[0])
    rows = np.concatenate(vectors)
    assert len(rows) == 320
    np.testing.assert_allclose(rows[:40], rows[280:], atol=1e-5)
