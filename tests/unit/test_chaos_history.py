"""The chaos command's judge: what a history shows, promise by promise, from hand-made events alone."""

from collections.abc import Sequence

from benchmarks.chaos.checker import OVERTAKING_SECONDS, Finding, Kind, check
from benchmarks.chaos.figures import Figures, Recovery, figures_of, recoveries, spread
from benchmarks.chaos.history import Event, History, What
from benchmarks.chaos.plan import LAST_RANK, StrikeKind, draw

W1, W2 = "w1@ours", "w2@ours"
CHILD, OTHER = 11, 22
KEY = "k001"

Events = list[Event]


class Book:
    """Writes a history of the key ``k001``, line by line."""

    def __init__(self) -> None:
        self.events: Events = []

    def add(self, what: What, at: float, **details: object) -> Event:
        """Add an event."""
        event = Event(what=what, at=at, line=len(self.events) + 1, **{"key": KEY, **details})  # type: ignore[arg-type]
        self.events.append(event)
        return event

    def run(
        self,
        run: str,
        started: float,
        *,
        effect: float | None = None,
        ended: float | None = None,
        pid: int = CHILD,
        worker: str = W1,
        message: str = "m1",
    ) -> None:
        """Add a run of the body, as far as it came; one that ends is also settled."""
        about = {"run": run, "task_id": message, "pid": pid}
        self.add(What.STARTED, started, worker=worker, **about)
        if effect is not None:
            self.add(What.EFFECT, effect, value=run, **about)
        if ended is not None:
            self.add(What.ENDED, ended, value=run, **about)
            self.add(What.OVER, ended, task_id=message, pid=pid, key="")

    def published(self, *messages: str, result: str = "a") -> None:
        """Add publications that all have one result."""
        for message in messages:
            self.add(What.PUBLISHED, 0.0, task_id=message)
            self.result(message, result)

    def result(self, message: str, value: str, at: float = 90.0, state: str = "SUCCESS") -> None:
        """Add what the result backend holds."""
        self.add(What.RESULT, at, task_id=message, value=value, state=state)

    def step(self, run: str, step: str, at: float, *, pid: int = CHILD) -> Event:
        """Add one of several effects of a run."""
        return self.add(What.EFFECT, at, run=run, step=step, task_id="m1", pid=pid, value=run)

    def charged(self, run: str, at: float, *, pid: int = CHILD, message: str = "m1") -> Event:
        """Add a charge that a run has asked a provider for."""
        return self.add(What.CHARGED, at, run=run, task_id=message, pid=pid, value=run)

    def kill_child(self, at: float, pid: int = CHILD, worker: str = W1) -> Event:
        """Add the kill of one process of a pool."""
        return self.add(What.KILLED, at, pid=pid, worker=worker)

    def kill_worker(self, at: float, worker: str = W1) -> Event:
        """Add the kill of a whole worker."""
        return self.add(What.KILLED, at, worker=worker)

    def findings(self, *, forgetful: bool = False) -> list[Finding]:
        """Return what the checker finds."""
        return check(self.events, [KEY], forgetful=forgetful)

    def kinds(self, *, forgetful: bool = False) -> list[Kind]:
        """Return the kinds of the findings."""
        return [finding.kind for finding in self.findings(forgetful=forgetful)]

    def figures(self, prevents: tuple[Kind, ...] = ()) -> Figures:
        """Return the figures."""
        about = {"forgetful": False, "settled": True, "seconds": 90.0, "missed": 0}
        return figures_of("ours", "IdempotentTask", self.events, [KEY], prevents=prevents, **about)  # type: ignore[arg-type]

    def recoveries(self) -> Sequence[Recovery]:
        """Return the recoveries."""
        return recoveries(self.events)


def test_recovered_key_breaks_nothing() -> None:
    """A run that dies before its effect and one that follows it: one effect, one result for two publishers."""
    book = Book()
    book.published("m1", "m2", result="b")
    book.run("a", 1.0)
    book.kill_child(2.0)
    book.run("b", 6.0, effect=7.0, ended=8.0)
    assert book.findings() == []


