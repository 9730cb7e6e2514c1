"""The claim request of a delivery, as the handler, the producer and the reaper compute it."""

from collections.abc import Mapping
from inspect import Signature
from typing import Any

from idempotent_tasks.core.delivery import Delivery, read_delivery
from idempotent_tasks.core.keys import arguments_digest, check_prefix, check_task_id, payload_digest, record_key
from idempotent_tasks.core.lease import lease_terms
from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import ClaimRequest
from idempotent_tasks.settings import Settings

__all__ = ["claim_request", "has_shared_key", "request_of"]


def claim_request(delivery: Delivery, policy: Idempotency, signature: Signature) -> ClaimRequest:
    """Return the claim request of a delivery.

    Args:
        delivery: the delivery.
        policy: of its task, with the app's defaults.
        signature: of the task's body.

    Raises:
        MissingKeyError, KeyEncodingError, TypeError: as `idempotent_tasks.core.keys.record_key`.
    """
    prefix = check_prefix(delivery.task) if policy.prefix is None else policy.prefix
    process = this_process()
    return ClaimRequest(
        key=record_key(delivery, prefix, policy.key_selector, signature),
        owner=delivery.owner or process.token(),
        lease_seconds=lease_terms(policy, delivery.hard_limit_seconds).lease_seconds,
        retention_seconds=seconds(policy.expires),
        validation=_validation(delivery, policy, signature),
        task=delivery.task,
        task_id=check_task_id(delivery.task_id, delivery.task),
        # Its name comes from a command line, in bytes that need not be text; only people read it.
        worker=delivery.worker.encode(errors="backslashreplace").decode(),
        process=process.name(delivery.watcher),
    )


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


def has_shared_key(delivery: Delivery, policy: Idempotency) -> bool:
    """Return whether several calls may have one explicit key: Celery gives a group's options to each member."""
    # Powertools' records are validated as Powertools does.
    checked = policy.validate is not None or policy.powertools is not False
    return delivery.explicit_key is not None and delivery.grouped and not checked


def _validation(delivery: Delivery, policy: Idempotency, signature: Signature) -> str | None:
    if policy.validate_selector is not None:
        return payload_digest(delivery, policy.validate_selector, signature)
    return arguments_digest(delivery, signature) if has_shared_key(delivery, policy) else None
