"""The admin commands against a real table: what they print, change and refuse."""

import json
import socket
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask, RecordNotFoundError, Status
from idempotent_tasks.cli import idempotency
from idempotent_tasks.cli.format import STATES
from idempotent_tasks.core.encoding import encode_failure
from idempotent_tasks.core.processes import current_process
from idempotent_tasks.core.records import Busy, Granted, reservation_owner
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.guarding import done, grant, request_by
from tests.testbed.forking import Child
from tests.testbed.processes import free_port
from tests.testbed.wire import Wire, lose_answer, refuse

Run = Callable[..., Result]

RESULT = '"of which nobody is to know"'


def charge(order: int) -> int:
    """A task body."""
    return order


@pytest.fixture
def app(dynamodb: DynamoDBStore) -> Celery:
    """An app with this test's table."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.update(idempotency_store=dynamodb, task_time_limit=60)
    app.task(charge, name="shop.charge", base=IdempotentTask, shared=False)
    app.task(charge, name="shop.old", base=IdempotentTask, shared=False, idempotency=Idempotency(prefix="renamed"))
    return app


@pytest.fixture
def run(app: Celery) -> Run:
    """Run a command as ``celery -A shop idempotency`` does."""

    def run(*words: str, app: Celery = app) -> Result:
        return CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))

    return run


@pytest.fixture
def records(dynamodb: DynamoDBStore) -> DynamoDBStore:
    """A table with one record of each state, whose key ends with the state."""
    grant(dynamodb, "r", key="shop.charge#running", lease_seconds=600)
    dynamodb.release(grant(dynamodb, "f", key="shop.charge#free"), "Retry")
    dynamodb.commit(grant(dynamodb, "c", key="shop.charge#completed"), done(RESULT), 3600)
    return dynamodb


class TestList:
    """``list``."""

    def test_a_line_for_each_record(self, run: Run, records: DynamoDBStore) -> None:
        """State, age, time left, attempt, task id and key; never the result."""
        result = run("list")
        assert result.exit_code == 0
        lines = {line.split()[-1]: line.split() for line in result.stdout.splitlines()[1:-1]}
        assert {key: words[0] for key, words in lines.items()} == {
            "shop.charge#running": "running",
            "shop.charge#free": "free",
            "shop.charge#completed": "completed",
        }
        assert lines["shop.charge#running"][4] == "id-r"
        assert result.stdout.splitlines()[-1] == "3 records"
        assert RESULT not in result.output

    @pytest.mark.parametrize(
        ("words", "keys"),
        [
            (["--status", "free"], ["shop.charge#free"]),
            (["--status", "free", "--status", "running"], ["shop.charge#free", "shop.charge#running"]),
            (["--task", "shop.other"], []),
            (["--before", "1h"], []),
            (["--before", "2099-01-01"], ["shop.charge#completed", "shop.charge#free", "shop.charge#running"]),
            (["--after", "2099-01-01T00:00:00+02:00"], []),
        ],
        ids=" ".join,
    )
    def test_selections(self, run: Run, records: DynamoDBStore, words: list[str], keys: list[str]) -> None:
        """Filters by state, task and age; ``--json`` prints one object a line."""
        result = run("list", "--json", *words)
        assert sorted(json.loads(line)["key"] for line in result.stdout.splitlines()) == keys

    def test_sizes_for_a_program(self, run: Run, records: DynamoDBStore) -> None:
        """``--json`` prints the size of the data, None if there is none, and never the data."""
        result = run("list", "--json")
        sizes = {shown["key"]: shown["data_bytes"] for shown in map(json.loads, result.stdout.splitlines())}
        assert sizes == {
            "shop.charge#running": None,
            "shop.charge#free": None,
            "shop.charge#completed": len(RESULT),
        }
        assert RESULT not in result.output

    def test_a_limit(self, run: Run, records: DynamoDBStore) -> None:
        """``--limit`` stops the list."""
        assert len(run("list", "--json", "--limit", "2").stdout.splitlines()) == 2

    def test_what_is_no_record_is_counted(self, run: Run, records: DynamoDBStore, raw: Any) -> None:
        """An item of somebody else is reported on stderr and counted."""
        raw.put_item(TableName=records.table, Item={"id": {"S": "other"}, "status": {"S": "odd"}})
        result = run("list")
        assert "'other' is no record" in result.stderr
        assert result.stdout.splitlines()[-1] == "3 records, 1 items that are none"

    def test_a_page_that_fails_is_asked_for_again(self, run: Run, records: DynamoDBStore, wire: Wire) -> None:
        """A list of many pages is not ended by one failed request."""
        wire.clear()
        wire.break_nth("Scan", 1, refuse)
        assert run("list").stdout.splitlines()[-1] == "3 records"


class TestStates:
    """A record is in one state, by one word, wherever it is shown and by whatever it is filtered."""

    @pytest.fixture
    def one_of_each(self, records: DynamoDBStore, raw: Any) -> DynamoDBStore:
        """A record of each state; those that have expired were each another before, and are not swept."""
        swept = {"Enabled": False, "AttributeName": "expiration"}
        raw.update_time_to_live(TableName=records.table, TimeToLiveSpecification=swept)
        records.claim(request_by(reservation_owner("id-p"), key="shop.charge#reserved", task_id="id-p"))
        records.park(grant(records, "y", key="shop.charge#parked"), "Rerun")
        records.release(grant(records, "z", key="shop.charge#settling", settle_seconds=600), "TimeoutError")
        records.commit(grant(records, "x", key="shop.charge#failed"), encode_failure(ValueError(17)), 3600)
        for state, key in (("completed", "shop.charge#expired"), ("running", "shop.charge#expired-while-it-ran")):
            item = raw.get_item(TableName=records.table, Key={"id": {"S": f"shop.charge#{state}"}})["Item"]
            past = {"N": str(int(records.clock.now()) - 60)}
            raw.put_item(TableName=records.table, Item={**item, "id": {"S": key}, "expiration": past})
        return records

    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize("option", ["--state", "--status"])
    def test_one_word(self, run: Run, one_of_each: DynamoDBStore, option: str, state: str) -> None:
        """The word in a list, in its filter, in its JSON and in `show` is the same."""
        lines = run("list", option, state).stdout.splitlines()[1:-1]
        listed = [json.loads(line) for line in run("list", "--json", option, state).stdout.splitlines()]
        keys = {each["key"] for each in listed}
        ran = {"shop.charge#expired-while-it-ran"} if state == "expired" else set()
        assert keys == {f"shop.charge#{state}"} | ran
        assert {line.split()[0] for line in lines} == {each["state"] for each in listed} == {state}
        for key in keys:
            assert json.loads(run("show", "--json", key).stdout)["state"] == state
            assert run("show", key).stdout.splitlines()[1].split() == ["state", state]

    def test_an_expired_record(self, run: Run, one_of_each: DynamoDBStore) -> None:
        """There is nothing to release in it, no time is left of it, and it may be purged by that word only."""
        for key in ("shop.charge#expired", "shop.charge#expired-while-it-ran"):
            refused = run("release", key, "--yes", "--force")
            assert (refused.exit_code, "is expired already; the next delivery runs" in refused.stderr) == (1, True)
            assert json.loads(run("show", "--json", key).stdout)["seconds_left"] == 0
        purge = ("purge", "--before", "2099-01-01", "--yes")
        assert "deleted 1" in run(*purge, "--state", "completed").stdout
        assert "deleted 2" in run(*purge, "--state", "expired").stdout

    def test_a_failure_is_not_completed(self, run: Run, one_of_each: DynamoDBStore) -> None:
        """No field of a failure calls it so."""
        shown = run("show", "--json", "shop.charge#failed").stdout
        assert "completed" not in shown
        assert json.loads(shown)["finished_at"] is not None


class TestShow:
    """``show``."""

    def test_who_holds_a_key(self, run: Run, records: DynamoDBStore) -> None:
        """Holder, time left and attempts of a claim are shown."""
        shown = json.loads(run("show", "shop.charge#running", "--json").stdout)
        assert (shown["state"], shown["task_id"], shown["worker"], shown["attempt"]) == (
            "running",
            "id-r",
            "worker@host",
            1,
        )
        assert 590 < shown["seconds_left"] <= 600
        assert shown["held_until"] > shown["claimed_at"]

    def test_the_runs_of_a_key(self, run: Run, dynamodb: DynamoDBStore) -> None:
        """How many left no outcome, since when, whose the last one was, and which fresh start of the key it is."""
        key = "shop.charge#rerun"
        first = grant(dynamodb, "secret", key=key, task_id="id-one")
        dynamodb.release(first, "ValueError")
        claim = grant(dynamodb, "two", key=key)
        shown = json.loads(run("show", key, "--json").stdout)
        assert (shown["runs"], shown["previous_task_id"], shown["generation"]) == (2, "id-one", first.generation)
        assert shown["previous_claimed_at"] == shown["unresolved_since"] <= shown["claimed_at"]
        text = run("show", key).stdout
        assert "previous_task_id" in text
        assert "secret" not in text
        dynamodb.commit(claim, done(), 3600)
        shown = json.loads(run("show", key, "--json").stdout)
        names = ("runs", "previous_task_id", "unresolved_since", "generation")
        assert tuple(shown[name] for name in names) == (0, None, None, first.generation)

    def test_the_result_only_on_demand(self, run: Run, records: DynamoDBStore) -> None:
        """Without ``--data`` only the size of the result is shown."""
        quiet = run("show", "shop.charge#completed")
        assert RESULT not in quiet.output
        assert f"data_bytes    {len(RESULT)}" in quiet.stdout
        assert json.loads(run("show", "shop.charge#completed", "--json", "--data").stdout)["data"] == RESULT

    @pytest.mark.parametrize(
        ("key", "words"), [("shop.charge#t1", []), ("renamed#t1", []), ("shop.charge#of", ["--scan"])]
    )
    def test_by_task_id(self, run: Run, dynamodb: DynamoDBStore, key: str, words: list[str]) -> None:
        """A task's own prefix leads to its record; a key from the arguments only a scan finds."""
        grant(dynamodb, key=key, task_id="t1")
        assert json.loads(run("show", "t1", "--json", *words).stdout)["key"] == key

    @pytest.mark.parametrize("words", [[], ["--scan"]], ids=["by-key", "by-scan"])
    def test_the_data_however_it_was_found(self, run: Run, records: DynamoDBStore, words: list[str]) -> None:
        """A record that a scan without data has found is read again with its data."""
        name = "id-c" if words else "shop.charge#completed"
        shown = json.loads(run("show", name, "--json", "--data", *words).stdout)
        assert (shown["key"], shown["data"], shown["data_bytes"]) == ("shop.charge#completed", RESULT, len(RESULT))
        assert json.loads(run("show", name, "--json", *words).stdout)["data_bytes"] == len(RESULT)

    def test_data_of_a_failure_and_of_two_records(self, run: Run, dynamodb: DynamoDBStore) -> None:
        """Each record of a task id is shown with its own data, if it has any."""
        dynamodb.commit(grant(dynamodb, "a", key="shop.charge#a", task_id="t1"), encode_failure(ValueError(17)), 3600)
        grant(dynamodb, "b", key="shop.charge#b", task_id="t1")
        shown = {each["key"]: each for each in json.loads(run("show", "t1", "--scan", "--data", "--json").stdout)}
        assert json.loads(shown["shop.charge#a"]["data"])["args"] == [17]
        assert shown["shop.charge#b"]["data_bytes"] is None
        assert "data" not in shown["shop.charge#b"]

    def test_nothing_there(self, run: Run, dynamodb: DynamoDBStore) -> None:
        """A record that is not found ends with 1 and the hint to ``--scan``."""
        result = run("show", "t1")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no record: 't1'; --scan" in result.stderr


