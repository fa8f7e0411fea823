"""Negotiation of compressed responses."""

from collections.abc import Collection

from starlette.datastructures import Headers


def choose_encoding(headers: Headers, supported: Collection[str]) -> str | None:
    """Return the first encoding of ``Accept-Encoding`` that is supported, without the weight 0."""
    for item in headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() in supported and weight.replace(" ", "").rstrip("0.") != "q=":
            return coding.strip()
    return None
