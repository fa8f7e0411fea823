"""Limits on pickles, checked before they are read.

The time that PyTorch's unpickler takes is not bounded by the size of a pickle. A tuple that
contains the same tuple twice, 40 levels deep, takes hours as a key of a dict: hashing visits every
item as often as it occurs. Integers can be chosen whose hashes are equal. Neither can be
interrupted.
"""

import pickletools
from typing import IO

import torch

MAX_OPCODES = 500_000
"""1,300 layers with batch normalization and the state of Adam take 194,000."""
MAX_TUPLE_ITEMS = 10_000
"""Items of a tuple and of the tuples in it, each counted as often as it occurs."""
_MAX_INTEGER = 1 << 63

_GLOBAL, _OTHER = 0, 1
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_CALLS = frozenset({"REDUCE", "NEWOBJ"})
_GETS, _PUTS = frozenset({"BINGET", "LONG_BINGET"}), frozenset({"BINPUT", "LONG_BINPUT"})


class PickleLimitError(Exception):
    """A pickle exceeds a limit."""


def check_pickles(file: IO[bytes], count: int) -> None:
    """Check ``count`` consecutive pickles; raises :class:`PickleLimitError`.

    A damaged pickle is checked up to the damage, where unpickling ends as well.
    """
    sizes = _Sizes()
    remaining = MAX_OPCODES
    try:
        for _ in range(count):
            for opcode, argument, _ in pickletools.genops(file):
                if not remaining:
                    raise PickleLimitError(f"it has more than {MAX_OPCODES} opcodes")
                remaining -= 1
                sizes.apply(opcode, argument)
    except (ValueError, IndexError, KeyError):
        return


class _Sizes:
    """The stack and the memo of an unpickler, with sizes in place of objects."""

    def __init__(self) -> None:
        self._stacks: list[list[int]] = [[]]  # a mark begins another one
        self._memo: dict[int, int] = {}

    def apply(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        """Execute an opcode; raises ``IndexError`` if the stack is too short for it."""
        name, stack = opcode.name, self._stacks[-1]
        if name in _PUTS and isinstance(argument, int):
            self._memo[argument] = stack[-1]
        elif name in _GETS and isinstance(argument, int):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._stacks.append([])
        else:
            self._check_integer(argument)
            taken = self._take(opcode)
            if name in _CALLS and taken[0] != _GLOBAL:  # the error would quote the whole object
                raise PickleLimitError("it calls something that is not a function")
            size = 1 + sum(taken) if name in _TUPLES else _OTHER
            if size > MAX_TUPLE_ITEMS:
                raise PickleLimitError(f"it has a tuple of more than {MAX_TUPLE_ITEMS} items")
            results = [_GLOBAL if name == "GLOBAL" else size] * len(opcode.stack_after)
            self._stacks[-1].extend(results)

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """Remove what an opcode takes from the stack, and return it."""
        before = opcode.stack_before
        items: list[int] = []
        if pickletools.markobject in before:
            items = self._stacks.pop()
            before = before[: before.index(pickletools.markobject)]
        stack, count = self._stacks[-1], len(before)
        if len(stack) < count:
            raise IndexError
        items = stack[len(stack) - count :] + items
        del stack[len(stack) - count :]
        return items

    def _check_integer(self, argument: object) -> None:
        if (
            isinstance(argument, int)
            and abs(argument) >= _MAX_INTEGER
            and argument != torch.serialization.MAGIC_NUMBER
        ):
            raise PickleLimitError("it has an integer of more than 64 bits")