def test_second_effect_is_a_duplicate_at_the_event_that_repeats_it() -> None:
    """The finding names the line, time, key and processes of the second effect."""
    book = Book()
    book.published("m1", "m2")
    book.run("a", 1.0, effect=2.0, ended=3.0)
    book.run("b", 4.0, effect=5.0, ended=6.0, pid=OTHER)
    (finding,) = book.findings()
    effect = book.events[9]
    assert (effect.what, effect.run) == (What.EFFECT, "b")
    assert finding.kind is Kind.DUPLICATED
    assert (finding.line, finding.at, finding.key, finding.pids) == (effect.line, 5.0, KEY, (CHILD, OTHER))


def test_kill_between_effect_and_commit_is_the_limit() -> None:
    """The repetition by a run that starts after the kill is counted apart, whoever was killed: child or worker."""
    for kill in (Book.kill_child, Book.kill_worker):
        book = Book()
        book.published("m1", result="b")
        book.run("a", 1.0, effect=2.0)
        kill(book, 2.5)
        book.run("b", 6.0, effect=7.0, ended=8.0)
        assert book.kinds() == [Kind.LIMIT]


def test_kill_excuses_the_repetition_of_a_returned_body_until_its_outcome_is_stored() -> None:
    """Between the end of the body and the commit the limit holds; after the commit a second effect is a duplicate."""
    for committed, kind in ((False, Kind.LIMIT), (True, Kind.DUPLICATED)):
        book = Book()
        book.published("m1", result="b")
        book.run("a", 1.0, effect=2.0)
        book.add(What.ENDED, 2.1, run="a", task_id="m1", pid=CHILD, value="a")
        if committed:
            book.add(What.COMMITTED, 2.2, task_id="m1", pid=CHILD, key="")
        book.kill_child(2.3)
        book.run("b", 6.0, effect=7.0, ended=8.0)
        assert book.kinds() == [kind], f"committed: {committed}"


def test_kill_excuses_no_run_that_was_there_before_it() -> None:
    """Two runs at once break the promise, although the first is killed after its effect."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0, effect=3.0)
    book.run("b", 2.0, effect=4.0, ended=5.0, pid=OTHER)
    book.kill_child(3.5)
    assert book.kinds() == [Kind.OVERLAP, Kind.DUPLICATED]


def test_kill_of_another_process_excuses_nothing() -> None:
    """Only the blow that falls on a run ends it."""
    book = Book()
    book.published("m1", result="a")
    book.run("a", 1.0, effect=2.0, ended=3.0)
    book.kill_child(2.5, pid=OTHER)
    book.kill_worker(2.6, worker=W2)
    book.run("b", 4.0, effect=5.0, ended=6.0)
    assert book.kinds() == [Kind.DUPLICATED]


def test_kill_ends_what_its_process_began_before_the_signal_came() -> None:
    """The blow is noted first, and the run that it was for may end, and another begin, until the signal is sent."""
    book = Book()
    book.published("m1", result="b")
    about = {"key": "k002", "pid": CHILD, "run": "z", "task_id": "m9"}
    book.add(What.STARTED, 1.0, worker=W1, **about)
    book.kill_child(1.5)
    book.run("a", 2.0)
    book.add(What.STRUCK, 2.5, pid=CHILD, worker=W1, key="")
    book.run("b", 3.0, effect=4.0, ended=5.0, pid=OTHER)
    assert book.findings() == []
    assert [each.seconds for each in book.recoveries() if each.key == KEY] == [0.5]


def test_third_effect_is_judged_by_each_before_it() -> None:
    """One repetition at the limit does not excuse a later one of an effect whose outcome was stored."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0, effect=2.0)
    book.kill_child(2.5)
    book.run("b", 3.0, effect=4.0, ended=5.0)
    book.run("c", 6.0, effect=7.0, ended=8.0)
    assert book.kinds() == [Kind.LIMIT, Kind.DUPLICATED]


def test_request_outlives_the_process_that_sent_it() -> None:
    """A charge is made after the kill, and is no sign of life: its repetition is the limit, and nothing overlaps."""
    for charged_at in (2.2, 4.5):
        book = Book()
        book.published("m1", result="b")
        book.run("a", 1.0)
        book.kill_child(2.0)
        book.charged("a", charged_at)
        book.run("b", 2.1, pid=OTHER)
        book.charged("b", 4.0, pid=OTHER)
        about = {"run": "b", "task_id": "m1", "pid": OTHER}
        book.add(What.ENDED, 5.0, value="b", **about)
        book.add(What.OVER, 5.1, task_id="m1", pid=OTHER, key="")
        assert book.kinds() == [Kind.LIMIT], f"charged at {charged_at}"


