"""`Idempotency`: wrong values fail when the task is declared, and open fields are filled by settings."""

import copy
import dataclasses
import inspect
import pickle
from datetime import timedelta
from typing import Any, cast

import pytest

from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.errors import ConfigurationError
from tests.support.receipts import MemoryReceipts


def test_the_defaults() -> None:
    """What a task gets that asks for nothing."""
    policy = Idempotency()
    assert dataclasses.asdict(policy) == {
        "key": None,
        "validate": None,
        "downstream": None,
        "prefix": None,
        "expires": 3600,
        "unresolved_for": 1_209_600,
        "on_busy": "defer",
        "wait_timeout": 10,
        "on_rerun": "run",
        "recover": None,
        "settle": None,
        "receipts": None,
        "on_store_error": "defer",
        "missing_key": "raise",
        "lease": None,
        "grace": 5,
        "max_crashes": 5,
        "codec": "json",
        "store_failures": (),
        "on_replay": None,
        "at_publish": "send",
        "reserve": 300,
        "cache": None,
        "powertools": False,
        "silenced_checks": (),
    }
    assert policy.key_selector is None
    assert policy.validate_selector is None
    assert policy.downstream_selector is None
    assert policy.given == {}


def test_every_field_is_documented() -> None:
    """The docstring's ``Args`` name each field."""
    documented = inspect.cleandoc(Idempotency.__doc__ or "").split("Args:")[1].split("Raises:")[0]
    for field in dataclasses.fields(Idempotency):
        assert f"\n    {field.name}: " in documented


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("on_busy", "queue"),
            ("on_busy", None),
            ("on_busy", []),
            ("on_store_error", "skip"),
            ("missing_key", "skip"),
            ("at_publish", "skip"),
            ("at_publish", True),
        ],
        *[("expires", value) for value in (-1, "1h", None, True, float("nan"), float("inf"), 10**400)],
        *[("wait_timeout", value) for value in (-1, "10", None, False)],
        *[("grace", value) for value in (-0.1, None, timedelta(seconds=-1))],
        *[("lease", value) for value in (0, -5, "60", True)],
        *[("reserve", value) for value in (0, -1, None, "5m")],
        *[("unresolved_for", value) for value in (0, -1, None, "14d", float("inf"))],
        *[("cache", value) for value in (0, -1, True, "60")],
        *[("max_crashes", value) for value in (0, -1, 2.0, True, None, "5")],
        *[("powertools", value) for value in (1, "crc32", "shake_128", ["md5"], None)],
        *[("prefix", value) for value in ("", "  ", "a\nb", 7, "x" * 513, "é" * 257)],
        *[("key", value) for value in ("order.", "[?", "", 7, ["order"])],
        *[("validate", value) for value in ("order..id", 0)],
        *[("downstream", value) for value in ("order..id", 0, ["order"], "powertools_json(order)")],
        *[("codec", "xml"), ("codec", None), ("codec", [])],
        *[("store_failures", value) for value in (5, [KeyError, 5], BaseException, SystemExit, KeyError(), None)],
        *[("on_replay", 5), ("on_replay", [])],
        *[("receipts", value) for value in (5, object(), [MemoryReceipts()], MemoryReceipts)],
        *[("silenced_checks", value) for value in ("acks-late-off", 5, [5], None)],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_value_is_named(field: str, value: Any) -> None:
    """The error names the field and what was given for it."""
    with pytest.raises(ConfigurationError, match=f"{field}=") as caught:
        Idempotency(**{field: value})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("expires", 0), ("expires", timedelta(0)), ("expires", 1), ("expires", 0.5), ("expires", timedelta(days=30))],
        *[("wait_timeout", 0), ("grace", 0), ("grace", timedelta(0)), ("lease", 60), ("max_crashes", 1)],
        *[("prefix", "x" * 512), ("prefix", "zahlung-é"), ("on_busy", "wait"), ("missing_key", "run")],
        *[("unresolved_for", 1), ("unresolved_for", timedelta(days=365))],
        *[("at_publish", "join"), ("reserve", timedelta(hours=1)), ("cache", 60), ("cache", timedelta(minutes=1))],
        *[("key", "[order.id, customer]"), ("key", len), ("validate", "order.amount")],
        *[("downstream", "['charge', order.id]"), ("downstream", len)],
        *[("codec", "pickle"), ("codec", "none"), ("on_replay", len), ("on_replay", "shop.hooks:replayed")],
        *[("silenced_checks", ["acks-late-off"]), ("silenced_checks", {"time-limit-missing"})],
        *[("store_failures", KeyError), ("store_failures", [KeyError, "shop:Declined"]), ("store_failures", "shop:No")],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_right_value_is_kept(field: str, value: Any) -> None:
    """A value at the edge of what is allowed is taken as it is, and counts as given."""
    policy = Idempotency(**{field: value})
    assert getattr(policy, field) == value
    assert policy.given == {field: value}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("expiry", "did you mean 'expires'?"),
        ("keys", "did you mean 'key'?"),
        ("zzz", "fields are key, validate, downstream, prefix"),
    ],
)
def test_an_unknown_field_is_met_with_a_hint(name: str, hint: str) -> None:
    """A typing error is answered with the field that was meant, or with all of them."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        Idempotency(**{name: cast(Any, 1)})
    assert hint in str(caught.value)


def test_fields_are_given_by_name() -> None:
    """A bare value could be any field."""
    with pytest.raises(TypeError):
        Idempotency("order.id")  # type: ignore[call-arg]


def test_a_policy_cannot_be_changed() -> None:
    """A policy that tasks share stays as it was checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Idempotency().expires = 5  # type: ignore[misc]


