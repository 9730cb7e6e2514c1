"""What a task's options and its body's signature show before its first message: options that cannot take effect."""

import inspect

from idempotent_tasks.core.keys import calls_of, parameter_names, signature_of
from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.errors import ConfigurationError

__all__ = ["check_declaration", "misfit", "never_skips", "uncallable"]


def check_declaration(policy: Idempotency, body: inspect.Signature | None, task: str) -> None:
    """Refuse options of a task that select nothing, never meet, or replay one outcome to all calls.

    Args:
        policy: what the task declares, without the app's defaults.
        body: the body's signature, without ``self``; None if it is unknown.
        task: the task's name, for the message.

    Raises:
        ConfigurationError: an option cannot do what it says.
    """
    problem = never_skips(policy)
    if problem is None and body is not None:
        problem = misfit(policy, body) or _replays_to_all(policy, body) or _has_one_effect(policy, body)
        problem = problem or uncallable(policy, body)
    if problem is not None:
        raise ConfigurationError(problem, task)


def never_skips(policy: Idempotency) -> str | None:
    """Return why no delivery of a task can meet another one that it could skip; None if one can."""
    if policy.on_busy != "skip" or policy.key is not None or policy.expires_at_once:
        return None
    return (
        "on_busy='skip' without key= skips no other tick of a schedule: the key is the task id, and each tick has its "
        "own; for one run at a time declare idempotency=Idempotency.exclusive(), else give key="
    )


def misfit(policy: Idempotency, body: inspect.Signature) -> str | None:
    """Return why ``key``, ``validate`` or ``downstream`` cannot select from a body's arguments; None if they can."""
    selectors = filter(None, (policy.key_selector, policy.validate_selector, policy.downstream_selector))
    return next(filter(None, (selector.misfit(body) for selector in selectors)), None)


def uncallable(policy: Idempotency, body: inspect.Signature) -> str | None:
    """Return why ``recover`` cannot be called with what a body is called with; None if it can, or is only named yet."""
    asked = signature_of(policy.recover) if callable(policy.recover) else None
    if asked is None:
        return None
    try:
        # It is called as the body is, so that each way must do.
        for args, kwargs in calls_of(body):
            asked.bind("record", *args, **kwargs)
    except TypeError as error:
        name = getattr(policy.recover, "__name__", type(policy.recover).__name__)
        return (
            f"recover={name} cannot be called with the record and the arguments of the body, {parameter_names(body)}: "
            f"{error}; declare it as def {name}(record, {', '.join(body.parameters)})"
        )
    return None


def _replays_to_all(policy: Idempotency, body: inspect.Signature) -> str | None:
    selector = policy.key_selector
    if selector is None or "expires" in policy.given or not selector.reads_nothing(body):
        return None
    return (
        f"key={selector.text!r} reads no argument, so the outcome of one call is replayed to all others for "
        f"{seconds(policy.expires):g} s; for one run at a time declare idempotency=Idempotency.exclusive(), "
        "for one run in each period give expires= the length of the period"
    )


def _has_one_effect(policy: Idempotency, body: inspect.Signature) -> str | None:
    selector = policy.downstream_selector
    if selector is None or not selector.reads_nothing(body):
        return None
    return (
        f"downstream={selector.text!r} reads no argument, so all calls have one key, and the system that takes it "
        "carries out the first of them only; select what identifies the work too, as in \"['charge', order.id]\""
    )