def test_charge_that_recover_finds_is_the_keys_one_effect() -> None:
    """The key has its effect by the dead run, and its result without another run."""
    book = Book()
    book.published("m1", "m2", result="a")
    book.run("a", 1.0)
    book.kill_child(2.0)
    book.charged("a", 2.2)
    book.add(What.RECOVERED, 8.0, task_id="m1", state="done", key="")
    assert book.findings() == []
    assert book.figures().counts["recovered"] == 1


def parked() -> Book:
    """Tell of a run that was killed after its request, and whose key was parked with both of its messages."""
    book = Book()
    for message in ("m1", "m2"):
        book.add(What.PUBLISHED, 0.0, task_id=message)
    book.run("a", 1.0)
    book.kill_child(2.0)
    book.charged("a", 2.2)
    for message, at in (("m1", 3.0), ("m2", 3.5)):
        book.add(What.PARKED, at, task_id=message, state="rerun", key="")
        book.result(message, "UnresolvedError", at=at + 0.1, state="FAILURE")
    return book


def test_parked_key_is_done_once_it_is_resolved() -> None:
    """Its publishers had an error first, and have the result now; the time that a person took is no recovery."""
    book = parked()
    book.add(What.RESOLVED, 20.0, state="done")
    for message in ("m1", "m2"):
        book.result(message, "a")
    assert book.findings() == []
    figures = book.figures()
    assert (figures.counts["parked"], figures.counts["resolved"], figures.counts["resolved_done"]) == (1, 1, 1)
    assert book.recoveries() == []


def test_parked_key_that_nobody_resolves_is_lost() -> None:
    """To park is no outcome."""
    assert parked().kinds() == [Kind.LOST]


def test_wrong_resolution_repeats_the_effect() -> None:
    """An operator who has it run, although the books have the charge, is found out."""
    book = parked()
    book.add(What.RESOLVED, 20.0, state="run")
    book.run("b", 21.0, pid=OTHER)
    book.charged("b", 22.0, pid=OTHER)
    for message in ("m1", "m2"):
        book.result(message, "b")
    assert book.kinds() == [Kind.LIMIT]


def test_limit_breaks_the_promise_of_those_that_have_a_tool_against_it() -> None:
    """For others it is what no guard can prevent."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0, effect=2.0)
    book.kill_child(2.5)
    book.run("b", 6.0, effect=7.0, ended=8.0)
    assert book.figures().broken == []
    assert [finding.kind for finding in book.figures(prevents=(Kind.LIMIT,)).broken] == [Kind.LIMIT]


def test_two_bodies_at_once_overlap() -> None:
    """The finding is at the start of the second; bodies that follow each other do not overlap."""
    book = Book()
    book.published("m1")
    book.run("a", 1.0, effect=4.0, ended=5.0)
    book.run("b", 4.5, pid=OTHER)
    book.run("c", 5.0, pid=33)
    book.kill_child(5.0, pid=OTHER)
    (finding,) = [each for each in book.findings() if each.kind is Kind.OVERLAP]
    assert (finding.at, finding.pids) == (4.5, (CHILD, OTHER))


def test_paused_run_that_is_overtaken_is_a_zombie() -> None:
    """Its overlap and its late effect are counted apart, because nothing but the effect's receiver can refuse it."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0)
    book.add(What.PAUSED, 2.0, pid=CHILD, worker=W1)
    book.run("b", 6.0, effect=7.0, ended=8.0, pid=OTHER)
    book.add(What.RESUMED, 9.0, pid=CHILD, worker=W1)
    about = {"run": "a", "task_id": "m1", "pid": CHILD, "value": "a"}
    book.add(What.EFFECT, 9.1, **about)
    book.add(What.ENDED, 9.2, **about)
    assert book.kinds() == [Kind.ZOMBIE_RUN, Kind.ZOMBIE_EFFECT]
    assert not any(finding.kind.breaks_promise for finding in book.findings())