class TestRelease:
    """``release``."""

    def test_a_claim_of_a_process_that_has_ended(self, run: Run, dynamodb: DynamoDBStore) -> None:
        """The claim of a process of this machine that has exited is released without ``--force``."""
        grant(dynamodb, key="shop.charge#1", process=Child(current_process).result(), lease_seconds=600)
        assert json.loads(run("show", "shop.charge#1", "--json").stdout)["process_has_ended"] is True
        assert run("release", "shop.charge#1", "--yes").exit_code == 0
        assert isinstance(dynamodb.claim(request_by("second", key="shop.charge#1")), Granted)

    def test_a_reservation(self, run: Run, dynamodb: DynamoDBStore) -> None:
        """A reservation is released without ``--force``, because no body runs under it."""
        reserver = request_by(reservation_owner("id-lost"), key="shop.charge#1", task_id="id-lost", lease_seconds=600)
        dynamodb.claim(reserver)
        assert json.loads(run("list", "--status", "reserved", "--json").stdout)["task_id"] == "id-lost"
        assert run("release", "shop.charge#1", "--yes").exit_code == 0
        assert isinstance(dynamodb.claim(request_by("second", key="shop.charge#1")), Granted)

    def test_by_force(self, run: Run, records: DynamoDBStore) -> None:
        """``--force`` releases a live claim."""
        assert run("release", "shop.charge#running", "--yes", "--force").exit_code == 0
        assert isinstance(records.claim(request_by("second", key="shop.charge#running")), Granted)

    def test_a_live_claim_is_refused(self, run: Run, records: DynamoDBStore) -> None:
        """The holder and the time left are printed; nothing changes."""
        result = run("release", "shop.charge#running", "--yes")
        assert result.exit_code == 1
        assert "is held by id-r on worker@host for another" in result.stderr
        assert "--force" in result.stderr
        assert isinstance(records.claim(request_by("second", key="shop.charge#running")), Busy)

    @pytest.mark.parametrize(
        ("key", "why"),
        [
            ("shop.charge#free", "is free already"),
            ("shop.charge#completed", "is completed, there is no claim"),
            ("shop.charge#none", "no record"),
            ("some-task-id", "is no key"),
        ],
    )
    def test_nothing_to_release(self, run: Run, records: DynamoDBStore, key: str, why: str) -> None:
        """Releasing what is no claim ends with 1 and the reason."""
        result = run("release", key, "--yes", "--force")
        assert result.exit_code == 1
        assert why in result.stderr

    def test_nobody_to_ask(self, run: Run, records: DynamoDBStore) -> None:
        """Without a terminal and without ``--yes`` nothing changes."""
        result = run("release", "shop.charge#running", "--force")
        assert result.exit_code == 1
        assert "say --yes" in result.stderr
        assert isinstance(records.claim(request_by("second", key="shop.charge#running")), Busy)

    def test_a_record_that_changed_meanwhile(self, run: Run, records: DynamoDBStore, wire: Wire) -> None:
        """A record that has changed since it was read is left alone, and the operator sees that."""

        def successor(forward: Any) -> Any:
            wire.heal()
            claim = records.get("shop.charge#running")
            records.commit(grant_of(records, claim.owner or ""), done(), 3600)
            return forward()

        wire.break_when(lambda operation, _: operation == "UpdateItem", successor)
        result = run("release", "shop.charge#running", "--yes", "--force")
        assert result.exit_code == 1
        assert "changed since it was read, nothing was done" in result.stderr
        assert records.get("shop.charge#running").status is Status.COMPLETED


