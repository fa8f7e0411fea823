"""Schemathesis hooks: valid and damaged images as request bodies, instead of random bytes."""

import schemathesis
from hypothesis import strategies

from support.images import encode, plain

_IMAGE = encode(plain(200, 100), "JPEG")
schemathesis.openapi.media_type(
    "image/jpeg",
    strategies.sampled_from([_IMAGE, encode(plain(9, 9)), _IMAGE[:200], b"", b"no image"]),
)
