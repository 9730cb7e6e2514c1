"""The user's database: rows that bodies write, and the receipts that commit with them, behind the port for them.

What SQL makes of it is tested on servers.  Here is what each of them does: a row is locked from the beginning of a
transaction to its end, and a request that has left arrives although its sender dies.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.receipts import Receipt, ReceiptsState, TransactionLost
from idempotent_tasks.errors import StoreMisconfiguredError, StoreUnavailableError
from simulation.faults import COMMIT_FAULTS
from simulation.process import check_alive
from simulation.scheduler import START, Event

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["CLIENT_SECONDS", "IDLE_SECONDS", "Database", "DeadlockError", "DisconnectedError", "Session"]

#: Seconds of silence after which the server ends a transaction, as ``idle_in_transaction_session_timeout``.
IDLE_SECONDS: Final = 25.0
#: Seconds for which a client waits for an answer, beside what it waits for a row.
CLIENT_SECONDS: Final = 3.0
#: Seconds of a request's way, and of its answer's.
WAY_SECONDS: Final = (0.001, 0.02)
#: The most seconds of the way of a ``COMMIT`` that is late: longer than its client waits, and than it is waited for.
LATEST_SECONDS: Final = 30.0
#: Seconds within which a process is struck that has sent a request: on the way there, or back.
STRIKE_SECONDS: Final = 0.04
#: Seconds for which a process that was struck stands still at most.
STANDSTILL_SECONDS: Final = 30.0
#: Seconds between two requests of one connection at least, so that none overtakes another.
_MOMENT: Final = 1e-6

#: Takes what a request is answered with: an error to raise, or what it returns.
Answer = Callable[[Any], None]
#: Key and step.
Place = tuple[str, str]


class DeadlockError(Exception):
    """The database has rolled the transaction back, and says to run it again."""


class DisconnectedError(Exception):
    """The connection is gone, and with it the transaction, unless it was committed."""


class Database:
    """One table of receipts, and what was committed beside them.

    Args:
        world: the history's.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.rows: dict[Place, Receipt] = {}
        self._holders: dict[Place, Session] = {}
        self._waiting: dict[Place, list[Callable[[], None]]] = defaultdict(list)
        self._sessions: set[Session] = set()
        self._transactions = 0
        #: Until when nobody can connect, in epoch seconds.
        self.away_until = 0.0
        #: Called with what is sent, ``begin``, ``write`` or ``commit``, and with the process that sends it; returns the
        #: fault that befalls it, if one does.
        self.on_request: Callable[[str, Any], str | None] = lambda *_: None

    def begin(self, receipt: Receipt | None, wait_seconds: float) -> "Transaction":
        """Open a transaction and lock the receipt's row; see `idempotent_tasks.core.receipts.Receipts.begin`."""
        check_alive()
        assert receipt is not None, "no simulated run is without a record"
        world = self.world
        fault = self.fault_of("begin", "database-away", "deadlock-at-begin")
        if fault is not None or world.scheduler.now < self.away_until:
            world.scheduler.sleep(world.draw.uniform(*WAY_SECONDS))
            if fault == "deadlock-at-begin":
                raise TransactionLost(DeadlockError("simulated: a deadlock"))
            raise StoreUnavailableError("simulated: the database does not answer")
        self.strike()
        session = Session(self, receipt)
        try:
            found = session.request(partial(session.lock, wait_seconds), CLIENT_SECONDS + wait_seconds)
        except DisconnectedError as error:
            session.hang_up()
            raise StoreUnavailableError("simulated: the connection is lost") from error
        except BaseException:
            session.hang_up()
            raise
        return Transaction(session, found)

    def look(self) -> ReceiptsState:
        """Find nothing wrong."""
        return ReceiptsState(idle_seconds=IDLE_SECONDS)

    def purge(self, before: float) -> int:
        """Delete the rows that have expired before a time in epoch seconds; return how many."""
        old = [place for place, row in self.rows.items() if row.expires_at < before]
        for place in old:
            del self.rows[place]
        return len(old)

    def restart(self, seconds: float) -> None:
        """End all transactions, and take no connection for so many seconds."""
        self.away_until = self.world.scheduler.now + seconds
        self.world.note("database-restarted", until=self.away_until - START)
        for session in sorted(self._sessions, key=lambda each: each.number):
            session.end()

    def enter(self, session: "Session") -> int:
        """Count a session among those that are open; return its number."""
        self._sessions.add(session)
        self._transactions += 1
        return self._transactions

    def take(self, session: "Session", wait_seconds: float, answer: Answer) -> None:
        """Lock a session's row, or wait for it; answer with what an earlier run has committed there, if it has."""
        if session.place not in self._holders:
            self._grant(session, answer)
            return
        receipt, waiting = session.receipt, self._waiting[session.place]
        about = {"key": receipt.key, "step": receipt.step, "fence": receipt.fence, "process": session.owner}
        self.world.note("waits", **about, seconds=wait_seconds)

        def go_on() -> None:
            if session.is_open:
                self._grant(session, answer)
            else:
                self._wake(session.place)

        def give_up() -> None:
            if go_on in waiting:
                waiting.remove(go_on)
                self.world.faults.counts["row-held"] += 1
                session.end()
                answer(StoreUnavailableError("simulated: another transaction has held the row for too long"))

        waiting.append(go_on)
        self.world.scheduler.after(wait_seconds, give_up)

    def _grant(self, session: "Session", answer: Answer) -> None:
        self._holders[session.place] = session
        session.hear()
        row, receipt = self.rows.get(session.place), session.receipt
        found = row if row is not None and row.generation >= receipt.generation else None
        if found is not None:
            about = {"key": receipt.key, "step": receipt.step, "fence": receipt.fence, "process": session.owner}
            self.world.note("receipt-found", **about, generation=found.generation, wanted=receipt.generation)
        answer(found)

    def leave(self, session: "Session") -> None:
        """Give up a session's row, which the next one takes that waits for it."""
        self._sessions.discard(session)
        if self.holds(session):
            del self._holders[session.place]
            self._wake(session.place)

    def _wake(self, place: Place) -> None:
        if self._waiting[place] and place not in self._holders:
            self._waiting[place].pop(0)()

    def store(self, session: "Session", receipt: Receipt) -> None:
        """Make a session's rows durable, and its receipt."""
        outcome = receipt.outcome
        assert outcome is not None, "a receipt is committed with its outcome"
        self.rows[session.place] = receipt
        about = {"key": receipt.key, "step": receipt.step, "generation": receipt.generation}
        about |= {"fence": receipt.fence, "process": session.owner, "transaction": session.number}
        more = {"status": outcome.status.value, "data": outcome.data, "codec": outcome.codec}
        self.world.note("receipt-committed", **about, **more, following=list(receipt.following))
        for run in session.runs:
            self.world.note("row-committed", **about, run=run)

    def fault_of(self, request: str, *kinds: str) -> str | None:
        """Return the fault that befalls a request, of some kinds; None if none does."""
        fault = self.on_request(request, _sender())
        return fault or next((kind for kind in kinds if self.world.faults.happens(kind)), None)

    def holds(self, session: "Session") -> bool:
        """Return whether a session has its row locked."""
        return self._holders.get(session.place) is session

    def strike(self) -> None:
        """Kill or stop the process that sends a request, while that is under way, if that befalls it."""
        world, process = self.world, _sender()
        if process.name() == world.history.person:
            # Who is killed decides nothing any more; that somebody goes away has a fault of its own.
            return
        after = world.draw.uniform(0, STRIKE_SECONDS)
        if world.faults.happens("killed-in-transaction"):
            world.scheduler.after(after, process.kill)
        elif world.faults.happens("stopped-in-transaction"):
            world.scheduler.after(after, process.stop)
            world.scheduler.after(after + world.draw.uniform(0, STANDSTILL_SECONDS), process.go_on)


