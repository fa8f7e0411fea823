"""Order of the versions of a model."""

import itertools

import pytest

from model_package.versions import version_key

ASCENDING = [
    ["1", "2", "10"],
    ["1.9", "1.10", "1.10.1"],
    ["2.0-alpha", "2.0-rc1", "2.0-rc2", "2.0-rc10", "2.0", "2.0.1"],
    ["2024-09-30", "2024-10-01", "2025-01-01"],
    ["v9", "v10"],
    ["b", "1"],
    ["1-0", "1.0", "1.1"],
]


@pytest.mark.parametrize("versions", ASCENDING)
def test_the_newest_version_has_the_largest_key(versions: list[str]) -> None:
    for permutation in itertools.islice(itertools.permutations(versions), 24):
        assert sorted(permutation, key=version_key) == versions


def test_different_versions_have_different_keys() -> None:
    versions = ["1", "01", "1.", "1_", "1+"]
    assert len({version_key(version) for version in versions}) == len(versions)
