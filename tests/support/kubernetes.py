"""Kubernetes manifests: those that Helm renders from the chart, and their schemas."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
CHART = PROJECT / "deploy" / "kubernetes" / "centernet"
CRD_SCHEMAS = PROJECT / "tests" / "deployment" / "crd_schemas"
VERSIONS = ("1.31", "1.37")
"""The oldest version of Kubernetes that the chart supports, and the newest with a schema."""
RELEASE, NAMESPACE = "centernet", "vision"

Manifest = dict[str, Any]


class ChartError(Exception):
    """The message with which Helm rejects values."""


def find_helm() -> Any:
    """Return Helm's library; skip the test if it is not installed."""
    return pytest.importorskip(
        "helm_python", reason="helm-python-sdk is not installed (x86-64 Linux: pip install)"
    )


def render(values: Mapping[str, Any] | None = None, files: tuple[str, ...] = ()) -> list[Manifest]:
    """Return the manifests of the chart with values files of its directory, then ``values``.

    Raises :class:`ChartError`.
    """
    helm = find_helm()
    merged: dict[str, Any] = {}
    for file in files:
        merged = merge(merged, yaml.safe_load((CHART / file).read_text()))
    try:
        with helm.Chart.load(CHART) as chart:
            texts = chart.render(merge(merged, values or {}), name=RELEASE, namespace=NAMESPACE)
    except helm.HelmError as error:
        raise ChartError(str(error)) from error
    return [
        manifest
        for name, text in sorted(texts.items())
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest is not None
    ]


def merge(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with those of ``others``, which replace everything except mappings."""
    merged = dict(values)
    for name, value in others.items():
        old = merged.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(old, value) if both else value
    return merged


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the manifest of a kind of which there is exactly one."""
    (manifest,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return manifest


def pod_templates(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield the pod templates of deployments and jobs."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "Job"):
            yield manifest["spec"]["template"]


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a container that have a value of their own."""
    return {variable["name"]: variable["value"] for variable in container.get("env", ())}


def validate(manifest: Manifest) -> None:
    """Fail if a manifest does not match the schema of its kind, or has unknown properties."""
    kubernetes = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (pip install)"
    )
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    if (schema := crd_schema(manifest)) is not None:
        import jsonschema  # a dependency of kubernetes-validate

        errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(manifest), key=str)
        assert not errors, f"{name}: {errors[0].json_path}: {errors[0].message}"
        return
    for version in VERSIONS:
        try:
            kubernetes.validate(manifest, version, strict=True)
        except kubernetes.ValidationError as error:
            pytest.fail(f"{name}, Kubernetes {version}: {error.json_path}: {error.message}")


@cache
def _read_schema(path: Path) -> Any:
    return json.loads(path.read_text())


def crd_schema(manifest: Manifest) -> Any:
    """Return the schema of a custom resource; None if the kind is one of Kubernetes itself."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    path = CRD_SCHEMAS / f"{group}_{manifest['kind'].lower()}_{version}.json"
    return _read_schema(path) if path.exists() else None
