"""`DynamoDBStore`: the protocol's calls as conditional writes to one table, and the parser of its URL."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    Committed,
    Granted,
    KeptSteps,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Record,
    Released,
    Renewed,
    Step,
    Superseded,
    Vanished,
    WritesRefused,
    answer_refusal,
    claimable,
    expiration_seconds,
    granted_record,
    held_claim,
    is_first_try,
    kept_message,
    release_time,
    step_item_key,
    was_committed,
    was_parked,
    was_released,
)
from idempotent_tasks.core.store import CLOCK_TOLERANCE_SECONDS
from idempotent_tasks.errors import (
    ConfigurationError,
    RecordCorruptError,
    RecordExistsError,
    RecordNotFoundError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.stores.aws import LOCAL_REGION, Credentials
from idempotent_tasks.stores.aws_errors import error_code
from idempotent_tasks.stores.dynamodb import updates
from idempotent_tasks.stores.dynamodb.client import Connection, Refused, Succeeded
from idempotent_tasks.stores.dynamodb.item import BOOKKEEPING, Item, ItemSchema, Update, Value
from idempotent_tasks.stores.dynamodb.table import (
    check_table_name,
    create_table,
    describe,
    is_strongly_consistent,
    verify_table,
)

__all__ = ["LOCAL_PORT", "DynamoDBStore", "local_url"]

#: Where DynamoDB Local listens, and the stand-in of ``python -m idempotent_tasks dynamodb``.
LOCAL_PORT: Final = 8000

#: DynamoDB's limit is 400 KB an item, attribute names included; the rest of a record stays below 20 KB.
MAX_DATA_BYTES: Final = 380 * 1024
#: How often a claim is sent in all, where each time it is refused and the record is then found gone or claimable.
CLAIM_ROUNDS: Final = 5
#: How often a renewal is sent in all, where its answer shows that its time was wrong; then the caller judges it.
RENEWAL_ROUNDS: Final = 2
#: How often a step is sent in all, where the record is found to have other steps than the claim has shown.
STEP_ROUNDS: Final = 3
#: Of a step's item: so much of the time for which it is kept may pass before a read prolongs it.
PROLONG_AFTER: Final = 1 / 2
_TEXT_ARGUMENTS: Final = (
    "key_attr",
    "sort_key_attr",
    "static_pk_value",
    "status_attr",
    "expiry_attr",
    "in_progress_expiry_attr",
    "data_attr",
    "validation_key_attr",
    "region",
    "endpoint_url",
)
_SWITCHES: Final = ("fast",)
#: DynamoDB's codes for writes of a transaction that would fail again; others are of contention and of throughput.
#: https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html
_LASTING: Final = frozenset(
    {"ConditionalCheckFailed", "ItemCollectionSizeLimitExceeded", "ValidationError", "DuplicateItem"}
)
#: What is said of a transaction that is none: by DynamoDB, and by boto3 before it sends it.
_INVALID: Final = frozenset({"ValidationException", "SerializationException", "ParamValidationError"})
#: The numbers that a grant's answer brings.
_GRANTED: Final = ("fence", "attempt", "runs", "generation", "parked_bytes")


class DynamoDBStore:
    """A `idempotent_tasks.stores.Store` over one DynamoDB table.

    Nothing is opened before the first request, and every process makes a client of its own.  The first claim is
    preceded by one eventually consistent ``GetItem`` whose answer shows DynamoDB's clock, unless an earlier answer,
    such as that to a check when the worker started, has shown it.

    Args:
        table: the table's name or ARN.
        key_attr: the partition key's attribute.
        sort_key_attr: the sort key's attribute, for a table with a composite key: it then holds the record's key, and
            the partition key holds ``static_pk_value``.
        static_pk_value: ``idempotency#<app name>`` by default.
        status_attr, expiry_attr, in_progress_expiry_attr, data_attr, validation_key_attr: the attributes that
            Powertools for AWS Lambda shares, under its own names by default.
        attributes: other names for the attributes ``owner``, ``fence``, ``attempt``, ``task``, ``task_id``,
            ``worker``, ``process``, ``claimed_at``, ``completed_at``, ``codec``, ``error``, ``deferred``,
            ``dispatched``, ``runs``, ``generation``, ``unresolved_since``, ``counted_fence``, ``previous_owner``,
            ``previous_task_id``, ``previous_claimed_at``, ``stands_in_until``, ``validated_by``, ``continuation``,
            ``settled_at``, ``parked_at``, ``parked``, ``parked_bytes``, ``resolved_fence``, ``steps``,
            ``steps_elsewhere``, ``step``, ``inputs``.
        region, endpoint_url, config, session: as for ``boto3.Session.client``; the config's retries are ignored,
            because the guard retries.
        client: a ready-made client instead of these; it must not be used before a fork.
        credentials: static credentials, for stand-ins.
        fast: bypass boto3 where a request is provably what it would send (``docs/explanation/speed.md``).
        clock: the local source of time.

    Raises:
        ConfigurationError: the table's name cannot be one, two attributes share a name, or ``client`` is given beside
            what it contains.
    """

    max_data_bytes: int = MAX_DATA_BYTES

    def __init__(
        self,
        table: str,
        *,
        key_attr: str = "id",
        sort_key_attr: str | None = None,
        static_pk_value: str | None = None,
        status_attr: str = "status",
        expiry_attr: str = "expiration",
        in_progress_expiry_attr: str = "in_progress_expiration",
        data_attr: str = "data",
        validation_key_attr: str = "validation",
        attributes: Mapping[str, str] | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        config: Any = None,
        session: Any = None,
        client: Any = None,
        credentials: Credentials | None = None,
        fast: bool = True,
        clock: Clock | None = None,
    ) -> None:
        check_table_name(table)
        self.table = table
        self.schema = ItemSchema(
            key_attr=key_attr,
            sort_key_attr=sort_key_attr,
            static_pk_value=static_pk_value or "idempotency#",
            status_attr=status_attr,
            expiry_attr=expiry_attr,
            in_progress_expiry_attr=in_progress_expiry_attr,
            data_attr=data_attr,
            validation_key_attr=validation_key_attr,
            bookkeeping=attributes or {},
        )
        self._partition_named = static_pk_value is not None
        self.connection = Connection(
            region=region,
            endpoint_url=endpoint_url,
            config=config,
            session=session,
            client=client,
            credentials=credentials,
            fast=fast,
            clock=clock,
        )

    @classmethod
    def from_url(cls, url: str, *, clock: Clock | None = None) -> Self:
        """Make a store from a URL.

        ``dynamodb://REGION/TABLE`` or ``dynamodb://[ACCESS_KEY_ID:SECRET@]HOST:PORT/TABLE``, whose Region is us-east-1
        where it has credentials, whatever the environment says.  Query parameters are ``fast``, the constructor's
        arguments that are text, and ``OTHER_attr`` to rename a bookkeeping attribute.

        Raises:
            ConfigurationError: the URL has no table or one whose name cannot be, another scheme, or an unknown
                parameter.
        """
        return cls(**_arguments_from_url(url), clock=clock)

    def __repr__(self) -> str:
        return f"DynamoDBStore({self.table!r} at {self.connection!r})"

    @property
    def clock(self) -> Clock:
        """DynamoDB's clock, as its answers show it."""
        return self.connection.clock

    @property
    def verifiable(self) -> bool:
        """Whether `verify` may run before a worker forks: not with a ready-made client."""
        return not self.connection.ready_made

    def for_app(self, app_name: str) -> Self:
        """Return this store, or a copy with the app's name in ``static_pk_value`` where that was not given."""
        if self._partition_named:
            return self
        store = copy.copy(self)
        store.schema = replace(self.schema, static_pk_value=f"idempotency#{app_name}")
        return store

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """See `idempotent_tasks.stores.Store.claim`."""
        seen: Record | None = None
        for _ in range(CLAIM_ROUNDS):
            answer = self._try_claim(request, seen)
            if answer is None or isinstance(answer, Record):
                seen = answer
                continue
            granted = self._with_right_lease(answer)
            if granted is not None:
                return granted
            seen = None
        msg = f"the record changed under {CLAIM_ROUNDS} claims in a row"
        raise StoreUnavailableError(msg, task=request.task, key=request.key)

    def _try_claim(self, request: ClaimRequest, seen: Record | None) -> ClaimAnswer | Record | None:
        """Claim the key in one write: whatever its item is, or only if it still is a record that was seen.

        Returns:
            The answer; or for another try, where the key is claimable all the same, its record, None if it has none.
        """
        now = self.now(request.key)
        until = int((now + request.lease_seconds) * 1000)
        if seen is None:
            update = updates.claim_update(request, now, until)
        else:
            update = updates.replace_update(seen, granted_record(seen, request, now, until))
        try:
            written = self._update(request.key, update, ReturnValues="ALL_NEW")
        except RecordCorruptError:
            # DynamoDB only says that the item has a wrong type; reading it tells which attribute.
            self._read(request.key)
            raise
        if isinstance(written, Succeeded):
            return Granted(self._claim_from(request, now, until, written.answer["Attributes"]))
        old = self._refusing_record(request.key, written)
        # An item that the first update does not take, or a release by a clock that is ahead of this one.
        return old if old is None or claimable(old, request, now) else answer_refusal(old, request)

    def _with_right_lease(self, answer: ClaimAnswer) -> ClaimAnswer | None:
        """Return the answer to a claim; renew a granted lease whose length is wrong, or return None if it was lost.

        It is wrong if the answer shows another time than the lease was computed with, or if an earlier try was granted.
        """
        if not isinstance(answer, Granted):
            return answer
        claim = answer.claim
        lasts = claim.expires_at - self.connection.clock.now()
        if abs(claim.request.lease_seconds - lasts) <= CLOCK_TOLERANCE_SECONDS:
            return answer
        renewed = self.renew(claim, claim.request.lease_seconds, claim.request.kept_seconds)
        return Granted(renewed.claim) if isinstance(renewed, Renewed) else None

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """See `idempotent_tasks.stores.Store.commit`."""
        now = self.now(claim.key)
        written = self._update(claim.key, updates.commit_update(claim, outcome, now, retention_seconds))
        if isinstance(written, Succeeded):
            self._keep_outcome(claim, now, retention_seconds)
            return Committed()
        old = self._refusing_record(claim.key, written)
        if old is None:
            return Vanished()
        if not was_committed(old, claim):
            return Superseded(old)
        self._keep_outcome(claim, (old.completed_at or 0) / 1000, retention_seconds)
        return Committed()

    def commit_with(
        self, claim: Claim, outcome: Outcome, retention_seconds: float, writes: Sequence[Mapping[str, Any]]
    ) -> CommitAnswer | WritesRefused:
        """See `idempotent_tasks.stores.AtomicStore.commit_with`.

        Raises:
            StoreMisconfiguredError: the table is a global one with strong consistency, which has no transactions; or as
                any other call.
        """
        now = self.now(claim.key)
        update = self.schema.update(updates.commit_update(claim, outcome, now, retention_seconds))
        own = {"Update": {"TableName": self.table, "Key": self.schema.key(claim.key), **update}}
        # A token would make DynamoDB repeat the answer of an earlier try; the record tells what became of that.
        codes = self._transact([own, *writes], token=this_process().token())
        if codes is None:
            self._keep_outcome(claim, now, retention_seconds)
            return Committed()
        # By itself a refusal says nothing: it may be that of the writes of an earlier try that was carried out.
        old = self._read(claim.key)
        if old is None:
            return Vanished()
        if was_committed(old, claim):
            self._keep_outcome(claim, (old.completed_at or 0) / 1000, retention_seconds)
            return Committed()
        if held_claim(old, claim) is None:
            return Superseded(old)
        if not _LASTING.intersection(codes):
            msg = f"DynamoDB has cancelled the transaction for now: {', '.join(codes) or 'it does not say why'}"
            raise StoreUnavailableError(msg, claim.request.task, claim.key)
        return WritesRefused(codes[1:])

    def write(self, writes: Sequence[Mapping[str, Any]], token: str) -> WritesRefused | None:
        """See `idempotent_tasks.stores.AtomicStore.write`."""
        codes = self._transact(list(writes), token)
        if codes is not None and not _LASTING.intersection(codes):
            raise StoreUnavailableError(f"DynamoDB has cancelled the transaction for now: {', '.join(codes)}")
        return None if codes is None else WritesRefused(codes)

    def check_writes(self, key: str, writes: Sequence[Mapping[str, Any]]) -> None:
        """See `idempotent_tasks.stores.AtomicStore.check_writes`."""
        region = self.connection.region
        for number, write in enumerate(writes, 1):
            ((kind, parameters),) = write.items()
            table = str(parameters["TableName"])
            theirs = _region_in(table)
            if theirs not in (None, region):
                msg = f"{kind} {number} of Atomic is on a table of {theirs}, and the record's table is in {region}"
                raise ConfigurationError(msg, key=key)
            item = parameters.get("Key") or parameters.get("Item")
            is_own = table.rpartition("/")[2] == self.table.rpartition("/")[2]
            if is_own and isinstance(item, Mapping) and self.schema.key(key).items() <= item.items():
                msg = f"{kind} {number} of Atomic is on the record of its own key, which the library writes itself"
                raise ConfigurationError(msg, key=key)

    def _transact(self, items: list[dict[str, Any] | Mapping[str, Any]], token: str) -> tuple[str, ...] | None:
        """Send a transaction once; return DynamoDB's code for each write if it is cancelled or refused, else None."""
        try:
            answer = self.connection.request(
                "transact_write_items",
                refusal="TransactionCanceledException",
                TransactItems=items,
                ClientRequestToken=token,
            )
        except StoreMisconfiguredError as error:
            code = error_code(error) or type(error.__cause__).__name__
            if code not in _INVALID:
                raise
            if is_strongly_consistent(describe(self.connection, self.table) or {}):
                msg = f"table {self.table!r} is a global table with strong consistency, which has no transactions"
                raise StoreMisconfiguredError(msg) from None
            # Not a transient one.
            return ("ValidationError", *(code for _ in items[1:]))
        return answer.codes if isinstance(answer, Refused) else None

    def _keep_outcome(self, claim: Claim, counted_from: float, retention_seconds: float) -> None:
        """Prolong an outcome's retention to count from now, unless ``counted_from`` (epoch seconds) is recent."""
        now = self.connection.clock.now()
        if now - counted_from > CLOCK_TOLERANCE_SECONDS:
            expiration = expiration_seconds(retention_seconds, claim.in_progress_expiration, now)
            self._update(claim.key, updates.prolong_update(claim, expiration))

    def restore(self, record: Record) -> None:
        """See `idempotent_tasks.stores.Store.restore`."""
        condition = "attribute_not_exists(#key)"
        written = self.connection.request(
            "put_item",
            TableName=self.table,
            Item=self.schema.item(record),
            ConditionExpression=condition,
            ExpressionAttributeNames=self.schema.names(condition),
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        if isinstance(written, Refused):
            old = self._refusing_record(record.key, written)
            if old is None or not is_first_try(old, record):
                raise RecordExistsError(task=record.task, key=record.key)

    def release(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True, nothing_done: bool = False
    ) -> Released | Lost:
        """See `idempotent_tasks.stores.Store.release`."""
        at = release_time(claim, self.now(claim.key))
        update = updates.release_update(claim, reason, at, crashed=crashed, began=began, nothing_done=nothing_done)
        written = self._update(claim.key, update)
        if isinstance(written, Succeeded) or was_released(self._refusing_record(claim.key, written), claim):
            return Released()
        return Lost()

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """See `idempotent_tasks.stores.Store.renew`."""
        for _ in range(RENEWAL_ROUNDS):
            now = self.now(claim.key)
            until = int((now + lease_seconds) * 1000)
            update = updates.renew_update(claim, until, expiration_seconds(retention_seconds, until, now))
            written = self._update(claim.key, update)
            if isinstance(written, Refused):
                held = held_claim(self._refusing_record(claim.key, written), claim)
                return Lost() if held is None else Renewed(held)
            claim = replace(claim, in_progress_expiration=until)
            if abs(self.connection.clock.now() - now) <= CLOCK_TOLERANCE_SECONDS:
                break
        return Renewed(claim)

    def park(self, claim: Claim, reason: str) -> Parked | Lost:
        """See `idempotent_tasks.stores.ParkingStore.park`."""
        update = updates.park_update(claim, reason, self.now(claim.key))
        written = self._update(claim.key, update, ReturnValues="ALL_NEW")
        if isinstance(written, Succeeded):
            return Parked(self.schema.record(claim.key, written.answer["Attributes"]))
        old = self._refusing_record(claim.key, written)
        return Parked(old) if old is not None and was_parked(old, claim) else Lost()

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked:
        """See `idempotent_tasks.stores.ParkingStore.keep_message`."""
        written = self._update(key, updates.message_update(task_id, message))
        if isinstance(written, Succeeded):
            return MessageKept()
        answer = kept_message(self._refusing_record(key, written), task_id, message)
        # A record that would take it has been freed and parked again since.
        return NotParked() if isinstance(answer, Record) else answer

    def keep_step(self, claim: Claim, name: str, step: Step, kept: KeptSteps) -> KeptSteps | Lost:
        """See `idempotent_tasks.stores.SteppingStore.keep_step`."""
        for _ in range(STEP_ROUNDS):
            if kept.has_room(name, step):
                update = updates.step_update(claim, name, step, is_first=not kept.here)
            elif self._put_step(claim, name, step):
                update = updates.step_mark_update(claim, name)
            else:
                return Lost()
            written = self._update(claim.key, update)
            if isinstance(written, Succeeded):
                return kept.including(name, step)
            old = self._refusing_record(claim.key, written)
            if old is None or held_claim(old, claim) is None:
                return Lost()
            if name in old.steps:
                # By an earlier try, whose answer was lost.
                return old.steps
            kept = old.steps
        msg = f"the record changed under {STEP_ROUNDS} tries to keep a step"
        raise StoreUnavailableError(msg, claim.request.task, claim.key)

    def _put_step(self, claim: Claim, name: str, step: Step) -> bool:
        """Write a step as an item of its own; return False where that of a later run is there.

        Nobody reads it before the record names it, which only the holder of the key can have it do: that saves a
        transaction, which costs twice as much, and which not every table has.
        """
        condition = "attribute_not_exists(#key) OR #fence <= :fence"
        expiration = expiration_seconds(claim.request.kept_seconds, claim.in_progress_expiration, self.now(claim.key))
        values: dict[str, Value] = {"step": name, "fence": claim.fence, "expiration": expiration}
        item = self.schema.step_item(step_item_key(claim, name), step, values)
        written = self.connection.request(
            "put_item",
            TableName=self.table,
            Item=item,
            ConditionExpression=condition,
            ExpressionAttributeNames=self.schema.names(condition),
            ExpressionAttributeValues={":fence": {"N": str(claim.fence)}},
        )
        return isinstance(written, Succeeded)

    def kept_step(self, claim: Claim, name: str) -> Step:
        """See `idempotent_tasks.stores.SteppingStore.kept_step`."""
        key, kept_seconds = step_item_key(claim, name), claim.request.kept_seconds
        item = self._item(key)
        if item is None:
            raise RecordNotFoundError(task=claim.request.task, key=claim.key)
        now = self.now(key)
        if self.schema.count(key, item, "expiration") - now < kept_seconds * PROLONG_AFTER:
            # Runs of the key may go on for longer than one of its steps was to be kept.
            values = {"expiration": expiration_seconds(kept_seconds, claim.in_progress_expiration, now)}
            self._update(key, Update(values=values, condition="attribute_exists(#step)", operands={}))
        return self.schema.step(key, item)

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """See `idempotent_tasks.stores.Store.note_deferral`."""
        self._update(key, updates.deferral_update(owner, token, due, past, self.now(key)))

    def note_dispatch(self, key: str, task_id: str) -> None:
        """See `idempotent_tasks.stores.Store.note_dispatch`."""
        self._update(key, updates.dispatch_update(task_id))

    def get(self, key: str) -> Record:
        """See `idempotent_tasks.stores.Store.get`."""
        record = self._read(key)
        if record is None:
            raise RecordNotFoundError(key=key)
        return record

    def forget(self, key: str) -> None:
        """Delete the record of a key, whoever holds it; do nothing where there is none."""
        self.connection.request("delete_item", TableName=self.table, Key=self.schema.key(key))

    def create_table(self, *, deletion_protection: bool = False, kms_key: str | None = None) -> bool:
        """Create the table with on-demand billing and its TTL attribute; complete it where it exists already.

        Waits until the table is active.

        Args:
            deletion_protection: have DynamoDB refuse to delete it, also where it exists already.
            kms_key: the ARN of the customer-managed KMS key to encrypt it with, also where it exists already; without
                it, a new table has DynamoDB's own key, and another table keeps what it has.

        Returns:
            Whether DynamoDB deletes expired records by TTL, which a global table with strong consistency does not have.

        Raises:
            StoreMisconfiguredError: a table of this name has another key schema or another TTL attribute.
            StoreUnavailableError: the table does not become active within a minute.
        """
        return create_table(
            self.connection, self.table, self.schema, deletion_protection=deletion_protection, kms_key=kms_key
        )

    def verify(self) -> None:
        """Check that the table exists with this store's key schema and TTL attribute.

        Raises:
            StoreMisconfiguredError: what is wrong, with its remedy.
            StoreUnavailableError: DynamoDB cannot be reached.
        """
        verify_table(self.connection, self.table, self.schema)

    def now(self, key: str) -> float:
        """Return DynamoDB's time in epoch seconds; ask for it first where no answer has shown it, or confirmed it.

        Args:
            key: of any record, whether there is one or not: the question is a read of it.

        Raises:
            StoreUnavailableError: there is no answer, or only one that contradicts this machine's clock.
            StoreMisconfiguredError: the table cannot be read.
        """
        return self.connection.now(
            lambda: {
                "TableName": self.table,
                "Key": self.schema.key(key),
                "ProjectionExpression": "#key",
                "ExpressionAttributeNames": self.schema.names("#key"),
            }
        )

    def _update(self, key: str, update: Update, **more: str) -> Succeeded | Refused:
        return self.connection.request(
            "update_item",
            TableName=self.table,
            Key=self.schema.key(key),
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **self.schema.update(update),
            **more,
        )

    def _refusing_record(self, key: str, refused: Refused) -> Record | None:
        if refused.item:
            return self.schema.record(key, refused.item)
        return self._read(key)

    def _read(self, key: str) -> Record | None:
        item = self._item(key)
        return self.schema.record(key, item) if item else None

    def _item(self, key: str) -> Item | None:
        read = self.connection.request("get_item", TableName=self.table, Key=self.schema.key(key), ConsistentRead=True)
        item: Item | None = read.answer.get("Item") if isinstance(read, Succeeded) else None
        return item

    def _claim_from(self, request: ClaimRequest, now: float, until: int, attributes: Item) -> Claim:
        return Claim(
            request=request,
            in_progress_expiration=until,
            claimed_at=int(now * 1000),
            steps=self.schema.kept_steps(request.key, attributes),
            **self.schema.counts(request.key, attributes, _GRANTED),
        )


def local_url(table: str, *, host: str = "localhost", port: int = LOCAL_PORT) -> str:
    """Return the URL of a table in a stand-in for DynamoDB, with credentials that are made up, as it takes any."""
    return f"dynamodb://local:local@{f'[{host}]' if ':' in host else host}:{port}/{table}"


def _region_in(table: str) -> str | None:
    """Return the Region in a table's ARN; None for a name."""
    parts = table.split(":")
    return parts[3] if len(parts) > 3 else None  # noqa: PLR2004 - arn:partition:service:region:...


def _arguments_from_url(url: str) -> dict[str, Any]:
    """Parse a store URL into the constructor's arguments.

    Raises:
        ConfigurationError: the URL has no table, another scheme or an unknown parameter.
    """
    try:
        arguments = _table_and_endpoint(urlsplit(url))
    except ValueError:
        # The error's text may quote a secret with an unquoted "/" in it.
        msg = f"{_masked(url)} is not a store URL; write dynamodb://REGION/TABLE, with %2F for a / in a secret"
        raise ConfigurationError(msg) from None
    renamed: dict[str, str] = {}
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if not value:
            raise ConfigurationError(f"{_masked(url)}: parameter {name!r} is empty; give it a value or drop it")
        if name in _TEXT_ARGUMENTS:
            arguments[name] = value
        elif name in _SWITCHES:
            arguments[name] = _switch(url, name, value)
        elif name.removesuffix("_attr") in BOOKKEEPING and name.endswith("_attr"):
            renamed[name.removesuffix("_attr")] = value
        else:
            known = [*_TEXT_ARGUMENTS, *_SWITCHES, *(f"{role}_attr" for role in BOOKKEEPING)]
            raise ConfigurationError(f"{_masked(url)}: unknown parameter {name!r}; known are {', '.join(known)}")
    return {**arguments, "attributes": renamed}


def _switch(url: str, name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigurationError(f"{_masked(url)}: {name}={value!r} is neither true nor false")
    return value.lower() == "true"


def _table_and_endpoint(parts: SplitResult) -> dict[str, Any]:
    table = unquote(parts.path.strip("/"))
    if parts.scheme != "dynamodb" or not parts.netloc or not table:
        raise ValueError(parts.scheme)
    host = parts.hostname or ""
    port = parts.port
    place: dict[str, Any] = {"table": table}
    if port is None and host != "localhost":
        place["region"] = host
    else:
        place["endpoint_url"] = f"http://{f'[{host}]' if ':' in host else host}:{port or LOCAL_PORT}"
    if parts.username:
        # A stand-in may have a table of this name in each Region: the URL alone must say which one is meant.
        place["credentials"] = Credentials(unquote(parts.username), unquote(parts.password or ""))
        place["region"] = LOCAL_REGION
    return place


def _masked(url: str) -> str:
    """Return a URL for a message: without user, password, parameters, and host if that may be a password."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "a text without ://"
    place = re.split("[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    port = place.partition("/")[0].rpartition("]")[2].partition(":")[2]
    hidden = "…@" if "@" in rest else ""
    # Where the @ and the host are missing, the password stands in the place of the port.
    return repr(f"{scheme}://{hidden}{place if not port or port.isdecimal() else '…'}")
