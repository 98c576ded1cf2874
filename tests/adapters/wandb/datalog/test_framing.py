"""LevelDB's log format: what is written is what the format says; what is damaged is skipped and told."""

import io
import random

import pytest

from mlmigrate.adapters.wandb.datalog.framing import BLOCK, Frames, records


def written(payloads):
    out = io.BytesIO()
    frames = Frames(out)
    for payload in payloads:
        frames.add(payload)
    frames.flush()
    return out.getvalue()


def read(data):
    told = []
    found = [record for _, record in records(io.BytesIO(data), len(data), lambda at, why: told.append((at, why)))]
    return found, told


# the first record leaves so many bytes in its block; a record after it of one byte, and one of blocks
@pytest.mark.parametrize("left", [0, 1, 6, 7, 8, 14, 15, 100])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 93, BLOCK - 7, BLOCK, 5 * BLOCK])
def test_a_record_lies_right_wherever_it_begins_in_a_block(left, size, plain, tmp_path):
    payloads = [b"a" * (BLOCK - 7 - 7 - left), b"b" * size, b"c"]
    file = tmp_path / "log"
    file.write_bytes(written(payloads))
    assert list(plain.payloads(file)) == payloads
    assert read(file.read_bytes()) == (payloads, [])


def test_many_records_of_all_sizes_are_read_as_they_were_written(plain, tmp_path):
    chance = random.Random(5)
    payloads = [chance.randbytes(int(10 ** chance.uniform(0, 5.3))) for _ in range(300)]
    file = tmp_path / "log"
    file.write_bytes(written(payloads))
    assert list(plain.payloads(file)) == payloads
    assert read(file.read_bytes()) == (payloads, [])


def test_a_damaged_record_costs_its_block_and_no_more():
    payloads = [bytes([n]) * 1000 for n in range(200)]
    data = bytearray(written(payloads))
    data[7 + 5 * 1007 + 500] ^= 1  # in the sixth record; 32 of them fit into the first block
    found, told = read(bytes(data))
    assert found == payloads[:5] + payloads[33:]  # the 33rd begins in the damaged block
    assert told == [(7 + 5 * 1007, "a record is damaged; what follows in its block is skipped")]


def test_a_damaged_piece_of_a_long_record_costs_the_record():
    payloads = [b"x", b"y" * 5 * BLOCK, b"z"]
    data = bytearray(written(payloads))
    data[3 * BLOCK + 100] ^= 1
    found, told = read(bytes(data))
    assert found == [b"x", b"z"]
    assert [at for at, _ in told] == [3 * BLOCK]


def test_blocks_of_zeros_are_room_that_was_never_used():
    whole = written([b"a" * 100])
    assert read(whole + bytes(3 * BLOCK - len(whole))) == ([b"a" * 100], [])
    later = written([b"b" * 100])[7:]
    assert read(whole + bytes(BLOCK - len(whole)) + later) == ([b"a" * 100, b"b" * 100], [])


@pytest.mark.parametrize("payloads", [[b"one", b"", b"three" * 20], [b"a" * 40_000, b"b" * 10]])
def test_a_cut_log_gives_the_whole_records_before_the_cut(payloads):
    data = written(payloads)
    ends = [len(written(payloads[: n + 1])) for n in range(len(payloads))]
    for at in [*range(7, 200), *range(32_700, 32_800), *range(len(data) - 50, len(data) + 1)]:
        if at > len(data):
            continue
        found, told = read(data[:at])
        assert found == payloads[: sum(end <= at for end in ends)]
        assert (told == []) == (at == 7 or at in ends), at


def test_what_is_no_log_at_all_gives_nothing():
    chance = random.Random(6)
    for size in (1, 6, 8, 100, 70_000):
        assert read(chance.randbytes(size))[0] == []
