"""Ids in the order of their times."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.ids import new_id


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1))
def test_later_ones_are_greater(one: int, two: int) -> None:
    first, second = new_id(one), new_id(two)
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")
    assert one == two or (first < second) == (one < two)


def test_none_comes_twice() -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [new_id(1) for _ in range(500)], range(8)))
    assert len({each for some in found for each in some}) == 4_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_gives_others_than_its_parent() -> None:
    new_id(1)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, new_id(1).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 64).decode()
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 32
    assert theirs not in {new_id(1) for _ in range(200)}