def grant_of(store: DynamoDBStore, owner: str) -> Any:
    """Return the claim that this owner already holds."""
    return grant(store, owner, key="shop.charge#running")


class TestForget:
    """``forget``."""

    def test_an_outcome(self, run: Run, records: DynamoDBStore) -> None:
        """``forget`` deletes a stored outcome."""
        assert run("forget", "shop.charge#completed", "--yes").exit_code == 0
        with pytest.raises(RecordNotFoundError):
            records.get("shop.charge#completed")

    def test_a_live_claim_is_refused(self, run: Run, records: DynamoDBStore) -> None:
        """``forget`` deletes a live claim only with ``--force``."""
        assert run("forget", "shop.charge#running", "--yes").exit_code == 1
        assert records.get("shop.charge#running").owner == "r"
        assert run("forget", "shop.charge#running", "--yes", "--force").exit_code == 0

    @pytest.mark.parametrize("skew_seconds", [1200, -1200], ids=["ahead", "behind"])
    def test_a_live_claim_is_alive_whatever_the_machines_clock_says(
        self, app: Celery, run: Run, records: DynamoDBStore, make_store: MakeStore, skew_seconds: int
    ) -> None:
        """DynamoDB's time decides, although a first answer that contradicts the machine's clock is to be confirmed."""
        clock = MovableClock()
        clock.advance(skew_seconds)
        app.conf.idempotency_store = make_store(clock=clock)
        assert run("forget", "shop.charge#running", "--yes").exit_code == 1
        assert records.get("shop.charge#running").owner == "r"


