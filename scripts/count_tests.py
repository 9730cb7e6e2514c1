"""Count the tests of JUnit reports: a line for each report, for each broker among the parameters, and for all."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

BROKERS = ("redis", "rabbitmq", "sqs")
TOTAL = "total"
OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


def outcome_of(case: ET.Element) -> str:
    """Return ``passed``, ``failed`` or ``skipped``."""
    return next((OUTCOMES[child.tag] for child in case if child.tag in OUTCOMES), "passed")


def groups_of(report: Path, case: ET.Element) -> Iterator[str]:
    """Yield the report's name, the brokers among the test's parameters, and the total."""
    yield report.stem
    yield TOTAL
    parameters = re.findall(r"[a-z]+", case.get("name", "").partition("[")[2])
    yield from (broker for broker in BROKERS if broker in parameters)


def main(reports: list[Path]) -> None:
    """Print the counts."""
    counts: dict[str, Counter[str]] = {}
    for report in reports:
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote the file a moment ago
            for group in groups_of(report, case):
                counts.setdefault(group, Counter())[outcome_of(case)] += 1
    for group in [*(report.stem for report in reports), *BROKERS, TOTAL]:
        count = counts.get(group, Counter())
        print(f"{group}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
