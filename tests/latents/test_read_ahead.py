"""Read ahead: the same items in the same order, made by a thread before they are asked for, which ends with its block."""

import threading
from collections.abc import Iterator

import pytest

from rglcd.latents.read_ahead import read_ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_items_come_in_their_order_to_the_last() -> None:
    for num_items in (0, 1, 2, 7):
        with read_ahead(iter(range(num_items)), num_ahead=2) as items:
            assert list(items) == list(range(num_items))
        assert threads() == []


def test_an_item_is_made_while_the_one_before_is_worked_on_and_no_more_than_asked_for() -> None:
    made, is_made = [], threading.Semaphore(0)

    def numbers() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            is_made.release()
            yield number

    with read_ahead(numbers(), num_ahead=2) as items:
        for number in range(4):
            assert next(items) == number
            expected = min(number + 3, 10)
            while len(made) < expected:
                assert is_made.acquire(timeout=10), "the next items are not made while this one is worked on"
            assert len(made) == expected


def test_an_error_is_raised_where_its_item_would_have_come() -> None:
    def two_and_an_error() -> Iterator[int]:
        yield from (0, 1)
        raise ValueError("the third")

    with read_ahead(two_and_an_error(), num_ahead=5) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(ValueError, match="the third"):
            next(items)
    assert threads() == []


def test_the_thread_ends_with_the_block_though_items_are_left() -> None:
    with read_ahead(iter(range(1000)), num_ahead=3) as items:
        next(items)
    assert threads() == []
