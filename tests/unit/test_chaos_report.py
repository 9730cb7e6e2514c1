"""The chaos command's tables for the documents, from the JSON reports of several runs."""

from typing import Any

from benchmarks.chaos.report import summary

COLUMNS = (
    *("duplicated", "lost", "overlap", "conflict", "unanswered"),
    *("vanished", "limit", "zombie_run", "zombie_effect"),
)


def run(seed: int, extras: tuple[str, ...], *names: str) -> dict[str, Any]:
    """Return the report of a run in which each contender met the limit as often as the seed says."""
    contenders = [
        {
            "name": name,
            "title": name.upper(),
            "tally": dict.fromkeys(COLUMNS, 0) | {"limit": seed},
            "counts": {"by_plain_steps": 1, "by_zombies": 1, "recovered": 1, "parked": 2, "resolved": 2},
            "recoveries": [],
        }
        for name in names
    ]
    return {"seed": seed, "broker": "redis", "pool": "prefork", "extras": extras, "contenders": contenders}


def test_contenders_of_several_runs_of_a_seed_are_in_one_table() -> None:
    """Each has its counts seed by seed, in the order of the contenders, whoever shared the machine with it."""
    runs = [run(seed, ("provider",), *names) for seed in (1, 2) for names in (("ours", "ours-park"), ("plain",))]
    head, _, *rows, end = summary(runs)
    assert head.startswith("| redis, prefork, provider; seed 1, 2 |")
    assert head.endswith("| (limit) | recovered | parked | resolved | recovery, s: median / p95 (n) |")
    zeros = "| 0, 0 " * 6
    assert rows == [f"| {name} {zeros}| 1, 2 | 1, 1 | 2, 2 | 2, 2 | - |" for name in ("PLAIN", "OURS", "OURS-PARK")]
    assert end == ""


def test_what_an_option_adds_has_a_column_only_with_it() -> None:
    """A run without a provider has nothing parked, and one without pauses no zombies."""
    head = next(summary([run(1, (), "ours")]))
    assert "parked" not in head
    assert "zombie" not in head


def test_effects_of_zombies_have_a_column_where_a_successor_can_take_one() -> None:
    """With rows and pauses; without pauses there are no zombies."""
    assert "| (zombie effects) | (of these: plain steps) | by zombies |" in next(
        summary([run(1, ("rows", "pause"), "ours")])
    )
    for extras in (("rows",), ("pause",), ("provider", "pause")):
        assert "by zombies" not in next(summary([run(1, extras, "ours")]))
