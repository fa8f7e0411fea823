"""Hostile ``model.json`` files are read or refused within 2 s of CPU time and 256 MB of memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.serving import make_manifest

from model_package.directory import MAX_MANIFEST_BYTES, MAX_MANIFEST_VALUES, _count_values

READ = """
import resource, sys
from pathlib import Path
from model_package import PackageInvalidError
from model_package.directory import read_manifest

CPU_S, MEMORY_BYTES = 2, 256 * 10**6
usage = resource.getrusage(resource.RUSAGE_SELF)
cpu_s = int(usage.ru_utime + usage.ru_stime) + 1 + CPU_S
resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
pages = int(Path("/proc/self/statm").read_text().split()[0])
memory = pages * resource.getpagesize() + MEMORY_BYTES
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
try:
    read_manifest(Path(sys.argv[1]))
    print("read")
except PackageInvalidError as error:
    print(error)
"""
MAX_ERROR_CHARACTERS = 2000


def fill(item: Callable[[int], str], size: int = MAX_MANIFEST_BYTES - 5000) -> str:
    """Join items by commas up to ``size`` bytes."""
    text = ",".join(item(index) for index in range(size // (len(item(10**6)) + 1)))
    assert len(text) <= size
    return text


def repeat(item: str, size: int = MAX_MANIFEST_BYTES - 5000) -> str:
    return fill(lambda _: item, size)


def at_limit(item: str) -> str:
    """Return as many items as pass the check of the number of values."""
    values = 1 + item.count("{") + item.count("[") + item.count(",")
    return ",".join([item] * ((MAX_MANIFEST_VALUES - 100) // values))


LONG = "a" * (MAX_MANIFEST_BYTES - 5000)
POSES = '"kind": "center_poses", "output_stride": 4, "top_k": 9, "score_threshold": 0.3'
# Replacements of fields, as JSON.
CASES = {
    "unknown fields": {"description": '"",' + fill(lambda i: f'"{i:x}":0')},
    "unknown nested fields": {"provenance": "{" + fill(lambda i: f'"{i:x}":0') + "}"},
    "unknown arrays": {"colour": "[" + repeat("[]") + "]"},
    "unknown objects": {"colour": "[" + repeat("{}") + "]"},
    "classes that are numbers": {"classes": "[" + repeat("0") + "]"},
    "classes that are empty": {"classes": "[" + repeat('""') + "]"},
    "classes that are objects": {"classes": "[" + repeat("{}") + "]"},
    "equal classes": {"classes": json.dumps([f"{i // 2:090}" for i in range(10_000)])},
    "a long class": {"classes": f'["{LONG}"]'},
    "artifacts without fields": {"artifacts": "[" + repeat('{"backend":"tensorrt"}') + "]"},
    "artifacts at the limit": {"artifacts": "[" + at_limit('{"backend":"tensorrt"}') + "]"},
    "a long decoder kind": {"decoder": f'{{"kind": "{LONG}"}}'},
    "a long field name": {LONG: "0"},
    "empty limbs": {"decoder": f'{{{POSES}, "keypoints": ["a"], "skeleton": [{repeat("[]")}]}}'},
    "limbs": {"decoder": f'{{{POSES}, "keypoints": ["a"], "skeleton": [{repeat("[0,0]")}]}}'},
    "limbs at the limit": {
        "decoder": f'{{{POSES}, "keypoints": ["a"], "skeleton": [{at_limit("[]")}]}}'
    },
    "a projection of strings": {
        "decoder": f'{{"kind": "center_boxes_3d", "projection": [{repeat(chr(34) * 2)}]}}'
    },
    "fields at the limit": {
        "provenance": "{" + ",".join(f'"{i:070}":0' for i in range(MAX_MANIFEST_VALUES - 100)) + "}"
    },
    "tools": {"provenance": '{"tools": {' + fill(lambda i: f'"{i:x}":""') + "}}"},
    "tolerances that are arrays": {
        "verification": '{"tolerances": {' + fill(lambda i: f'"{i:x}":[]') + "}}"
    },
    "a long description": {"description": f'"{LONG}"'},
    "a long number": {"decoder": f'{{"output_stride": {"1" * 4_000_000}}}'},
    "escaped quotes": {"description": '"' + r"\"" * 2_000_000 + '"'},
    "nested arrays": {"colour": "[" * 4_000_000},
    "nested objects": {"colour": '{"a":' * 800_000},
    "quotes": {"colour": '"' * 4_000_000},
}


def document(fields: dict[str, str]) -> str:
    valid = {name: json.dumps(value) for name, value in make_manifest().model_dump().items()}
    return "{" + ",".join(f'"{name}": {value}' for name, value in (valid | fields).items()) + "}"


def read_with_limits(directory: Path, content: str) -> str:
    """Return the output of the program that reads the manifest; it must not exceed its limits."""
    (directory / "model.json").write_text(content)
    assert len(content) <= MAX_MANIFEST_BYTES
    done = subprocess.run(
        [sys.executable, "-c", READ, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-500:]}"
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_hostile_manifests_are_refused_within_the_limits(tmp_path: Path, case: str) -> None:
    output = read_with_limits(tmp_path, document(CASES[case]))
    assert "model.json" in output
    assert len(output) < MAX_ERROR_CHARACTERS


def test_the_largest_manifest_is_read_within_the_limits(tmp_path: Path) -> None:
    names = [f"{index:05}, " + 90 * "ü" for index in range(10_000)]
    keypoints = [f"keypoint {index}" for index in range(1000)]
    decoder = f'{{{POSES}, "keypoints": {json.dumps(keypoints)}, "skeleton": {[[0, 999]] * 1000}}}'
    classes = json.dumps(names, ensure_ascii=False)
    output = read_with_limits(tmp_path, document({"classes": classes, "decoder": decoder}))
    assert output == "read\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("{}", 2),
        ('{"a": 1, "b": [1, 2], "c": {"d": ","}}', 7),
        (r'{"a,\\": "[[\",{", "b": "\\"}', 3),
        (r'["\\\"," , "," ]', 3),
    ],
)
def test_values_are_counted_outside_of_strings(text: str, count: int) -> None:
    json.loads(text)
    assert _count_values(text.encode()) == count
