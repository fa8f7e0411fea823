"""Numbers of any number of bits, most significant bit first, as video codecs store them."""

from collections.abc import Callable

from service.imaging.image_header import HeaderError

FrameCheck = Callable[[bytes | memoryview, int], int]
"""Check of the data of a coded image: takes them and the number of units that they may have, and
returns how many they have."""
_MAX_EXPONENT = 31


class BitReader:
    """Reads the first bytes of a codec's header; raises :class:`HeaderError` after the last one."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def uint(self, bits: int) -> int:
        """Read an unsigned number of ``bits`` bits."""
        self._left -= bits
        if self._left < 0:
            raise HeaderError("the header of its codec ends early")
        return self._value >> self._left & (1 << bits) - 1

    def flag(self) -> bool:
        """Read one bit."""
        return self.uint(1) == 1

    def exponential_golomb(self) -> int:
        """Read an unsigned number in exponential Golomb code."""
        zeros = 0
        while not self.flag():
            zeros += 1
            if zeros > _MAX_EXPONENT:
                raise HeaderError("the header of its codec has a number that is too large")
        return (1 << zeros) - 1 + self.uint(zeros)