def taken_over_in_its_transaction(*, written_at: float) -> Book:
    """Tell of a run that was paused in its transaction, and of a delivery that claimed its key meanwhile."""
    book = Book()
    book.published("m1", "m2", result="a")
    about = {"run": "a", "task_id": "m1", "pid": CHILD, "value": "a"}
    book.add(What.CLAIMED, 0.9, task_id="m1", pid=CHILD, key="")
    book.add(What.STARTED, 1.0, worker=W1, **{**about, "value": ""})
    book.add(What.PAUSED, 3.0, pid=CHILD, worker=W1)
    book.add(What.CLAIMED, 7.0, task_id="m2", pid=OTHER, key="")
    book.add(What.RESUMED, 9.0, pid=CHILD, worker=W1)
    book.add(What.ENDED, 9.1, **about)
    book.add(What.OVER, 9.2, task_id="m1", pid=CHILD, key="", state="SUCCESS")
    # Read when all is over, with the time at which the body wrote it.
    book.add(What.EFFECT, written_at, **about)
    return book


def test_effect_of_a_zombie_that_its_successor_takes_is_the_keys_one_effect() -> None:
    """Nothing is repeated, and the figures say that a zombie made it, whenever its open transaction wrote the row."""
    for written_at in (2.0, 9.05):
        book = taken_over_in_its_transaction(written_at=written_at)
        assert book.findings() == []
        assert (book.figures().counts["effects"], book.figures().counts["by_zombies"]) == (1, 1)


def test_effect_of_a_run_that_nobody_took_over_is_no_zombies() -> None:
    """Its own claim, one of another key, and one that comes when its outcome is safe or it is dead, take nothing."""
    book = Book()
    book.published("m1", "m2")
    book.add(What.PUBLISHED, 0.0, task_id="m9", key="k002")
    book.add(What.CLAIMED, 1.5, task_id="m9", pid=OTHER, key="")
    book.add(What.CLAIMED, 1.6, task_id="m1", pid=CHILD, key="")
    book.run("a", 1.0, effect=2.0, ended=3.0)
    book.add(What.CLAIMED, 4.0, task_id="m2", pid=OTHER, key="")
    assert book.figures().counts["by_zombies"] == 0
    dead = Book()
    dead.published("m1", "m2", result="b")
    dead.run("a", 1.0, effect=2.0)
    dead.kill_child(3.0)
    dead.add(What.CLAIMED, 4.0, task_id="m2", pid=OTHER, key="")
    assert dead.figures().counts["by_zombies"] == 0


def paused_after_its_end(settled_at: float) -> Book:
    """Tell of a run that was paused after its body, of its outcome, and of one that overtook it meanwhile."""
    book = Book()
    book.published("m1", result="b")
    about = {"run": "a", "task_id": "m1", "pid": CHILD}
    book.add(What.STARTED, 1.0, worker=W1, **about)
    book.add(What.EFFECT, 2.0, value="a", **about)
    book.add(What.ENDED, 3.0, value="a", **about)
    book.add(What.OVER, settled_at, task_id="m1", pid=CHILD, key="", state="IGNORED")
    book.add(What.PAUSED, 4.0, worker=W1)
    book.run("b", 8.0, effect=9.0, ended=10.0, pid=OTHER, worker=W2)
    book.add(What.RESUMED, 11.0, worker=W1)
    return book


def test_pause_between_body_and_commit_excuses_the_repeated_effect() -> None:
    """A process that stands still cannot store an outcome, nor renew the claim that it is stored under."""
    assert paused_after_its_end(settled_at=11.1).kinds() == [Kind.ZOMBIE_EFFECT]


def test_pause_after_the_commit_excuses_nothing() -> None:
    """What is on record is not to be repeated, whatever becomes of the process."""
    assert paused_after_its_end(settled_at=3.1).kinds() == [Kind.DUPLICATED]


