"""Damages files at random, as broken disks, half downloads and evil people do; the same seed gives the same damage."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` damaged copies of `content`: changed bytes, cuts, zeros, repeated, moved and missing pieces."""
    generator = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
            damage(damaged, generator)
        yield bytes(damaged)


def damage(content: bytearray, generator: random.Random) -> None:
    """Damage `content` in place, more often near its beginning, where headers are."""
    if not content:
        content += generator.randbytes(generator.randrange(20))
        return
    near = generator.choice((16, 64, 512, len(content), len(content), len(content)))
    start = generator.randrange(min(near, len(content)))
    length = generator.choice((1, 2, 4, 8, 40, len(content) // 4 + 1))
    match generator.randrange(8):
        case 0:
            content[start] = generator.randrange(256)
        case 1:
            content[start] ^= 1 << generator.randrange(8)
        case 2:
            end = len(content) if generator.random() < 0.3 else start + length
            del content[start:end]
        case 3:
            content[start:start] = content[start : start + length]
        case 4:
            piece = content[start : start + length]
            content[start : start + length] = bytes(len(piece))
        case 5:
            extreme = generator.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80" + bytes(3)))
            content[start : start + 4] = extreme[: len(content) - start]
        case 6:
            content[start:start] = generator.randbytes(length % 100)
        case 7:
            other = generator.randrange(len(content))
            content[start : start + length] = content[other : other + length]


def outcomes(path: Path, content: bytes, count: int, read: Callable[[], object], *errors: type[Exception]) -> Counter:
    """Read `count` damaged copies of a file; count how it ended: "read", or the error's name.

    An error of any other type than `errors` comes out, and so does one whose message is no short line with the name.
    """
    ends: Counter = Counter()
    for damaged in mutations(content, count):
        path.write_bytes(damaged)
        try:
            read()
        except errors as error:
            message = str(error)
            assert str(path) in message and "\n" not in message and len(message) < 600 + len(str(path)), message
            ends[type(error).__name__] += 1
        else:
            ends["read"] += 1
    assert ends.total() == count
    return ends
