"""Negotiation of compressed responses."""

from starlette.datastructures import Headers


def accepts_gzip(headers: Headers) -> bool:
    """Return whether ``Accept-Encoding`` names gzip, without the weight 0."""
    for item in headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False
