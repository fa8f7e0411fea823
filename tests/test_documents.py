"""The documents name files, sections and modules that exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
DOCUMENTS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (PROJECT / "docs").rglob("*.md")
)
PACKAGES = (
    "benchmarks|bulk|client|command_line|deploy|docker|docs|evaluation|labels|model_export|"
    "model_package|models|reports|service|tests|training"
)


def name_of(document: Path) -> str:
    return str(document.relative_to(PROJECT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@pytest.mark.parametrize(
    "document",
    [one for one in DOCUMENTS if one.parent.name != "adr"],  # which may name files of their time
    ids=name_of,
)
def test_every_path_in_the_document_exists(document: Path) -> None:
    paths = re.findall(rf"`((?:{PACKAGES})/[\w./-]*)`", document.read_text())
    missing = sorted({path for path in paths if not (PROJECT / path).exists()})
    assert not missing


@each_document
def test_every_module_that_the_document_runs_exists(document: Path) -> None:
    modules = re.findall(rf"python -m ((?:{PACKAGES})[\w.]*)", document.read_text())
    missing = sorted({module for module in modules if find_spec(module) is None})
    assert not missing


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@each_document
def test_every_relative_link_of_the_document_exists(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)", document.read_text())
    assert links or document.name not in ("README.md", "CONTRIBUTING.md", "architecture.md")
    for path, anchor in links:
        target = document.parent / path if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_workflows_and_hooks_are_valid_yaml_and_run_existing_commands(project: Path) -> None:
    workflow = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert "bash .ci/run" in commands
    assert (project / ".ci/run").is_file()
    hooks = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
