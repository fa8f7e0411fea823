"""Images for schemathesis, which would send noise; some are damaged."""

import schemathesis
from hypothesis import strategies

from support.images import encode, plain

_IMAGE = encode(plain(200, 100), "JPEG")
schemathesis.openapi.media_type(
    "image/jpeg",
    strategies.sampled_from([_IMAGE, encode(plain(9, 9)), _IMAGE[:200], b"", b"no image"]),
)
