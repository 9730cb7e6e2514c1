"""What the chaos command lets go wrong on the way to DynamoDB: pages, credentials, and the plan of both."""

import json
import random
from collections import Counter
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NoReturn

import pytest
from celery import Celery
from celery.app.task import Context

from benchmarks.chaos import __main__ as command
from benchmarks.chaos.contenders import tracing
from benchmarks.chaos.credentials import LAG_SECONDS, CredentialAnswer, CredentialFault, Credentials
from benchmarks.chaos.faults import STATUSES, GatewayPages
from benchmarks.chaos.plan import RELIEF_SECONDS, TROUBLE_SECONDS, Deck, Plan, Rotation, Trouble, draw
from benchmarks.chaos.report import Report
from tests.testbed.wire import Answer

NOW = 1_800_000_000.0
PAGES = 24


def plan_of(seed: int, *, faults: bool = True) -> Plan:
    """Return the plan of a short run."""
    return draw(seed=seed, keys=20, messages=26, kills=8, threads=False, pause=False, faults=faults)


def never_forward() -> NoReturn:
    """Fail the test: the gateway answers by itself."""
    pytest.fail("the request was passed on")


def pages(seed: int) -> tuple[list[Answer], GatewayPages]:
    """Return the first pages of a seed, and their source."""
    source = GatewayPages(seed, now=lambda: NOW)
    return [source(never_forward) for _ in range(PAGES)], source


def test_deck_deals_every_card_before_one_comes_again() -> None:
    """In an order that the seed decides, and another one each round."""
    deck, again = (Deck(random.Random(1), "abcd") for _ in range(2))
    rounds = ["".join(deck.deal() for _ in range(4)) for _ in range(10)]
    assert {"".join(sorted(each)) for each in rounds} == {"abcd"}
    assert len(set(rounds)) > 1
    assert rounds == ["".join(again.deal() for _ in range(4)) for _ in range(10)]


