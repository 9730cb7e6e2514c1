"""Options that cannot take effect are errors where the task is declared, and what only looks like one is not."""

from collections.abc import Callable
from typing import Any

import jmespath
import pytest
from celery import Celery, Task

from idempotent_tasks import ConfigurationError, Idempotency, IdempotentTask
from idempotent_tasks.core.expressions import names_read
from idempotent_tasks.core.lease import RunContext
from tests.support.shop import SECRET

Declare = Callable[..., Any]


@pytest.fixture
def declare(app: Celery) -> Declare:
    """Declare a task at once, guarded and named ``shop.charge`` unless the options differ."""

    def declare(body: Any, **options: Any) -> Any:
        usual = {"name": "shop.charge", "base": IdempotentTask, "shared": False, "lazy": False}
        return app.task(body, **{**usual, **options})

    return declare


def charge(order_id: str, amount: int = 5) -> None:
    """Have two parameters."""


def bound(self: Any, order_id: str) -> None:
    """Have one parameter besides the task."""


def collecting(order_id: str, *more: Any, **others: Any) -> None:
    """Have parameters that collect."""


def keyword_only(*, order_id: str) -> None:
    """Have a parameter that is given by name."""


def positional(order_id: str, /) -> None:
    """Have a parameter that is given by position."""


def sweep() -> None:
    """Have no parameter."""


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("order.id", {"order"}),
        ("[order.id, customer]", {"order", "customer"}),
        ("{a: order.id, b: 'x'}", {"order"}),
        ("lines[*].sku", {"lines"}),
        ("lines[?sku == 'x'].name | [0]", {"lines"}),
        ("lines[0:2]", {"lines"}),
        ("lines[].x", {"lines"}),
        ("order.*.id", {"order"}),
        ("order.{a: id, b: [number]}", {"order"}),
        ("sort_by(items, &price)", {"items"}),
        ("not_null(order.id, number || !name, 'none')", {"order", "number", "name"}),
        ("a == b && c", {"a", "b", "c"}),
        ("@ | order.id", {"order"}),
        ("@.order", {"order"}),
        ("@ | @.[order, id]", {"order", "id"}),
        ("order | @", {"order"}),
        ("join('-', ['a', 'b'])", set()),
        ("`5`", set()),
        ("'a' | @", set()),
        *[(expression, {"@"}) for expression in ("@", "*", "*.id", "keys(@)", "[0]", "@ | @", "@[0].id")],
    ],
)
def test_what_an_expression_reads(expression: str, names: set[str]) -> None:
    """The names at its root, and no name that is read of something else."""
    assert names_read(jmespath.compile(expression).parsed) == names


