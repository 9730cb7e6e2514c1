"""The way between a process's DynamoDB client and the table, with every fault of a network and a service."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.retry import time_left
from simulation.faults import Faults, RequestFault
from simulation.process import check_alive
from simulation.scheduler import Event, Scheduler
from simulation.transactions import (
    CONFLICT,
    CancelledError,
    InvalidTransactionError,
    MismatchError,
    Reasons,
    Transactions,
    codes_of,
)
from simulation.wire import ConditionFailedError, Table

__all__ = ["ENDPOINT", "READ_SECONDS", "TRANSACTION", "DirectClient", "Service", "SimulatedClient"]

#: Seconds for which a client waits for an answer (`idempotent_tasks.stores.aws.OUR_CONFIG`).
READ_SECONDS: Final = 2.0
ENDPOINT: Final = "https://dynamodb.simulation"
TRANSACTION: Final = "transact_write_items"
_OPERATIONS: Final = ("get_item", "put_item", "update_item", "delete_item", "scan", TRANSACTION)


class Service:
    """DynamoDB: a table of records, those of an app, its own clock, and outages.

    Args:
        now: returns its time in epoch seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.table = Table()
        #: The others, by name.
        self.tables: dict[str, Table] = {}
        self.transactions = Transactions(self.table_of, now)
        #: Until when it does not answer, in epoch seconds.
        self.away_until = 0.0
        #: Until when it refuses most requests, because it has too many.
        self.throttled_until = 0.0
        #: By process: how many requests it has carried out.
        self.requests: Counter[str] = Counter()
        #: Called after each request that was carried out: the process, the operation, its parameters and its outcome,
        #: ``done`` or ``refused``; of a transaction that was cancelled the code of each write.
        self.on_request: Callable[[Any, str, dict[str, Any], str | tuple[str, ...]], None] = lambda *_: None

    def table_of(self, name: str) -> Table:
        """Return the table of a name; that of the records for any that is no other's."""
        return self.tables.get(name, self.table)

    def answer(
        self, fault: RequestFault, operation: str, parameters: dict[str, Any], process: Any
    ) -> Callable[[], Any] | None:
        """Take a request as its fault says; return what its answer makes the client do, None without one."""
        if self.now() < self.away_until:
            return None
        if fault.refusal is not None:
            return fault.refusal(self, operation)
        for _ in range(2 if fault.doubled else 1):
            answer = self.carry_out(operation, parameters, process)
        if fault.replaced is not None:
            answer = fault.replaced(self, operation)
        return answer if fault.answers else None

    def carry_out(self, operation: str, parameters: dict[str, Any], process: Any) -> Callable[[], Any]:
        """Carry out a request now, and return what its answer makes the client do: return or raise."""
        self.requests[process.name() or ""] += 1
        if operation == TRANSACTION:
            return self._transact(parameters, process)
        table = str(parameters["TableName"])
        if operation not in ("get_item", "scan") and self.transactions.is_occupied(table, parameters):
            return self.refuse(operation, "TransactionConflictException", 400)
        try:
            found = getattr(self.table_of(table), operation)(**parameters)
        except ConditionFailedError as failed:
            self.on_request(process, operation, parameters, "refused")
            item = failed.item if "ReturnValuesOnConditionCheckFailure" in parameters else {}
            return self._raising(operation, "ConditionalCheckFailedException", Item=item)
        self.on_request(process, operation, parameters, "done")
        answer: dict[str, Any] = {"ResponseMetadata": self._metadata(200)}
        if operation == "scan":
            answer["Items"] = found
        if operation == "get_item" and found is not None:
            answer["Item"] = found
        if operation == "update_item" and parameters.get("ReturnValues") == "ALL_NEW":
            answer["Attributes"] = found
        return lambda: answer

    def _transact(self, parameters: dict[str, Any], process: Any) -> Callable[[], Any]:
        writes = parameters["TransactItems"]
        try:
            is_done = self.transactions.carry_out(writes, parameters.get("ClientRequestToken"))
        except CancelledError as cancelled:
            self.on_request(process, TRANSACTION, parameters, codes_of(cancelled.reasons))
            return self.cancel(cancelled.reasons)
        except MismatchError:
            return self.refuse(TRANSACTION, "IdempotentParameterMismatchException", 400)
        except InvalidTransactionError:
            return self.refuse(TRANSACTION, "ValidationException", 400)
        if is_done:
            self.on_request(process, TRANSACTION, parameters, "done")
        answer = {"ResponseMetadata": self._metadata(200)}
        return lambda: answer

    def conflict(self) -> Callable[[], Any]:
        """Return what the answer to a transaction makes the client do that meets somebody else's."""
        return self.cancel([{"Code": CONFLICT}])

    def cancel(self, reasons: Reasons) -> Callable[[], Any]:
        """Return what the answer to a transaction that was cancelled makes the client do."""
        return self._raising(TRANSACTION, "TransactionCanceledException", CancellationReasons=reasons)

    def refuse(self, operation: str, code: str, status: int) -> Callable[[], Any]:
        """Return what an answer with an error makes the client do."""
        return self._raising(operation, code, status)

    def of_another(self) -> Callable[[], Any]:
        """Return a refusal that belongs to another client's request: credentials are fetched through botocore too."""
        return self._raising("assume_role", "ConditionalCheckFailedException")

    def page(self) -> Callable[[], Any]:
        """Return the answer of a gateway that is not DynamoDB's: a page with status 200."""
        return lambda: {"ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": {"content-type": "text/html"}}}

    def _metadata(self, status: int) -> dict[str, Any]:
        headers = {
            "content-type": "application/x-amz-json-1.0",
            "x-amzn-requestid": "SIMULATED",
            "date": _date(int(self.now())),
        }
        return {"HTTPStatusCode": status, "HTTPHeaders": headers, "RequestId": "SIMULATED"}

    def _raising(self, operation: str, code: str, status: int = 400, **members: Any) -> Callable[[], Any]:
        response: dict[str, Any] = {
            "Error": {"Code": code, "Message": "simulated"},
            "ResponseMetadata": self._metadata(status),
            **{name: each for name, each in members.items() if each},
        }
        error = ClientError(response, "".join(part.title() for part in operation.split("_")))
        return lambda: _raise(error)