class TestPurge:
    """``purge``."""

    def test_counted_shown_asked(self, run: Run, records: DynamoDBStore) -> None:
        """Without a terminal and without ``--yes`` it is a dry run."""
        result = run("purge", "--status", "completed", "--before", "2099-01-01")
        assert result.exit_code == 1
        assert "1 record\n" in result.stdout
        assert "shop.charge#completed" in result.stdout
        assert records.get("shop.charge#completed").status is Status.COMPLETED

    def test_deleted(self, run: Run, dynamodb: DynamoDBStore) -> None:
        """All selected records are deleted, and no others."""
        for number in range(300):
            dynamodb.commit(grant(dynamodb, key=f"shop.charge#{number}"), done(), 3600)
        grant(dynamodb, key="shop.charge#running")
        result = run("purge", "--status", "completed", "--status", "running", "--before", "2099-01-01", "--yes")
        assert result.exit_code == 0
        assert "300 records, 5 of them above" in result.stdout
        assert "deleted 300" in result.stdout
        assert [each.key for each in TableAdmin(dynamodb).records()] == ["shop.charge#running"]

    def test_an_answer_that_is_lost_is_not_counted(self, run: Run, records: DynamoDBStore, wire: Wire) -> None:
        """A deletion without an answer ends with 1; running the command again finishes it."""
        wire.clear()
        wire.break_nth("DeleteItem", 1, lose_answer)
        words = ["purge", "--status", "completed", "--before", "2099-01-01", "--yes"]
        result = run(*words)
        assert result.exit_code == 1
        assert "1 deletions had no answer; run the command again" in result.stderr
        assert run(*words).stdout == "no such records\n"

    def test_nothing_old_enough(self, run: Run, records: DynamoDBStore) -> None:
        """If no record is old enough, the command does not ask."""
        result = run("purge", "--status", "completed", "--before", "1d")
        assert (result.exit_code, result.stdout) == (0, "no such records\n")