def zombie_and_dead_successor(state: str) -> Book:
    """Tell of a paused run, of one that overtook it and was killed, of the paused one's effect, and of a third run."""
    book = Book()
    book.published("m1", result="c")
    book.run("a", 1.0)
    book.add(What.PAUSED, 2.0, pid=CHILD, worker=W1)
    book.run("b", 6.0, pid=OTHER, worker=W2)
    book.kill_child(8.0, OTHER, W2)
    about = {"run": "a", "task_id": "m1", "pid": CHILD, "value": "a"}
    book.add(What.EFFECT, 9.0, **about)
    book.add(What.RESUMED, 9.0, pid=CHILD, worker=W1)
    book.run("c", 9.0 + OVERTAKING_SECONDS + 1, effect=13.0, ended=14.0, pid=OTHER + 1)
    book.add(What.ENDED, 15.0, **about)
    book.add(What.OVER, 15.1, task_id="m1", pid=CHILD, key="", state=state)
    return book


def test_effect_of_a_zombie_whose_successor_died_is_a_zombies_effect() -> None:
    """What a run did after it was overtaken is on nobody's record, so a third run repeats it, beside it too."""
    assert zombie_and_dead_successor("IGNORED").kinds() == [Kind.ZOMBIE_RUN, Kind.ZOMBIE_RUN, Kind.ZOMBIE_EFFECT]


def test_zombie_whose_result_counts_excuses_no_other_run() -> None:
    """One that hands in its result all the same is a run like any other, and its effect was not to be repeated."""
    assert Kind.DUPLICATED in zombie_and_dead_successor("SUCCESS").kinds()


def test_pause_excuses_no_start_long_after_it() -> None:
    """A run that went on, and had the time to see that its claim held, must not be overtaken any more."""
    book = Book()
    book.published("m1", result="a")
    book.run("a", 1.0, effect=20.0, ended=21.0)
    book.add(What.PAUSED, 2.0, worker=W1)
    book.add(What.RESUMED, 9.0, worker=W1)
    book.run("b", 9.0 + OVERTAKING_SECONDS + 0.1, pid=OTHER)
    assert book.kinds() == [Kind.OVERLAP]


def test_run_that_never_goes_on_is_alive_until_it_is_killed() -> None:
    """A pause without an end ends with the kill."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0)
    book.add(What.PAUSED, 2.0, pid=CHILD, worker=W1)
    book.kill_worker(5.0)
    book.run("b", 6.0, effect=7.0, ended=8.0, pid=OTHER)
    assert book.findings() == []


def test_zombie_must_not_change_the_result() -> None:
    """A pause excuses the effect, never a second answer."""
    book = Book()
    book.run("a", 1.0)
    book.add(What.PAUSED, 2.0, pid=CHILD, worker=W1)
    book.run("b", 6.0, effect=7.0, ended=8.0, pid=OTHER)
    book.add(What.RESUMED, 9.0, pid=CHILD, worker=W1)
    book.add(What.PUBLISHED, 0.0, task_id="m1")
    book.result("m1", "b", at=8.1)
    book.result("m1", "a", at=90.0)
    assert Kind.CONFLICT in book.kinds()


def test_two_publishers_with_two_results_conflict() -> None:
    """The finding is at the later result; a third publisher with the same one is no further conflict."""
    book = Book()
    book.run("a", 1.0, effect=2.0, ended=3.0)
    for message in ("m1", "m2", "m3"):
        book.add(What.PUBLISHED, 0.0, task_id=message)
    for at, (message, value) in enumerate((("m1", "a"), ("m2", "b"), ("m3", "b")), start=10):
        book.result(message, value, at=at)
    (finding,) = book.findings()
    assert (finding.kind, finding.at) == (Kind.CONFLICT, 11.0)


def test_key_without_effect_or_result_is_lost() -> None:
    """Whether nothing ran, nothing was answered, or only a failure was."""
    nothing = Book()
    nothing.add(What.PUBLISHED, 0.0, task_id="m1")
    unanswered, failed = Book(), Book()
    for book, state in ((unanswered, "PENDING"), (failed, "FAILURE")):
        book.add(What.PUBLISHED, 0.0, task_id="m1")
        book.run("a", 1.0, effect=2.0, ended=3.0)
        book.result("m1", "", state=state)
    without_effect = Book()
    without_effect.published("m1")
    for book in (nothing, unanswered, failed, without_effect, Book()):
        assert book.kinds() == [Kind.LOST]


def test_publisher_without_a_result_is_no_lost_key() -> None:
    """One publisher has its result, another was dropped or waits indefinitely: counted at the publication."""
    book = Book()
    book.published("m1")
    book.run("a", 1.0, effect=2.0, ended=3.0)
    book.add(What.DROPPED, 1.5)
    book.add(What.PUBLISHED, 1.6, task_id="m3")
    assert [(finding.kind, finding.at) for finding in book.findings()] == [
        (Kind.UNANSWERED, 1.5),
        (Kind.UNANSWERED, 1.6),
    ]


def test_message_that_a_killed_worker_took_along_is_lost_by_the_broker() -> None:
    """Published, or last seen in a process that died; a broker that keeps what is unacknowledged has no such excuse."""
    unseen, received, started, put_off = Book(), Book(), Book(), Book()
    for book in (unseen, received, started, put_off):
        book.add(What.PUBLISHED, 0.0, task_id="m1")
    received.add(What.RECEIVED, 1.0, task_id="m1", worker=W1)
    started.run("a", 1.0)
    started.kill_child(2.0)
    put_off.add(What.DEFERRED, 1.0, task_id="m1", pid=CHILD)
    put_off.add(What.OVER, 1.1, task_id="m1", pid=CHILD, state="IGNORED")
    for book in (unseen, received, started, put_off):
        assert book.kinds(forgetful=True) == [Kind.LOST], "nobody was there to take it along"
        book.kill_worker(3.0)
        assert book.kinds(forgetful=True) == [Kind.LOST], "the broker may still have it"
        book.add(What.EMPTY, 90.0)
        assert book.kinds(forgetful=True) == [Kind.VANISHED]
        assert book.kinds() == [Kind.LOST]


def test_message_that_a_contender_acknowledged_is_its_own_loss() -> None:
    """A delivery that ended without an outcome, one that a living worker holds, and a failure are not the broker's."""
    acknowledged, held, failed = Book(), Book(), Book()
    for book in (acknowledged, held, failed):
        book.add(What.PUBLISHED, 0.0, task_id="m1")
        book.add(What.RECEIVED, 1.0, task_id="m1", worker=W2)
        book.kill_worker(3.0, worker=W1)
        book.add(What.EMPTY, 90.0)
    acknowledged.add(What.OVER, 2.0, task_id="m1", pid=CHILD, state="IGNORED")
    failed.result("m1", "", state="FAILURE")
    for book in (acknowledged, held, failed):
        assert book.kinds(forgetful=True) == [Kind.LOST]


