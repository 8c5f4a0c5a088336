"""Results of threads: in order, ahead of their use but not too far, errors included."""

import threading
import time

import pytest

from fasseg_jax.runtime.read_ahead import in_background, map_ahead


def test_keeps_the_order_and_its_distance():
    taken = 0

    def items():
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    def slow_square(number):
        time.sleep(0.001 * (number % 3))
        return number**2, threading.current_thread() is threading.main_thread()

    for count, (number, (square, in_main_thread)) in enumerate(map_ahead(slow_square, items(), 3)):
        assert (number, square, in_main_thread) == (count, count**2, False)
        assert taken <= count + 3


def test_works_in_parallel():
    barrier = threading.Barrier(3, timeout=10)
    assert [result for _, result in map_ahead(lambda _: barrier.wait() >= 0, range(6), 3)] == [True] * 6


def test_errors_of_threads_reach_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 / (3 - number), range(6), 2))


def test_eager_results_do_not_wait_for_the_next_item():
    events = []

    def items():
        for number in range(3):
            events.append(f"take {number}")
            yield number
            time.sleep(0.2)  # long enough for a thread to finish

    for number, _ in map_ahead(lambda number: number, items(), 8, eager=True):
        events.append(f"result {number}")
    assert events.index("result 0") < events.index("take 2") < events.index("result 2")


def test_what_is_not_asked_for_is_not_computed():
    started = []
    results = map_ahead(started.append, range(100), 2)
    next(results)
    results.close()
    assert len(started) <= 3


def test_in_background_returns_at_once():
    """The function runs beside the caller; its result, or its error, comes when it is asked for."""
    event = threading.Event()
    result = in_background(lambda: event.wait(10))
    assert not result.done()
    event.set()
    assert result.result() is True
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0).result()
