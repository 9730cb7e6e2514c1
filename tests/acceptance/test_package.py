"""The wheel and the source distribution, built as a release is."""

import subprocess
import sys
import tarfile
import tomllib
from email.parser import HeaderParser
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

from tests.testbed.servers import MissingServiceError

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 100.0


def project() -> dict[str, str]:
    """Return the ``project`` table of pyproject.toml."""
    table: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a source distribution and the wheel that was built from it."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        raise MissingServiceError("The build tools", "no package `build` or `hatchling`", "pip install --group build")
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def wheel_names(dist: Path) -> set[str]:
    """The files in the wheel."""
    (wheel,) = dist.glob("*.whl")
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def sdist_names(dist: Path) -> set[str]:
    """The files in the source distribution, without its top folder."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}


def test_the_wheel_holds_the_package_its_pytest_plugin_and_nothing_else(wheel_names: set[str]) -> None:
    """Every file of the package is in the wheel, the typing marker too; tests and examples are not."""
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "idempotent_tasks").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "idempotent_tasks/py.typed" in package
    installed = {name for name in wheel_names if ".dist-info/" not in name}
    assert installed == package | {"pytest_idempotent_tasks.py"}


def test_the_sdist_is_enough_to_work_on(sdist_names: set[str]) -> None:
    """Whoever unpacks the source distribution can run, test and build the project."""
    needed = {
        ".ci/run",
        ".github/workflows/test.yml",
        ".pre-commit-config.yaml",
        ".readthedocs.yaml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "SECURITY.md",
        "examples/payments/tasks.py",
        "idempotent_tasks/py.typed",
        "pyproject.toml",
        "requirements/dev.txt",
        "scripts/test",
        "tests/acceptance/test_package.py",
        "tox.ini",
    }
    assert needed - sdist_names == set()


def test_the_wheel_says_what_it_is(dist: Path, wheel_names: set[str]) -> None:
    """The metadata give the licence and its text, the Python versions, and the version of pyproject.toml."""
    info = f"idempotent_tasks-{project()['version']}.dist-info"
    assert f"{info}/licenses/LICENSE" in wheel_names
    (wheel,) = dist.glob("*.whl")
    with ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert metadata["Name"] == "idempotent-tasks"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_the_version_has_one_source() -> None:
    """What is installed, and the newest entry of the changelog, have the version of pyproject.toml."""
    assert version("idempotent-tasks") == project()["version"]
    assert f"\n## [{project()['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
