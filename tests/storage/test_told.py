"""Each byte is told once, however it is read."""

import io
from contextlib import nullcontext
from functools import partial

import pytest

from mlmigrate.storage.objects import FileBody
from mlmigrate.storage.told import BLOCK, MOST_BLOCKS, Passage, telling

SIZE = 3 * BLOCK + 17


@pytest.fixture
def told():
    return []


def opener(size=SIZE):
    return partial(lambda: nullcontext(io.BytesIO(bytes(size))))


def test_bytes_are_told_as_they_are_read(told):
    with Passage(SIZE, told.append).opener(opener())() as stream:
        while stream.read(BLOCK // 2):
            pass
    assert told == [BLOCK, BLOCK, BLOCK, 17]


def test_what_is_read_again_is_not_told_again(told):
    opened = Passage(SIZE, told.append).opener(opener())
    for _ in range(2):
        with opened() as stream:
            assert len(stream.read()) == SIZE
    assert sum(told) == SIZE


def test_who_goes_back_tells_nothing_twice(told):
    with Passage(SIZE, told.append).opener(opener())() as stream:
        stream.read(BLOCK)
        stream.seek(0)
        assert stream.tell() == 0
        stream.read()
    assert sum(told) == SIZE


def test_readinto_tells_too(told):
    with Passage(SIZE, told.append).opener(opener())() as stream:
        assert len(io.BufferedReader(stream).read()) == SIZE
    assert sum(told) == SIZE


def test_parts_are_told_in_any_order_and_tried_again(told, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE))
    passage = Passage(SIZE, told.append)
    body = passage.body(FileBody(file, SIZE))
    assert body.size == SIZE
    for start, length in ((2 * BLOCK, BLOCK + 17), (0, 2 * BLOCK), (0, 2 * BLOCK)):
        with body.open(start, length) as stream:
            assert len(stream.read()) == length
    passage.done()
    assert sum(told) == SIZE


def test_what_a_store_copies_by_itself_is_told_when_it_is_done(told):
    passage = Passage(SIZE, told.append)
    passage.done()
    passage.done()
    assert told == [SIZE]


def test_of_an_unknown_size_the_furthest_byte_counts(told):
    opened = Passage(None, told.append).opener(opener())
    for _ in range(2):
        with opened() as stream:
            while stream.read(1000):
                pass
    assert sum(told) == SIZE


def test_a_file_that_grew_tells_no_more_than_it_was_said_to_have(told):
    with Passage(100, told.append).opener(opener(5000))() as stream:
        stream.read()
    assert sum(told) == 100


def test_the_largest_file_needs_little_memory(told):
    passage = Passage(5 << 40, told.append)
    for start in range(0, 5 << 40, 5 << 30):
        passage.passed(start, 5 << 30)
    assert sum(told) == 5 << 40
    assert passage._seen.bit_length() <= MOST_BLOCKS


def test_an_opener_that_is_a_body_stays_one(told, tmp_path):
    class Parts:
        size = SIZE

        def __call__(self):
            return nullcontext(io.BytesIO(bytes(SIZE)))

        def open(self, start, length):
            return nullcontext(io.BytesIO(bytes(length)))

    opened = Passage(SIZE, told.append).opener(Parts())
    assert opened.size == SIZE
    with opened.open(BLOCK, BLOCK) as stream:
        stream.read()
    assert told == [BLOCK]
    assert not hasattr(Passage(SIZE, told.append).opener(opener()), "open")


def test_each_reading_is_paid_for(told):
    paid = []
    opened = Passage(SIZE, told.append, paid.append).opener(opener())
    for _ in range(2):
        with opened() as stream:
            stream.read()
    assert sum(paid) == 2 * SIZE


def test_a_body_tells_where_it_is_read(told, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(SIZE))
    body = FileBody(file, SIZE)
    assert telling(body, None) is body
    with telling(body, lambda at, length: told.append((at, length))).open(BLOCK, 10) as stream:
        while stream.read(4):
            pass
    assert [one for one in told if one[1]] == [(BLOCK, 4), (BLOCK + 4, 4), (BLOCK + 8, 2)]