class DirectClient:
    """A client to which nothing happens, as `DynamoDBStore(client=...)` takes it."""

    #: As of boto3's clients.
    meta: Final = SimpleNamespace(region_name="us-east-1")

    def __init__(self, service: Service) -> None:
        self._service = service

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation not in _OPERATIONS:
            raise AttributeError(operation)
        return lambda **parameters: self._send(operation, parameters)

    def _send(self, operation: str, parameters: dict[str, Any]) -> Any:
        return self._service.carry_out(operation, parameters, this_process())()


class SimulatedClient(DirectClient):
    """The client of a process: its requests take time, and are lost, late and doubled as the faults say."""

    def __init__(self, service: Service, scheduler: Scheduler, faults: Faults) -> None:
        super().__init__(service)
        self._scheduler = scheduler
        self._faults = faults
        #: The number of the last request, and of the latest one that was answered.
        self._sent = self._answered = 0

    def _send(self, operation: str, parameters: dict[str, Any]) -> Any:
        service, scheduler, process = self._service, self._scheduler, this_process()
        check_alive()
        fault = self._faults.of_request(throttled=scheduler.now < service.throttled_until)
        if operation == TRANSACTION:
            fault = self._faults.of_transaction(fault)
        patience = min(READ_SECONDS if fault.waits is None else fault.waits, max(time_left(), 0.0))
        answered = Event(scheduler)
        received: list[Callable[[], Any]] = []
        self._sent += 1
        number = self._sent

        def arrive() -> None:
            writes = parameters.get("TransactItems", ())
            service.transactions.keeping(writes, fault.takes_seconds, scheduler.after, take_effect)

        def take_effect() -> None:
            answer = service.answer(fault, operation, parameters, process)
            if answer is not None:
                scheduler.after(fault.answer_seconds, lambda: reply(answer))

        def reply(answer: Callable[[], Any]) -> None:
            if number < self._answered:
                self._faults.counts["answers-reordered"] += 1
            self._answered = max(self._answered, number)
            received.append(answer)
            answered.set()

        if scheduler.now < service.away_until:
            scheduler.sleep(min(fault.request_seconds, patience))
            raise EndpointConnectionError(endpoint_url=ENDPOINT, error="refused")
        if not fault.lost:
            scheduler.after(fault.request_seconds, arrive)
        answered.wait(patience)
        return received[0]() if received else _raise(ReadTimeoutError(endpoint_url=ENDPOINT, error="timed out"))


@lru_cache(maxsize=1024)
def _date(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


def _raise(error: Exception) -> Any:
    raise error
