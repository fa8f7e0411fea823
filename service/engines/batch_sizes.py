"""Batch sizes that are measured at warm-up and captured as CUDA graphs."""


def power_of_two_batch_sizes(max_batch_size: int, min_batch_size: int = 1) -> list[int]:
    """Return both bounds and the powers of two between them, ascending.

    For example 1, 2, 4, 8, 12 for a maximum of 12.
    """
    powers = (2**exponent for exponent in range(max_batch_size.bit_length()))
    between = (size for size in powers if min_batch_size < size < max_batch_size)
    return sorted({min_batch_size, max_batch_size, *between})