def test_recovery_is_from_the_kill_to_the_next_start_of_the_key() -> None:
    """Children and whole workers apart; a key that never starts again is counted, not averaged."""
    book = Book()
    book.run("a", 1.0)
    book.kill_child(2.0)
    book.run("b", 6.0)
    book.kill_worker(7.0)
    book.run("c", 9.0)
    book.kill_child(10.0)
    found = book.recoveries()
    assert [(each.whole_worker, each.seconds) for each in found] == [(False, 4.0), (True, 2.0), (False, None)]
    assert (spread(found).count, spread(found).never, spread(found).median, spread(found).p95) == (2, 1, 2.0, 4.0)
    assert spread([]).median is None


def test_nothing_is_recovered_where_nothing_was_missing() -> None:
    """A kill is no loss where another run of the key goes on, where it has its outcome, or where this one had it."""
    overlapping = Book()
    overlapping.run("a", 1.0)
    overlapping.run("b", 2.0, effect=4.0, ended=5.0, pid=OTHER)
    overlapping.kill_child(3.0)
    done = Book()
    done.run("a", 1.0, effect=1.5, ended=2.0)
    done.run("b", 3.0)
    done.kill_child(4.0)
    in_the_last_instant = Book()
    in_the_last_instant.run("a", 1.0, effect=2.0)
    in_the_last_instant.kill_child(3.0)
    in_the_last_instant.published("m1")
    for book in (overlapping, done, in_the_last_instant):
        assert book.recoveries() == []


