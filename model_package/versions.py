"""Order of the versions of a model."""

import re

_PART = re.compile(r"[0-9]+|[A-Za-z]+")
_LETTERS, _END, _NUMBER = 0, 1, 2


def version_key(version: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return the sort key of the version in a manifest; the newest version has the largest.

    Numbers in a version are compared as numbers, other parts as text: 1.9 < 1.10. A part of letters
    is older than no part, as in a pre-release, and a number is newer: 2.0-rc1 < 2.0 < 2.0.1.
    """
    parts = [
        (_NUMBER, int(part), "") if part.isdecimal() else (_LETTERS, 0, part)
        for part in _PART.findall(version)
    ]
    # The text decides between versions of equal parts, such as 1.0 and 1-0.
    return (*parts, (_END, 0, "")), version
