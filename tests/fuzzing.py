"""Mutations of whole files for tests of readers: seeded, so that number N of a seed is the same file everywhere."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from anchor4d.core.files import InputError

#: Inputs a reader in a usual run; ANCHOR4D_FUZZ=N makes it N, the long form.
COUNT = int(os.environ.get("ANCHOR4D_FUZZ", "60"))
#: Processor seconds that one file may take.
SECONDS = 5.0
_ODD = [b"-1", b"0", b"1", b"1e999", b"null", b"true", b'""', b"[]", b"{}", b"nan", b"-nan", b"65535", b"4294967295", b"9" * 30]
_BYTES = [
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x00\x00\xc0\x7f",
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to six changes: of bits, of numbers in text, of lengths, of order."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not data:
            return data
        at, kind = rng.randrange(len(data)), rng.randrange(8)
        if kind == 0:
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            piece = rng.choice(_BYTES)
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data = data[:at] + data[at + rng.randrange(1, 64) :]
        elif kind == 4:
            data = data[:at] + data[at : at + rng.randrange(1, 64)] * rng.choice((2, 3, 50)) + data[at:]
        elif kind == 5:
            data = data[:at] + rng.randbytes(rng.randrange(1, 16)) + data[at:]
        else:  # a number or a name of the text
            words = [match.span() for match in re.finditer(rb"-?\d[\d.e+-]*|\"\w+\"", data[: 1 << 16])]
            if words:
                start, end = rng.choice(words)
                other = rng.choice(words)
                data = data[:start] + rng.choice([*_ODD, data[slice(*other)]]) + data[end:]
    return data


def survives(read: Callable[[Path], object], path: Path, data: bytes, seed: int, count: int = COUNT) -> tuple[int, int]:
    """Reads ``count`` mutations of a file; each is read, or refused in one line and in time.

    Returns:
        how many were read and how many refused.
    """
    done = refused = 0
    for number in range(count):
        path.write_bytes(mutated(data, random.Random(f"{path.name} {seed} {number}")))
        begun, message = time.process_time(), ""
        try:
            read(path)
            done += 1
        except InputError as error:
            message = str(error)
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{path.name}, seed {seed}, number {number}: {type(error).__name__}: {error}") from error
        assert "\n" not in message, message
        spent = time.process_time() - begun
        assert spent < SECONDS, f"{path.name}, seed {seed}, number {number}: {spent:.1f} s"
    path.write_bytes(data)
    return done, refused