def test_worker_that_ends_by_itself_ends_its_runs_and_is_no_kill() -> None:
    """Its runs are dead, so their successors do not overlap, but nobody's blow is recovered from."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0)
    book.add(What.EXITED, 2.0, worker=W1, key="")
    book.run("b", 3.0, effect=4.0, ended=5.0, pid=OTHER)
    assert book.findings() == []
    assert book.recoveries() == []


def test_history_is_read_in_the_order_of_time() -> None:
    """Lines of several processes may be out of order by an instant."""
    book = Book()
    book.run("a", 1.0, effect=2.0)
    book.run("b", 3.0, effect=4.0, ended=5.0)
    book.kill_child(2.5)
    assert [run.killed is not None for run in History(book.events).all_runs()] == [True, False]


def test_seed_decides_the_plan() -> None:
    """The same seed and size give the same plan; pauses and outages are added to it and change nothing of the rest."""
    size = {"keys": 20, "messages": 26, "kills": 8}
    plain = draw(seed=1, **size, threads=False, pause=False, faults=False)
    assert plain == draw(seed=1, **size, threads=False, pause=False, faults=False)
    assert plain.digest != draw(seed=2, **size, threads=False, pause=False, faults=False).digest
    assert (len(plain.jobs), len(plain.messages), len(plain.strikes), plain.outages) == (20, 26, 8, ())
    rougher = draw(seed=1, **size, threads=False, pause=True, faults=True)
    assert (rougher.jobs, rougher.messages) == (plain.jobs, plain.messages)
    assert [strike for strike in rougher.strikes if strike.kind.kills] == list(plain.strikes)
    assert rougher.outages
    assert {strike.kind for strike in rougher.strikes} == set(StrikeKind)
    threads = draw(seed=1, **size, threads=True, pause=False, faults=False)
    assert {strike.kind for strike in threads.strikes} == {StrikeKind.KILL_WORKER}


STEPS: dict[str, tuple[Kind, ...]] = {"row": (Kind.LIMIT, Kind.ZOMBIE_EFFECT), "plain": ()}


def in_steps(*repeated: str) -> Book:
    """Return a history in which a run is killed after its two effects, and a later one repeats some."""
    book = Book()
    book.published("m1", result="b")
    book.run("a", 1.0)
    for at, step in enumerate(STEPS, 2):
        book.step("a", step, at)
    book.kill_child(4.0)
    book.run("b", 5.0, pid=OTHER)
    for at, step in enumerate(repeated, 6):
        book.step("b", step, at, pid=OTHER)
    book.add(What.ENDED, 9.0, run="b", task_id="m1", pid=OTHER, value="b")
    book.add(What.OVER, 9.0, task_id="m1", pid=OTHER, key="")
    return book


def judged(book: Book) -> Figures:
    """Return the figures of a contender whose body has steps."""
    about = {"forgetful": False, "settled": True, "seconds": 90.0, "missed": 0, "prevents": ()}
    return figures_of("ours", "IdempotentTask", book.events, [KEY], steps=STEPS, **about)  # type: ignore[arg-type]


def test_effects_of_several_steps_repeat_nothing() -> None:
    """Neither another step of the same run, nor a later run that does the rest."""
    assert judged(in_steps()).findings == ()


def test_step_that_is_repeated_is_judged_by_its_own_tool() -> None:
    """One without a tool meets the limit and is counted; one with a tool has broken its promise."""
    plain = judged(in_steps("plain"))
    assert [(each.kind, each.step) for each in plain.findings] == [(Kind.LIMIT, "plain")]
    assert (plain.broken, plain.counts["by_plain_steps"], plain.as_json()["broken"]) == ([], 1, 0)
    both = judged(in_steps("row", "plain"))
    assert [each.step for each in both.broken] == ["row"]
    assert "effect 2 of k001 in step row by run b" in both.broken[0].text
    assert (both.count(Kind.LIMIT), both.counts["by_plain_steps"]) == (2, 1)


def test_key_without_the_effect_of_a_step_is_lost() -> None:
    """Although its publisher has a result."""
    book = Book()
    book.published("m1", result="a")
    book.run("a", 1.0)
    book.step("a", "row", 2.0)
    (finding,) = judged(book).findings
    assert finding.kind is Kind.LOST
    assert "k001 has no effect in step plain" in finding.text


def test_each_blow_has_a_victim_among_any_number() -> None:
    """Also where chance is so close to 1 that it is rounded up, as one of this plan's is."""
    plan = draw(seed=3, keys=40, messages=50, kills=16, threads=False, pause=False, faults=False)
    assert max(strike.rank for strike in plan.strikes) == LAST_RANK
    assert LAST_RANK < 1
