"""The files that the project's hosts and newcomers read first: they parse, and what they name exists."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / ".readthedocs.yaml"],
)
WORKFLOWS = [path for path in FILES if path.parent.name == "workflows"]
PAGES = [
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs" / "contributing").rglob("*.md")),
]
PINNED = re.compile(r"[\w.-]+/[\w./-]+@(release/)?v\d+")


def loaded(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def steps_of(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each step of each job, and each job that is another workflow."""
    for job in workflow["jobs"].values():
        yield from job.get("steps", [job])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_scripts_and_files_that_it_names_exist(path: Path) -> None:
    """It parses; scripts can be executed, and lock files are there."""
    assert loaded(path)
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])((?:\.ci|scripts|requirements|docs)/[\w/.-]*\w)", text):
        assert (ROOT / name).exists(), name
        assert not name.startswith(".ci/") or os.access(ROOT / name, os.X_OK), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_uses_pinned_actions_and_no_secret(path: Path) -> None:
    """Each action has its major version, each workflow of ours exists, and only the publishing job gets an identity."""
    workflow = loaded(path)
    for step in steps_of(workflow):
        used = step.get("uses", "actions/none@v1")
        assert PINNED.fullmatch(used) or (used.startswith("./") and (ROOT / used).is_file()), used
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}
    trusted = [name for name, job in workflow["jobs"].items() if "id-token" in job.get("permissions", {})]
    assert trusted == (["publish"] if path.stem == "release" else [])


def environments(*options: str) -> set[str]:
    """Return the environments that tox itself lists."""
    command = [sys.executable, "-m", "tox", "list", "--no-desc", "-q", *options]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def test_the_matrix_has_each_environment_of_tox_with_its_python() -> None:
    """The documents, and the workflow on the newest releases, name no other."""
    printed = subprocess.run([ROOT / ".ci" / "matrix"], capture_output=True, text=True, check=True).stdout
    matrix = {entry["environment"]: entry["python"] for entry in json.loads(printed)}
    assert set(matrix) == environments("-d")
    assert matrix["py313-unit"] == "3.13"
    assert matrix["lint"] == matrix["py311-celery54-unit"] == "3.11"
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"tox -e ([\w-]+)", pages)) | set(re.findall(r"`(py3\d+-[\w-]+)`", pages))
    weekly = loaded(ROOT / ".github" / "workflows" / "newest.yml")["jobs"]["tox"]["strategy"]["matrix"]["environment"]
    assert {*named, *weekly} - environments() == set()


def test_the_hooks_run_tools_of_the_locked_environment() -> None:
    """Nothing is fetched from elsewhere, and each tool is in the lock."""
    lock = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert hook["language"] == "system"
        assert f"\n{tool}==" in lock


def test_every_example_is_in_the_index() -> None:
    """Each folder of an example has its README, and a line in that of the folder above."""
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    assert folders == set(re.findall(r"\]\((\w+)/README\.md\)", index))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_links_to_files_that_exist(page: Path) -> None:
    """No link of a page that newcomers read leads nowhere."""
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [name for name in linked if not (page.parent / name).exists()] == []