def test_selectors_are_compiled_once() -> None:
    """Deliveries share the compiled expression."""
    policy = Idempotency(key="order.id", validate="order.amount")
    assert policy.key_selector is not None
    assert policy.key_selector is policy.key_selector
    assert policy.key_selector.text == "order.id"
    assert policy.validate_selector is not None
    assert policy.validate_selector.option == "validate"


def test_given_fields_beat_defaults() -> None:
    """A task's own value wins, also where it equals the library's default; open fields take the app's."""
    policy = Idempotency(on_busy="defer", expires=60).over({"on_busy": "raise", "grace": 9})
    assert (policy.on_busy, policy.expires, policy.grace) == ("defer", 60, 9)
    assert policy.max_crashes == 5


def test_of_takes_what_a_task_may_declare() -> None:
    """A policy, its fields in a mapping, or nothing."""
    policy = Idempotency(key="order.id")
    assert Idempotency.of(policy) is policy
    assert Idempotency.of({"key": "order.id"}) == policy
    assert Idempotency.of(None) == Idempotency()
    assert Idempotency.of(Idempotency(expires=60)).given == {"expires": 60}


@pytest.mark.parametrize(
    ("given", "types"),
    [((), ()), (KeyError, (KeyError,)), ([KeyError, OSError], (KeyError, OSError)), (["shop:Declined"], ())],
)
def test_final_errors_are_types(given: Any, types: tuple[type[Exception], ...]) -> None:
    """One type or many; what is only named comes with `imported`."""
    assert Idempotency(store_failures=given).final_errors == types


def test_names_are_imported() -> None:
    """``module:name`` becomes what it names; a policy without names stays the same, open fields stay open."""
    policy = Idempotency(store_failures=["builtins:KeyError", OSError], on_replay="builtins:max", expires=60)
    imported = policy.imported()
    assert imported.final_errors == (KeyError, OSError)
    assert imported.on_replay == max
    assert set(imported.given) == {"store_failures", "on_replay", "expires"}
    plain = Idempotency(key="order", on_replay=max, store_failures=(KeyError,))
    assert plain.imported() is plain


@pytest.mark.parametrize("value", ["order.id", 60, True, ["key"], Idempotency], ids=repr)
def test_of_refuses_the_rest(value: Any) -> None:
    """A bare expression is not guessed at."""
    with pytest.raises(ConfigurationError, match="neither an Idempotency nor a mapping"):
        Idempotency.of(value)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))],
    ids=["copy", "deep", "pickle"],
)
def test_a_copy_knows_what_was_given(duplicate: Any) -> None:
    """A policy in a task class survives copying and a spawned process."""
    policy = Idempotency(key="order.id", expires=60)
    assert duplicate(policy) == policy
    assert duplicate(policy).over({"expires": 5, "grace": 9}).grace == 9
    assert duplicate(policy).over({"expires": 5}).expires == 60


@pytest.mark.parametrize(("duration", "length"), [(3, 3.0), (0.5, 0.5), (timedelta(minutes=1), 60.0)], ids=repr)
def test_durations_in_seconds(duration: Any, length: float) -> None:
    """Numbers are seconds."""
    assert seconds(duration) == length
