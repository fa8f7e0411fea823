"""Operations of the exported graph around the network.

Pixel normalization before it; activation, peaks, top-K and decoding of the heads after it.
"""