def test_pages_have_every_status_and_are_dated_minutes_off() -> None:
    """HTML in DynamoDB's place, as often ahead as behind, with and without an age; all of it counted."""
    found, source = pages(1)
    forms: Counter[tuple[bool, bool]] = Counter()
    for page in found:
        headers = dict(page.headers)
        off = parsedate_to_datetime(headers["Date"]).timestamp() - NOW
        assert 119 <= abs(off) <= 601
        forms[off > 0, "Age" in headers] += 1
        assert off > 0 or "Age" not in headers or abs(int(headers["Age"]) + off) <= 1, "a cached page is as old"
        assert headers["Content-Type"].startswith("text/html")
        assert page.body.startswith(b"<html>")
    assert Counter(page.status for page in found) == dict.fromkeys(STATUSES, PAGES // len(STATUSES))
    assert set(forms.values()) == {PAGES // 4}
    assert {source.counts[f"page {status}"] for status in STATUSES} == {PAGES // len(STATUSES)}
    assert source.counts["date ahead"] == source.counts["date behind"] == PAGES // 2
    assert source.counts["with age"] == source.counts["without age"] == PAGES // 2


def test_seed_decides_the_pages() -> None:
    """The same seed gives the same pages; another seed others."""
    assert pages(1)[0] == pages(1)[0] != pages(2)[0]


class Agent:
    """The credentials of a plan at a time that the test sets."""

    def __init__(self, *, troubles: tuple[Trouble, ...] = (), rotations: tuple[Rotation, ...] = ()) -> None:
        drawn = plan_of(1)
        self.at = 0.0
        parts = {name: getattr(drawn, name) for name in ("seed", "jobs", "messages", "strikes", "outages")}
        self.credentials = Credentials(Plan(**parts, troubles=troubles, rotations=rotations), elapsed=lambda: self.at)

    def ask(self, at: float) -> CredentialAnswer:
        """Return what the service answers at a time."""
        self.at = at
        return self.credentials.answer()

    def key(self, at: float) -> str:
        """Return the key that it gives."""
        return str(json.loads(self.ask(at).body)["AccessKeyId"])

    def refusal(self, key: str, at: float) -> str:
        """Return the error with which DynamoDB refuses a key at a time, or nothing."""
        self.at = at
        signed = f"AWS4-HMAC-SHA256 Credential={key}/20261129/eu-west-1/dynamodb/aws4_request, SignedHeaders=host"
        refused = self.credentials.refusal(signed)
        return "" if refused is None else str(json.loads(refused.body)["__type"])


def life_of(answer: CredentialAnswer) -> float:
    """Return the seconds until the credentials of an answer expire, by their own account."""
    expires = datetime.fromisoformat(json.loads(answer.body)["Expiration"])
    return (expires - datetime.now(UTC)).total_seconds()


ROTATION = Rotation(at=10.0, life_seconds=700.0)
AFTER_LAG = ROTATION.at + LAG_SECONDS


def test_rotation_brings_a_new_key_with_a_life_of_its_own() -> None:
    """Before it the first key, after it the second, each with all that an SDK looks for."""
    agent = Agent(rotations=(ROTATION,))
    first, second = agent.ask(9.0), agent.ask(AFTER_LAG)
    assert first.status == second.status == 200
    assert set(json.loads(first.body)) == {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"}
    assert agent.key(9.0) != agent.key(AFTER_LAG)
    assert 50 < life_of(first) <= 60
    assert 690 < life_of(second) <= 700
    assert agent.credentials.rotations == 1
    assert not any(agent.credentials.counts.values())


def test_rotated_key_is_refused_now_and_then() -> None:
    """With both errors in turn, and taken once in three times; a key that is good, or not the service's, never is."""
    agent = Agent(rotations=(ROTATION,))
    old, new = agent.key(9.0), agent.key(AFTER_LAG)
    assert agent.refusal(old, 9.0) == ""
    for _ in range(4):
        assert sorted(agent.refusal(old, AFTER_LAG) for _ in range(3)) == [
            "",
            "com.amazon.coral.service#ExpiredTokenException",
            "com.amazon.coral.service#UnrecognizedClientException",
        ]
        assert agent.refusal(new, AFTER_LAG) == agent.refusal("AKIADEMO", AFTER_LAG) == ""
    counts = agent.credentials.counts
    assert counts["ExpiredTokenException"] == counts["UnrecognizedClientException"] == 4


def test_service_lags_after_a_rotation() -> None:
    """Every other answer has the old key for a moment, and none after it."""
    agent = Agent(rotations=(ROTATION,))
    old, new = agent.key(9.0), agent.key(AFTER_LAG)
    assert Counter(agent.key(ROTATION.at) for _ in range(10)) == {old: 5, new: 5}
    assert agent.credentials.counts[CredentialFault.ROTATED_OUT] == 5
    assert {agent.key(AFTER_LAG) for _ in range(10)} == {new}


def test_trouble_has_every_fault() -> None:
    """No answer in it brings what DynamoDB takes at once; the slow one comes when the trouble is over."""
    agent = Agent(troubles=(Trouble(at=20.0, seconds=1.0),), rotations=(ROTATION,))
    old, new = agent.key(9.0), agent.key(AFTER_LAG)
    rounds = 3
    faults: Counter[str] = Counter()
    for answer in [agent.ask(20.4) for _ in CredentialFault for _ in range(rounds)]:
        given = answer.body.startswith(b"{") and b"Expiration" in answer.body
        if answer.status == 503:
            faults["unavailable"] += 1
        elif not given:
            faults["garbage"] += 1
        elif answer.delay_seconds:
            assert answer.delay_seconds == pytest.approx(0.6)
            assert new.encode() in answer.body
            faults["slow"] += 1
        elif life_of(answer) < 0:
            faults["expired"] += 1
        else:
            assert old.encode() in answer.body
            faults["rotated out"] += 1
    assert faults == dict.fromkeys(("unavailable", "garbage", "slow", "expired", "rotated out"), rounds)
    assert {agent.credentials.counts[fault] for fault in CredentialFault} == {rounds}
    assert agent.key(21.0) == new
    assert agent.key(19.9) == new


def test_trouble_before_the_first_rotation_has_no_older_key() -> None:
    """What would be an old key is an expired one."""
    agent = Agent(troubles=(Trouble(at=0.0, seconds=1.0),))
    for _ in CredentialFault:
        agent.ask(0.5)
    assert agent.credentials.counts[CredentialFault.ROTATED_OUT] == 0
    assert agent.credentials.counts[CredentialFault.EXPIRED] == 2


def test_seed_decides_the_credentials() -> None:
    """Two contenders of a run are answered alike."""
    plan = plan_of(3)
    at = plan.troubles[0].at
    answers = []
    for _ in range(2):
        credentials = Credentials(plan, elapsed=lambda: at)
        answers.append([(given.status, given.body[:40], given.delay_seconds) for given in asked(credentials)])
    assert answers[0] == answers[1]
    other = Credentials(plan_of(4), elapsed=lambda: plan_of(4).troubles[0].at)
    assert [given.status for given in asked(other)] != [status for status, _, _ in answers[0]]


def asked(credentials: Credentials) -> list[CredentialAnswer]:
    """Return the first answers."""
    return [credentials.answer() for _ in range(15)]


def test_plan_keeps_troubles_and_outages_apart() -> None:
    """Two in a row would outlast a lease that each of them alone does not; even a short run has a trouble."""
    for seed in range(200):
        plan = plan_of(seed)
        assert plan.troubles
        for trouble in plan.troubles:
            assert TROUBLE_SECONDS[0] <= trouble.seconds <= TROUBLE_SECONDS[1]
            for outage in plan.outages:
                after = trouble.at - (outage.at + outage.seconds)
                before = outage.at - (trouble.at + trouble.seconds)
                assert max(after, before) >= RELIEF_SECONDS - 0.001, f"seed {seed}: {trouble} and {outage}"


def test_plan_rotates_credentials_until_everything_is_at_rest() -> None:
    """Every few seconds, in the order of time; some keys live long enough to be used when there is no new one."""
    plan = plan_of(1)
    times = [rotation.at for rotation in plan.rotations]
    assert times == sorted(times)
    assert times[0] <= 7.0
    assert times[-1] > plan.last_at + 75
    assert {rotation.life_seconds > 600 for rotation in plan.rotations} == {True, False}
    assert plan.rotations == plan_of(1).rotations != plan_of(2).rotations
    calm = plan_of(1, faults=False)
    assert (calm.outages, calm.troubles, calm.rotations) == ((), (), ())


def report_of(seed: int, counts: dict[str, int]) -> Report:
    """Return a report of a run without contenders."""
    return Report(
        plan=plan_of(seed), broker="redis", pool="prefork", extras=("faults",), figures=(), faults={"ours": counts}
    )


def test_report_counts_the_faults_and_names_those_that_never_came() -> None:
    """In the tables, and in the JSON."""
    report = report_of(1, {"page 403": 2, "credentials slow": 0})
    assert report.unplayed == [("ours", "credentials slow")]
    assert "| page 403 | 2 |" in report.markdown()
    whole = json.loads(report.as_json())
    assert whole["faults"] == {"ours": {"page 403": 2, "credentials slow": 0}}
    assert whole["unplayed"] == [["ours", "credentials slow"]]


@pytest.mark.parametrize(("count", "code"), [(0, 2), (1, 0)])
def test_run_without_one_of_its_faults_does_not_pass_for_played(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int, code: int
) -> None:
    """The exit code says that nothing is shown, and the terminal which fault never came."""
    report = report_of(1, {CredentialFault.SLOW: count})
    monkeypatch.setattr(command, "_play", lambda _options, _plan: report)
    assert command.main(["--faults"]) == code
    assert ('ours never met the fault "credentials slow"' in capsys.readouterr().out) is (code == 2)


def test_every_other_seed_has_messages_with_tracing_headers() -> None:
    """And the report says so."""
    for seed, traced in ((1, True), (2, False), (3, True)):
        report = report_of(seed, {})
        assert json.loads(report.as_json())["traced"] is plan_of(seed).traced is traced
        assert ("tracing headers" in report.title) is traced


@pytest.mark.parametrize("on", [True, False])
def test_tracing_headers_are_where_the_sdks_put_them(*, on: bool) -> None:
    """Beside Celery's own headers and in the dict that a body sees as its request's; and only in the block."""
    app = Celery("traced", broker="memory://", set_as_current=False)
    send = partial(app.send_task, "charge", queue=f"traced-{on}")
    with app.connection_for_write() as connection, connection.SimpleQueue(f"traced-{on}") as queue:
        with tracing(on=on):
            send()
        send()
        inside, outside = (headers_of(queue.get_nowait()) for _ in range(2))
    for headers in (inside, Context(inside).headers or {}):
        assert ("sentry-trace" in headers) is ("baggage" in headers) is ("x-datadog-trace-id" in headers) is on
    assert "sentry-trace" not in outside
    assert not outside.get("headers")


def headers_of(message: Any) -> dict[str, Any]:
    """Return the headers of a message, acknowledged."""
    message.ack()
    headers: dict[str, Any] = message.headers
    return headers
