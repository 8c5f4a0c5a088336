"""Items mapped by threads, in order, ahead of their use."""

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_ahead"]
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order; threads compute as many results in advance as there are threads.

    Args:
      function: what the threads call.
      items: taken in the caller's thread, no more in advance than are computed.
      num_threads: by default those of the machine, at most 8.
    """
    num_threads = num_threads or min(8, os.cpu_count() or 1)
    items = iter(items)
    pool = ThreadPoolExecutor(num_threads)
    try:
        computing = collections.deque()
        while True:
            for item in itertools.islice(items, num_threads - len(computing)):
                computing.append((item, pool.submit(function, item)))
            if not computing:
                return
            item, future = computing.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