class TestErrors:
    """Errors are one line and an exit code, without a traceback."""

    def test_a_store_that_is_away(self, run: Run, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """A store that cannot be reached ends with 3."""
        with wire.outage(refuse):
            result = run("show", "shop.charge#17")
        assert result.exit_code == 3
        assert result.stderr.startswith("Error: dynamodb:")
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("words", [["list"], ["show", "shop.charge#17"], ["create-table"]], ids=" ".join)
    def test_no_credentials(self, run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
        """Missing credentials end with 3 at once, without the retries of a network error."""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setattr("idempotent_tasks.core.clock.SystemClock.sleep", lambda *_: pytest.fail("it waits"))
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.idempotency_store = "dynamodb://eu-west-1/records"
        result = run(*words, app=app)
        assert result.exit_code == 3
        assert "no credentials were found" in result.stderr

    @pytest.mark.parametrize("words", [["list"], ["check"]], ids=" ".join)
    def test_a_wrong_setting(self, run: Run, words: list[str]) -> None:
        """A wrong setting ends with 2."""
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.idempotency_store = "nonsense"
        result = run(*words, app=app)
        assert result.exit_code == 2
        assert "unusable idempotency store" in result.stderr

    def test_a_store_in_memory(self, run: Run) -> None:
        """A memory store, which no other process can read, ends with 2."""
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.idempotency_store = "memory://"
        result = run("list", app=app)
        assert result.exit_code == 2
        assert "which only the process that made it can look into" in result.stderr

    def test_a_lost_answer_is_reported(self, run: Run, records: DynamoDBStore, wire: Wire) -> None:
        """A release whose answer is lost ends with 3; a second one shows that it was done."""
        wire.clear()
        wire.break_nth("UpdateItem", 1, lose_answer)
        assert run("release", "shop.charge#running", "--yes", "--force").exit_code == 3
        assert "is free already" in run("release", "shop.charge#running", "--yes").stderr


class TestCheck:
    """``check``."""

    def test_nothing_found(self, run: Run, app: Celery) -> None:
        """No finding ends with 0."""
        result = run("check")
        assert (result.exit_code, result.stdout) == (0, "0 findings\n")

    def test_findings(self, run: Run, app: Celery) -> None:
        """Findings end with 1, and are printed with reason and remedy, as text or JSON."""
        app.conf.result_expires = 60
        app.tasks.pop("shop.old")
        result = run("check")
        assert result.exit_code == 1
        assert "result-expires-first: task 'shop.charge': records live up to 3600 s, results 60 s" in result.stdout
        assert "remedy: app.conf.result_expires = 3600" in result.stdout
        (finding,) = json.loads(run("check", "--json").stdout)
        assert (finding["code"], finding["remedy"]) == ("result-expires-first", "app.conf.result_expires = 3600")
        assert finding["tasks"] == ["shop.charge"]


def test_the_template_has_the_bucket_of_the_app(run: Run, app: Celery) -> None:
    """The bucket's rule keeps objects a day longer than the longest expiry of the app's tasks."""
    assert "AWS::S3::Bucket" not in run("template", "--format", "cloudformation").stdout
    app.conf.idempotency_store = app.conf.idempotency_store.for_app("shop")
    app.conf.idempotency_results_bucket = "s3://large-results/shop"
    policy = Idempotency(expires=7 * 86_400)
    app.task(charge, name="shop.weekly", base=IdempotentTask, shared=False, idempotency=policy)
    shown = json.loads(run("template", "--format", "cloudformation").stdout)["Resources"]["IdempotencyResults"]
    (rule,) = shown["Properties"]["LifecycleConfiguration"]["Rules"]
    assert (rule["Prefix"], rule["ExpirationInDays"]) == ("shop/", 8)


class TestTemplate:
    """``template`` and ``create-table``: options without effect are refused, what a policy leaves out is said."""

    KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"

    def test_a_protected_table(self, run: Run, app: Celery) -> None:
        """The options reach the template, and the table that the command creates."""
        options = ("--deletion-protection", "--kms-key", self.KEY)
        shown = json.loads(run("template", "--format", "cloudformation", *options).stdout)
        properties = shown["Resources"]["IdempotencyTable"]["Properties"]
        assert properties["DeletionProtectionEnabled"] is True
        assert properties["SSESpecification"]["KMSMasterKeyId"] == self.KEY
        created = run("create-table", *options)
        assert (created.exit_code, "protected against deletion" in created.stdout) == (0, True), created.output

    def test_a_tenant(self, run: Run, app: Celery) -> None:
        """The tasks that the policy shuts out are named beside it."""
        result = run("template", "--format", "iam", "--tenant", "shop.")
        (condition, _) = json.loads(result.stdout)["Statement"][0]["Condition"].values()
        assert condition == {"dynamodb:LeadingKeys": ["shop.*"]}
        assert result.stderr == "Not of this tenant, and refused by this policy: renamed\n"

    def test_a_tenant_of_a_composite_table(self, run: Run, app: Celery, make_store: MakeStore) -> None:
        """There the partition key is the tenant's, and a prefix of the sort key is none."""
        app.conf.idempotency_store = make_store(sort_key_attr="sort", static_pk_value="tenant-1")
        assert run("template", "--format", "iam", "--tenant", "tenant-1").exit_code == 0
        refused = run("template", "--format", "iam", "--tenant", "shop.")
        assert refused.exit_code == 2
        assert "'tenant-1', which does not begin with 'shop.'" in " ".join(refused.stderr.split())

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("template --format terraform --tenant acme.", "--tenant is about permissions"),
            ("template --format iam --deletion-protection", "have no effect"),
            ("template --format iam --point-in-time-recovery", "have no effect"),
            ("template --format iam --tenant=", "--tenant is empty"),
            ("template --format iam --kms-key alias/shop", "write the ARN of a key"),
            ("create-table --kms-key 11111111-2222-3333-4444-555555555555", "write the ARN of a key"),
        ],
    )
    def test_what_has_no_effect(self, run: Run, wire: Wire, words: str, said: str) -> None:
        """Such an option ends with 2, and nothing is asked or printed."""
        wire.clear()
        result = run(*words.split())
        assert (result.exit_code, result.stdout, wire.operations()) == (2, "", [])
        assert said in result.stderr


