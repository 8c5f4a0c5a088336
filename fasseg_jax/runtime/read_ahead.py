"""Work done by threads ahead of its use."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_background", "map_ahead"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(function: Callable[[], Result]) -> Future[Result]:
    """Call a function in a thread of its own. If it raises, the error reaches the caller where the result would."""
    thread = ThreadPoolExecutor(1)
    result = thread.submit(function)
    thread.shutdown(wait=False)  # of the executor; the function goes on
    return result


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
    *,
    eager: bool = False,
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items in threads, and yield each item with its result, in order.

    Args:
      function: runs in the threads. If it raises, the error reaches the caller where the result would.
      items: taken in the caller's thread, at most `num_threads` ahead of the results.
      num_threads: by default one per CPU core, at most 8.
      eager: yield each result as soon as it is ready. For items that come slowly, whose results should not wait for
        the next item. By default the threads are kept busy: `num_threads` items are taken before the first result is
        yielded, and so on.
    """
    num_threads = num_threads or min(8, os.cpu_count() or 1)
    pending: collections.deque[tuple[Item, Future[Result]]] = collections.deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            while len(pending) >= num_threads or (eager and pending and pending[0][1].done()):
                first, result = pending.popleft()
                yield first, result.result()
        for item, result in pending:
            yield item, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
