"""What the histories' ``recover`` does: it asks the provider, or fails in each way that one can."""

from typing import TYPE_CHECKING, Any, Final

from celery import current_task

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Record
from idempotent_tasks.core.recovery import Done, NotDone, Recovery, Unknown

if TYPE_CHECKING:
    from simulation.bodies import Plan
    from simulation.world import World

__all__ = ["recover"]

#: Seconds that a slow one takes at most: longer than the soft time limit.
SLOW_SECONDS: Final = 8.0


def recover(world: "World", record: Record, plan: "Plan") -> Recovery:
    """Return what came of an earlier run of the current task's key, as its message's plan says how."""
    task, process = current_task, this_process()
    run = task.idempotency
    about = {"key": run.key, "grant": run.claim.fence, "id": task.request.id, "process": process.name()}
    world.note("asked", **about, number=run.run, rerun=run.rerun, owner=record.owner)
    kind, chance = next((argument for step, argument, *_ in plan if step == "ask"), (None, 0.0))
    if kind is not None and world.faults.active and world.draw.random() < chance:
        world.faults.counts[f"recover-{kind}"] += 1
        answer = _fail(world, task, process, kind)
        if answer is not None or kind == "returns-none":
            world.note("answered", **about, answer=type(answer).__name__)
            return answer
    charged = world.provider.ask(run.key)
    # A body may return nothing.
    answer = NotDone() if charged is None else Done(None if kind == "has-no-result" else charged)
    world.note("answered", **about, answer=type(answer).__name__)
    return answer


def _fail(world: "World", task: Any, process: Any, kind: str) -> Any:
    """Do what one kind of ``recover`` does instead of asking, or before it; return its answer, None for none."""
    match kind:
        case "raises":
            raise ConnectionError("simulated: nobody can be asked")
        case "retries":
            raise task.retry(countdown=world.draw.uniform(0, 5), max_retries=None)
        case "retries-once":
            if not task.request.retries:
                raise task.retry(countdown=0)
        case "dies":
            process.kill()
            process.check_alive()
        case "exits":
            raise SystemExit(1)
        case "knows-nothing":
            return Unknown("simulated")
        case "is-slow":
            world.scheduler.sleep(world.draw.uniform(0, SLOW_SECONDS))
    return None