@pytest.mark.parametrize(
    ("body", "options", "why"),
    [
        (charge, {"key": "oder_id"}, "key='oder_id' reads 'oder_id', .* did you mean 'order_id'\\?"),
        (charge, {"key": "[order_id, currency]"}, r"reads 'currency', .* it takes \(order_id, amount\)"),
        (charge, {"validate": "amounts.x"}, "validate='amounts.x' reads 'amounts', .* did you mean 'amount'\\?"),
        (charge, {"key": "cent || order_id"}, "reads 'cent'"),
        (collecting, {"key": "currency"}, r"what \*\*others collects is read as others.currency"),
        (sweep, {"validate": "amount"}, r"reads 'amount', .* it takes \(\)"),
        (charge, {"key": lambda order_id: order_id}, r"takes \(order_id\) and is called with .*\(order_id, amount\)"),
        (charge, {"validate": lambda currency, **_: currency}, r"validate=.*takes \(currency, _\)"),
        (collecting, {"key": lambda number: number, "validate": lambda: 5}, r"validate=.* takes \(\)"),
        (keyword_only, {"key": lambda order_id, /: order_id}, r"takes \(order_id\)"),
        (sweep, {"on_busy": "skip"}, r"on_busy='skip' without key= .*Idempotency.exclusive\(\)"),
        (charge, {"on_busy": "skip", "prefix": "shop"}, r"on_busy='skip' without key= .*else give key="),
        (charge, {"key": "'fixed'"}, r"reads no argument, .* for 3600 s; .*Idempotency.exclusive\(\), .*expires="),
        (charge, {"key": "join('-', ['a', 'b'])", "prefix": "shop"}, "reads no argument"),
        (sweep, {"key": lambda: "sweep", "on_busy": "skip"}, "reads no argument"),
        (sweep, {"key": lambda *_, **__: "sweep"}, "reads no argument"),
        (charge, {"downstream": "['charge', oder_id]"}, "downstream=.* reads 'oder_id', .* did you mean 'order_id'\\?"),
        (charge, {"downstream": lambda currency, **_: currency}, r"downstream=.*takes \(currency, _\)"),
        (charge, {"downstream": "'charge'"}, r"downstream=\"'charge'\" reads no argument, so all calls have one key"),
        (charge, {"downstream": "['charge']", "expires": 60}, "downstream=.* reads no argument"),
        (sweep, {"downstream": lambda: "sweep"}, "downstream=.* reads no argument"),
    ],
)
@pytest.mark.parametrize("form", [Idempotency.of, dict], ids=["object", "mapping"])
def test_what_cannot_take_effect_is_refused(
    declare: Declare, body: Any, options: dict[str, Any], why: str, form: Any
) -> None:
    """The error names the task, the option and what to write instead, however the options are given."""
    with pytest.raises(ConfigurationError, match=rf"(?s){why}.*'shop\.charge'"):
        declare(body, idempotency=form(options))


def test_a_bound_body_is_read_without_its_task(declare: Declare) -> None:
    """``self`` is no argument that a key can name."""
    with pytest.raises(ConfigurationError, match=r"reads 'self', .* it takes \(order_id\)"):
        declare(bound, bind=True, idempotency={"key": "self"})
    assert declare(bound, bind=True, idempotency={"key": "order_id"})


def test_no_default_of_a_parameter_is_shown(declare: Declare) -> None:
    """It may be a secret."""

    def charge(order_id: str, token: str = SECRET) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        declare(charge, idempotency={"key": lambda order_id, token, region=SECRET, *, zone: order_id})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (charge, {"key": "order_id"}),
        (charge, {"key": "@"}),
        (charge, {"key": "sort_by(order_id, &price)[*].number"}),
        (collecting, {"key": "[order_id, more[0], others.currency]"}),
        (charge, {"key": lambda order, cents: order}),
        (charge, {"key": lambda order_id, **_: order_id}),
        (charge, {"key": lambda *args, **kwargs: [args, kwargs]}),
        (charge, {"key": max}),
        (charge, {"downstream": "['charge', order_id]"}),
        (charge, {"downstream": lambda order_id, **_: ["charge", order_id], "key": "amount"}),
        (charge, {"downstream": "@"}),
        (keyword_only, {"key": lambda order_id: order_id}),
        (positional, {"key": lambda order, /: order}),
        (collecting, {"key": lambda order_id, currency: [order_id, currency]}),
        (charge, {"key": "'fixed'", "expires": 3600}),
        (sweep, {"key": lambda: "sweep", "on_busy": "skip", "expires": 86_400}),
        (charge, {"key": "order_id", "on_busy": "skip"}),
        (sweep, Idempotency.exclusive().given),
        (charge, Idempotency.exclusive(key="order_id").given),
        (sweep, {"on_busy": "skip", "expires": 0}),
        (sweep, {}),
    ],
)
def test_what_can_take_effect_is_not_refused(declare: Declare, body: Any, options: dict[str, Any]) -> None:
    """Also where nobody can know yet whether it will."""
    assert declare(body, idempotency=options).idempotency_policy.given == options


def test_options_from_annotations_are_checked(app: Celery, declare: Declare) -> None:
    """They arrive when the task is bound."""
    app.conf.task_annotations = {"shop.charge": {"idempotency": {"key": "oder_id"}}}
    with pytest.raises(ConfigurationError, match="did you mean 'order_id'"):
        declare(charge)


class Orders:
    """Options that are no task."""

    idempotency = Idempotency(key="order_id")