def _sender() -> Any:
    """Return the process that runs, which is a simulated one."""
    return this_process()


class Session:
    """A connection with its transaction: the body writes with it, and the server hears of it.

    Args:
        database: the server.
        receipt: the row that it locks, without an outcome.
    """

    def __init__(self, database: Database, receipt: Receipt) -> None:
        process = _sender()
        self.receipt = receipt
        self.place = receipt.key, receipt.step
        self.owner = process.name()
        self.is_open = True
        #: The runs whose rows are in the transaction.
        self.runs: list[int] = []
        #: What a constraint says of them that is checked at the end.
        self.refusal: Exception | None = None
        self._database = database
        self._scheduler = database.world.scheduler
        self._process = process
        self._is_cut = False
        self._arrives_at = 0.0
        self._heard = 0
        self.number = database.enter(self)
        process.on_end.append(self.hang_up)

    def insert(self, run: int, refusal: Exception | None = None) -> None:
        """Write a row of a run, as a statement of a body does.

        Args:
            run: its number.
            refusal: what a constraint says of the row at the end; None where it is well.

        Raises:
            DeadlockError: the database has rolled the transaction back.
            DisconnectedError: it is gone.
        """
        check_alive()
        fault = self._database.fault_of("write", "deadlock-in-body")

        def write(answer: Answer) -> None:
            if fault is not None:
                self.end()
                answer(DeadlockError("simulated: a deadlock"))
                return
            self.runs.append(run)
            self.refusal = self.refusal or refusal
            answer(None)

        self.request(write, CLIENT_SECONDS)

    def request(self, carry_out: Callable[[Answer], None], patience: float, seconds: float | None = None) -> Any:
        """Send a request and return its answer.

        Args:
            carry_out: what the server does.
            patience: for how many seconds the client waits.
            seconds: how long the request is on its way; None for the usual.

        Raises:
            DisconnectedError: there is no answer in time, or no transaction any more.
            Exception: what the server answers.
        """
        answered, answers, draw = Event(self._scheduler), list[Any](), self._database.world.draw

        def answer(what: Any) -> None:
            answers.append(what)
            self._scheduler.after(draw.uniform(*WAY_SECONDS), answered.set)

        def arrive() -> None:
            if self.is_open:
                self.hear()
                carry_out(answer)
            else:
                answer(DisconnectedError("simulated: the transaction is gone"))

        self._send(draw.uniform(*WAY_SECONDS) if seconds is None else seconds, arrive)
        if not answered.wait(patience):
            raise DisconnectedError("simulated: the database does not answer")
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def lock(self, wait_seconds: float, answer: Answer) -> None:
        """Lock the row, at the server."""
        self._database.take(self, wait_seconds, answer)

    def commit(self, receipt: Receipt) -> None:
        """Send ``COMMIT``, with the receipt's outcome.

        Raises:
            DeadlockError, DisconnectedError: as `insert`; after the second it may be committed.
            StoreMisconfiguredError: the receipt does not fit into the table.
            Exception: what a constraint says.
        """
        check_alive()
        world, seconds = self._database.world, None
        world.note("commit-sent", key=receipt.key, step=receipt.step, process=self.owner, runs=[*self.runs])
        fault = self._database.fault_of("commit", *COMMIT_FAULTS)
        self._database.strike()
        if fault == "commit-vanished":
            # The server hears no more of this connection, not even its end.
            self._is_cut = True
        if fault in ("commit-lost", "commit-vanished"):
            world.scheduler.sleep(CLIENT_SECONDS)
            raise DisconnectedError("simulated: the connection is lost")
        if fault == "commit-late":
            seconds = world.draw.uniform(0, LATEST_SECONDS)

        refusals: dict[str | None, Exception] = {
            "deadlock-at-commit": DeadlockError("simulated: a deadlock"),
            "receipt-unfit": StoreMisconfiguredError("simulated: the receipt does not fit into the table"),
        }

        def carry_out(answer: Answer) -> None:
            refusal = refusals.get(fault, self.refusal)
            if refusal is None:
                self._database.store(self, receipt)
            self.end()
            if fault != "commit-unanswered":
                answer(refusal)

        self.request(carry_out, CLIENT_SECONDS, seconds)

    def hang_up(self) -> None:
        """Close the connection, after what was sent before."""
        if not self._is_cut:
            self._send(0.0, self.end)

    def hear(self) -> None:
        """Begin to wait for the next request, at the server."""
        self._heard += 1
        number = self._heard

        def end_idle() -> None:
            if self.is_open and self._heard == number and self._database.holds(self):
                self._database.world.faults.counts["idle-ended"] += 1
                self.end()

        self._scheduler.after(IDLE_SECONDS, end_idle)

    def end(self) -> None:
        """End the transaction at the server; what is not committed is rolled back."""
        if self.is_open:
            self.is_open = False
            if self.hang_up in self._process.on_end:
                self._process.on_end.remove(self.hang_up)
            self._database.leave(self)

    def _send(self, seconds: float, arrive: Callable[[], None]) -> None:
        self._arrives_at = max(self._arrives_at + _MOMENT, self._scheduler.now + seconds)
        self._scheduler.at(self._arrives_at, arrive)


class Transaction:
    """An open transaction; see `idempotent_tasks.core.receipts.ReceiptTransaction`.

    Args:
        session: its connection.
        found: what an earlier run has committed.
    """

    def __init__(self, session: Session, found: Receipt | None) -> None:
        self.session = session
        self.found = found

    def flush(self) -> None:
        """Do nothing: each row is sent when it is written."""

    def is_lost(self, error: BaseException) -> bool:
        """Return whether an error of a body is a deadlock."""
        return isinstance(error, DeadlockError)

    def commit(self, receipt: Receipt | None) -> None:
        """Commit the rows with their receipt."""
        assert receipt is not None, "no simulated run is without a record"
        try:
            self.session.commit(receipt)
        except DeadlockError as error:
            raise TransactionLost(error) from error
        except DisconnectedError as error:
            raise TransactionLost(error, is_certain=False) from error

    def rollback(self) -> None:
        """Close the connection."""
        self.session.hang_up()
