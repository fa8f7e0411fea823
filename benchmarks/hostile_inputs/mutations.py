"""Changes to bytes without regard to their structure."""

from collections.abc import Callable
from random import Random

# Values of length and count fields: 0, 1 and the limits of 8, 16, 31 and 32 bits.
_LIMITS = (0, 1, 0x7F, 0xFF, 0x100, 0x4000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
_HEADER_BYTES = 200

UNCHANGED_SHARE = 0.75


def mutate_some(rng: Random, body: bytes) -> bytes:
    """Return the body, in a quarter of the cases with one to three mutations."""
    if rng.random() < UNCHANGED_SHARE:
        return body
    for mutation in rng.choices(_MUTATIONS, k=rng.choice((1, 1, 2, 3))):
        if body:
            body = mutation(rng, body)
    return body


def _flip_bits(rng: Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body))]


def _remove(rng: Random, body: bytes) -> bytes:
    start = rng.randrange(len(body))
    return body[:start] + body[start + rng.randint(1, 200) :]


def _repeat(rng: Random, body: bytes) -> bytes:
    start = rng.randrange(len(body))
    part = body[start : start + rng.randint(1, 400)]
    return body[:start] + part * rng.choice((2, 3, 50, 1000)) + body[start + len(part) :]


def _insert(rng: Random, body: bytes) -> bytes:
    position = rng.randrange(len(body))
    inserted = rng.choice((rng.randbytes(rng.randint(1, 300)), b"\0" * 40, b"\xff" * 40))
    return body[:position] + inserted + body[position:]


def _replace_number(rng: Random, body: bytes) -> bytes:
    """Replace a number near the start (a size, a length, a count), in either byte order."""
    width = rng.choice((1, 2, 4))
    number = (rng.choice(_LIMITS) % (1 << 8 * width)).to_bytes(width, rng.choice(("big", "little")))
    position = rng.randrange(min(_HEADER_BYTES, len(body)))
    return body[:position] + number + body[position + width :]


_MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_flip_bits, _truncate, _remove, _repeat, _insert, _replace_number),
)
