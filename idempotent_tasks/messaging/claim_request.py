"""The claim request of a delivery, as the handler, the producer and the reaper compute it."""

from collections.abc import Mapping
from inspect import Signature
from typing import Any, Final

from idempotent_tasks.core.delivery import Delivery, read_delivery
from idempotent_tasks.core.keys import (
    arguments_digest,
    check_prefix,
    check_task_id,
    downstream_key,
    payload_digest,
    record_key,
    task_id_key,
)
from idempotent_tasks.core.lease import lease_terms
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import ClaimRequest
from idempotent_tasks.settings import Settings

__all__ = ["claim_request", "downstream_of", "has_shared_key", "request_of", "request_or_none"]

#: Separates the prefix of a lock's key, so that no lock is mistaken for a record with an outcome, nor the other way
#: round when a task's ``expires`` changes to or from 0.
LOCK_MARK: Final = "#exclusive"


def claim_request(delivery: Delivery, policy: Idempotency, signature: Signature) -> ClaimRequest:
    """Return the claim request of a delivery.

    Under ``expires=0`` with a key, the key is a lock that only serialises runs, and the delivery has the record of its
    own task id beside it: its redeliveries get that outcome, whoever has run since.

    Args:
        delivery: the delivery.
        policy: of its task, with the app's defaults.
        signature: of the task's body.

    Raises:
        MissingKeyError, KeyEncodingError, TypeError: as `idempotent_tasks.core.keys.record_key`.
    """
    prefix = check_prefix(delivery.task) if policy.prefix is None else policy.prefix
    is_locked = policy.expires_at_once and (policy.key is not None or delivery.explicit_key is not None)
    key = record_key(delivery, prefix + LOCK_MARK if is_locked else prefix, policy.key_selector, signature)
    validation, validated_by = _validation(delivery, policy, signature)
    process = this_process()
    request = ClaimRequest(
        key=key,
        owner=delivery.owner or process.token(),
        lease_seconds=lease_terms(policy, delivery.hard_limit_seconds).lease_seconds,
        retention_seconds=policy.retention_seconds,
        unresolved_seconds=policy.unresolved_seconds,
        validation=validation,
        validated_by=validated_by,
        task=delivery.task,
        task_id=check_task_id(delivery.task_id, delivery.task),
        # Its name comes from a command line, in bytes that need not be text; only people read it.
        worker=delivery.worker.encode(errors="backslashreplace").decode(),
        process=process.name(delivery.watcher),
        downstream=downstream_of(delivery, policy, signature),
        settle_seconds=policy.settle_seconds,
    )
    return request.locking(task_id_key(delivery, prefix)) if is_locked else request


def downstream_of(delivery: Delivery, policy: Idempotency, signature: Signature) -> str | None:
    """Return the key for downstream systems that a task declares, or None; raises as `claim_request` does."""
    selector = policy.downstream_selector
    return None if selector is None else downstream_key(delivery, selector, signature)


def request_of(
    task: Any, settings: Settings, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ClaimRequest:
    """Return the claim request of a ``celery.app.task.Context``; raises as `claim_request` does.

    Args:
        task: the bound `IdempotentTask`.
        settings: of its app.
        context: the delivery's.
        args, kwargs: the body's arguments.
    """
    delivery = read_delivery(task.name, context, tuple(args), kwargs)
    return claim_request(delivery, task.policy_under(settings), task.run_signature)


def request_or_none(
    task: Any, settings: Settings, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ClaimRequest | None:
    """Return the claim request of a delivery, as `request_of` does; None where it cannot have a claim.

    A worker's parent process must call it in the thread that forks: computing a key may import modules, and a child
    that is forked while another thread imports one waits indefinitely for the module's lock.
    """
    try:
        return request_of(task, settings, context, args, kwargs)
    except Exception:  # noqa: BLE001 - the key's own code raised it, as it does for the delivery
        return None


def has_shared_key(delivery: Delivery, policy: Idempotency) -> bool:
    """Return whether several calls may have one explicit key: Celery gives a group's options to each member."""
    # Powertools' records are validated as Powertools does.
    checked = policy.validate is not None or policy.powertools is not False
    return delivery.explicit_key is not None and delivery.grouped and not checked


def _validation(delivery: Delivery, policy: Idempotency, signature: Signature) -> tuple[str | None, str | None]:
    """Return the digest of the payload's validated part, and what selected that part."""
    selector = policy.validate_selector
    if selector is not None:
        by = None if selector.powertools_hash else selector.identity
        return payload_digest(delivery, selector, signature), by
    if has_shared_key(delivery, policy):
        return arguments_digest(delivery, signature), f"({', '.join(signature.parameters)})"
    return None, None