def test_watch_once(run: Run, app: Celery, records: DynamoDBStore) -> None:
    """``--once`` prints the claims in flight and the rates, which are 0 without events."""
    # A real one may bring the events of other tests.
    app.conf.broker_url = "memory://"
    shown = json.loads(run("watch", "--once", "--interval", "0.5").stdout)
    assert [each["key"] for each in shown["in_flight"]] == ["shop.charge#running"]
    assert set(shown["per_second"].values()) == {0.0}


def test_watch_without_a_broker(run: Run, app: Celery, records: DynamoDBStore) -> None:
    """The claims are shown all the same, and why there are no events."""
    app.conf.broker_url = f"redis://127.0.0.1:{free_port()}/0"
    shown = json.loads(run("watch", "--once", "--interval", "1").stdout)
    assert [each["key"] for each in shown["in_flight"]] == ["shop.charge#running"]
    assert shown["broker_error"] == "OperationalError"


def test_watch_with_a_silent_broker(
    run: Run, app: Celery, records: DynamoDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that accepts the connection and says nothing is named, and not taken for one without events."""
    # The package's attribute of that name is the command.
    monkeypatch.setattr(import_module("idempotent_tasks.cli.watch"), "FIRST_ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app.conf.broker_url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        shown = json.loads(run("watch", "--once", "--interval", "0.5").stdout)
    assert [each["key"] for each in shown["in_flight"]] == ["shop.charge#running"]
    assert shown["broker_error"] == "no answer yet"


def test_watch_live(run: Run, app: Celery, records: DynamoDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The screen has the claims; Ctrl-C ends it with 0."""
    app.conf.broker_url = "memory://"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("idempotent_tasks.core.clock.SystemClock.sleep", interrupt)
    result = run("watch")
    assert result.exit_code == 0, result.output
    assert "1 claims in flight" in result.stdout


def test_the_table_is_made_by_the_command(run: Run, dynamodb: DynamoDBStore, raw: Any) -> None:
    """``create-table`` creates the table, and repeating it is harmless."""
    raw.delete_table(TableName=dynamodb.table)
    assert "table-missing" in run("check").stdout
    assert run("create-table").exit_code == run("create-table").exit_code == 0
    assert run("check").exit_code == 0
