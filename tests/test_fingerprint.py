"""Sums that stand for points."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.fingerprint import Sums, distinct
from mlmigrate.model import points

FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 1.0]))
ROWS = st.lists(
    st.tuples(st.sampled_from("rs"), st.sampled_from("kl"), st.integers(-3, 3), st.none() | st.integers(0, 3), FLOATS),
    max_size=30,
)
NAMES = ("run", "key", "step", "timestamp", "value")


def batch(rows):
    return points(dict(zip(NAMES, zip(*rows, strict=True), strict=True)) if rows else {name: [] for name in NAMES})


def sums(*batches):
    total = Sums()
    for one in batches:
        total.add(one)
    return total.of


def exact(row):
    """A row as a key under which equal points meet: all NaNs are one, and both zeros."""
    return (*row[:4], "NaN" if row[4] != row[4] else row[4] + 0.0)


@given(ROWS, st.randoms(use_true_random=False))
def test_order_and_batches_make_no_difference(rows, rng: random.Random):
    shuffled = rng.sample(rows, len(rows))
    middle = len(rows) // 2
    assert sums(batch(rows)) == sums(batch(shuffled[:middle]), batch(shuffled[middle:]))


@given(ROWS, ROWS)
def test_sums_are_equal_exactly_when_the_points_are(a, b):
    assert (sums(batch(a)) == sums(batch(b))) == (sorted(map(repr, map(exact, a))) == sorted(map(repr, map(exact, b))))


@given(ROWS)
def test_distinct_keeps_the_first_of_equal_points(rows):
    kept = distinct(batch(rows)).to_pylist()
    expected = list({exact(row): row for row in reversed(rows)}.values())[::-1]
    assert [exact(tuple(row[name] for name in NAMES)) for row in kept] == [
        exact(row) for row in sorted(expected, key=lambda r: [exact(x) for x in rows].index(exact(r)))
    ]