class Plain(Task):
    """A base class that is not guarded."""

    idempotency = Idempotency(key="order_id")


class Noting(Task):
    """A base class that is not guarded and makes its instances in its own way."""

    idempotency_policy = Idempotency(key="order_id")
    made = 0

    def __init__(self) -> None:
        self.made += 1


class First(Orders, IdempotentTask):  # type: ignore[misc]
    """Options before the guard."""


class Last(IdempotentTask, Orders):  # type: ignore[misc]
    """Options after it."""


class OfPlain(Plain, IdempotentTask):  # type: ignore[misc]
    """Options of a task class before it."""


class OfNoting(Noting, IdempotentTask):
    """The same, with instances that are made in another way."""


class Template(IdempotentTask):
    """A body that other classes replace."""

    abstract = True
    idempotency = Idempotency(key="order_id")  # type: ignore[assignment]

    def run(self, *args: Any) -> Any:
        """Take anything."""
        raise NotImplementedError


@pytest.mark.parametrize("base", [First, Last, OfPlain, OfNoting, Template])
def test_options_of_a_base_class_count(declare: Declare, base: Any) -> None:
    """Wherever it stands among the bases; in the body, ``self.idempotency`` is the run and not the options."""
    seen: list[Any] = []

    def note(self: Any, order_id: str) -> None:
        seen.append(self.idempotency)

    task = declare(note, base=base, bind=True)
    assert task.idempotency_policy.given == {"key": "order_id"}
    task.apply(("ord-17",))
    assert isinstance(seen[0], RunContext)
    with pytest.raises(ConfigurationError, match="reads 'order_id', which is no parameter"):
        declare(sweep, base=base, name="shop.sweep")


def test_an_own_way_to_make_instances_is_kept(declare: Declare) -> None:
    """A class that declares options loses nothing."""
    assert declare(charge, base=OfNoting).made == 1


def test_nearer_options_count_before_those_of_a_base(declare: Declare) -> None:
    """As any attribute of a class."""
    for base in (First, Last, OfPlain):
        task = declare(charge, base=base, name=f"shop.{base.__name__}", idempotency={"key": "amount"})
        assert task.idempotency_policy.given == {"key": "amount"}

    class Nearer(First):
        idempotency = Idempotency(expires=60)  # type: ignore[assignment]

    assert declare(charge, base=Nearer).idempotency_policy.given == {"expires": 60}
    task = declare(charge, base=Nearer, name="shop.default", idempotency=None)
    assert task.idempotency_policy.given == {}


def test_a_policy_may_be_a_mapping_under_its_own_name(declare: Declare) -> None:
    """``idempotency_policy`` takes what ``idempotency`` takes."""
    assert declare(charge, idempotency_policy={"key": "amount"}).idempotency_policy.given == {"key": "amount"}


@pytest.mark.parametrize("base", [Plain, Noting])
@pytest.mark.parametrize("option", ["idempotency", "idempotency_policy"])
def test_options_of_a_task_that_is_not_guarded_are_refused(declare: Declare, base: Any, option: str) -> None:
    """With the decorator or as a class, in every Python as the error that says why."""
    why = rf"{option}= of charge has no effect, because the task is not guarded: .*base=IdempotentTask.*'shop\.charge'"
    with pytest.raises(ConfigurationError, match=why):
        declare(charge, base=Task, **{option: Idempotency(key="order_id")})
    with pytest.raises(ConfigurationError, match=f"of {base.__name__} has no effect"):
        declare(charge, base=base)
    with pytest.raises(ConfigurationError, match=f"of {base.__name__} has no effect"):
        base()


def test_a_task_of_an_app_whose_class_is_guarded_needs_no_base(app: Celery) -> None:
    """``task_cls`` guards every task."""
    guarded = Celery("shop", task_cls="idempotent_tasks:IdempotentTask", set_as_current=False)
    task = guarded.task(charge, shared=False, lazy=False, idempotency=Idempotency(key="order_id"))
    assert task.idempotency_policy.given == {"key": "order_id"}
