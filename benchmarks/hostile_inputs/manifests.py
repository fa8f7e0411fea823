"""Manifests (``model.json``) of model packages."""

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.hostile_inputs.mutations import mutate_some

_MAX_BYTES = 4 * 1024 * 1024
_MODELS = Path(__file__).parents[2] / "models"


def manifest_file(rng: Random) -> bytes:
    """Return a bundled manifest in which values were replaced, or JSON of another structure."""
    if rng.random() < 0.15:
        return mutate_some(rng, _other_json(rng))
    document = json.loads(rng.choice(_bundled()))
    if rng.random() < 0.2:
        document["description"] = "x" * rng.choice((0, 1, 1000, 4000))
        document["classes"] = [f"{index}" for index in range(rng.choice((1, 80, 80, 80, 10_000)))]
        return json.dumps(document).encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        container, key = _random_place(rng, document)
        container[key] = _value(rng)
    if rng.random() < 0.3:
        document.update(
            {f"unknown{index}": index for index in range(rng.choice((1, 1000, 30_000)))}
        )
    return mutate_some(rng, json.dumps(document).encode())[:_MAX_BYTES]


@cache
def _bundled() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(_MODELS.glob("*/model.json")))


def _random_place(rng: Random, value: Any) -> tuple[Any, Any]:
    """Return a container in the document and one of its keys."""
    while True:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        child = value[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.3:
            return value, key
        value = child


def _value(rng: Random) -> Any:
    size = rng.choice((0, 1, 100, 1000, 30_000))
    kind = rng.randrange(10)
    if kind == 0:
        return "x" * size * 10
    if kind == 1:
        return [f"class {index}" for index in range(size)]
    if kind == 2:
        return ["same"] * size
    if kind == 3:
        return [[index, index + 1] for index in range(size)]
    if kind == 4:
        return {f"key{index}": 1.0 for index in range(size)}
    if kind == 5:
        return [{"file": f"m{index}.onnx", "precision": "fp32"} for index in range(size)]
    if kind == 6:
        return rng.choice((0, -1, 1, 8192, 10**18, 10**400, 1e308, 0.5, float("nan"), float("inf")))
    if kind == 7:
        return rng.choice(
            (None, True, {}, [], "", "../../etc/passwd", "\x00", "\ud800", "é" * size)
        )
    if kind == 8:
        return [_value(rng) for _ in range(3)]
    return [{}] * size


def _other_json(rng: Random) -> bytes:
    depth = rng.choice((10, 100, 1000, 1_000_000))
    return rng.choice(
        (
            b"[" * depth,
            b'{"a":' * depth,
            b"[" * depth + b"]" * depth,
            b'{"name": ' + b"9" * rng.choice((10, 5000, 4_000_000)) + b"}",
            b'{"name": 1e' + b"9" * depth + b"}",
            b'{"name": "' + b"\\u0041" * min(depth, 600_000) + b'"}',
            b"{" + b",".join(b'"a": 1' for _ in range(depth // 4)) + b"}",
            b'{"classes": [' + b",".join([b'"a"'] * min(depth, 1_000_000)) + b"]}",
            b"\xff\xfe" + b"\x00" * depth,
            b"",
            b"null",
            b" " * depth + b"{}",
        )
    )[:_MAX_BYTES]
