"""The documents for new contributors name files that exist."""

import re
from pathlib import Path

import pytest
import yaml

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md")
ROOTS = (
    "benchmarks/|client/|deploy/|docker/|docs/|evaluation/|labels/|model_export/|model_package/|models/|"
    "reports/|service/|tests/|training/"
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_the_document_exists(document: str, project: Path) -> None:
    text = (project / document).read_text()
    paths = re.findall(rf"`((?:{ROOTS})[\w./-]*)`", text)
    missing = sorted({path for path in paths if not (project / path).exists()})
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_of_the_document_exists(document: str, project: Path) -> None:
    path = project / document
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", path.read_text())
    assert links or document == "SECURITY.md"
    missing = sorted({link for link in links if not (path.parent / link).exists()})
    assert not missing


def test_workflows_and_hooks_are_valid_yaml_and_run_existing_commands(project: Path) -> None:
    workflow = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert "bash .ci/run" in commands
    assert (project / ".ci/run").is_file()
    hooks = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
