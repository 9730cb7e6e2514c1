"""The chaos command: reads the options, plays all contenders at once, and writes the reports that were asked for."""

import argparse
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console

from benchmarks.chaos.contenders import CONTENDERS, tracing
from benchmarks.chaos.figures import Figures, figures_of
from benchmarks.chaos.history import Event
from benchmarks.chaos.plan import Plan, draw
from benchmarks.chaos.player import Game, Player
from benchmarks.chaos.report import Report, draw_picture
from benchmarks.chaos.services import Services
from benchmarks.command import add_files, unwinding_on_signals, write
from tests.testbed.servers import MissingServiceError

__all__ = ["main"]

#: Seconds from the last message or blow until a contender that has not come to rest is given up.
REST_SECONDS: Final = 75.0
WATCH_SECONDS: Final = 0.5
#: The options that bring more than kills, in the order of the titles.
EXTRAS: Final = ("provider", "rows", "pause", "faults", "one_by_one")
#: Exit codes.
KEPT, BROKEN, UNPLAYED = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Play and report.

    Returns:
        0 if `IdempotentTask` kept every promise, or did not play; 1 if it did not, or repeated an effect that it has a
        tool for; 2 if nothing could be played, or a fault never was.
    """
    options = _options(arguments)
    console = Console()
    plan = draw(
        seed=options.seed,
        keys=options.keys,
        messages=options.messages,
        kills=options.kills,
        threads=options.pool == "threads",
        pause=options.pause,
        faults=options.faults,
    )
    console.print(f"plan {plan.digest} of seed {plan.seed}: {', '.join(options.contenders)}", highlight=False)
    try:
        report = _play(options, plan)
    except (MissingServiceError, ModuleNotFoundError, TimeoutError) as error:
        console.print(f"not played: {error}", style="red", highlight=False, markup=False)
        return UNPLAYED
    report.show(console)
    write(options, report, draw_picture)
    if any(figures.broken for figures in report.figures if CONTENDERS[figures.name].ours):
        return BROKEN
    return UNPLAYED if report.unplayed else KEPT


def _play(options: argparse.Namespace, plan: Plan) -> Report:
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        if options.directory:
            folder: Path = options.directory.resolve()
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-chaos-")))
        tables = any(CONTENDERS[name].has_table for name in options.contenders)
        services = stack.enter_context(Services.started(folder, options.broker, dynamodb=tables, rows=options.rows))
        rounds = [[name] for name in options.contenders] if options.one_by_one else [options.contenders]
        figures = [each for names in rounds for each in _play_round(names, options, plan, services)]
        return Report(
            plan=plan,
            broker=options.broker,
            pool=options.pool,
            extras=tuple(name for name in EXTRAS if getattr(options, name)),
            figures=tuple(figures),
            faults=services.faults_played(),
        )


def _play_round(names: list[str], options: argparse.Namespace, plan: Plan, services: Services) -> list[Figures]:
    stop = threading.Event()

    def begin() -> None:
        services.begin_faults(names, plan, stop)

    game = Game(
        plan=plan,
        pool=options.pool,
        start=threading.Barrier(len(names), begin),
        stop=stop,
        limit_seconds=plan.last_at + REST_SECONDS,
    )
    arenas = [services.arena(name, plan, faults=options.faults, at_provider=options.provider) for name in names]
    players = [
        Player(arena=arena, game=game, committed_effects=partial(services.committed_effects, arena)) for arena in arenas
    ]
    with tracing(on=plan.traced), ThreadPoolExecutor(len(players)) as threads:
        playing = [threads.submit(player.play) for player in players]
        try:
            _watch(playing, game)
        finally:
            stop.set()
            game.start.abort()
    return [_judge(player, future.result(), plan) for player, future in zip(players, playing, strict=True)]


def _watch(playing: Sequence[Future[list[Event]]], game: Game) -> None:
    """Return when all players are done; raise the error of the first that fails."""
    while not all(future.done() for future in playing):
        for future in playing:
            if future.done():
                future.result()
        game.stop.wait(WATCH_SECONDS)


def _judge(player: Player, events: list[Event], plan: Plan) -> Figures:
    name = player.arena.contender
    return figures_of(
        name,
        CONTENDERS[name].title,
        events,
        [job.key for job in plan.jobs],
        prevents=CONTENDERS[name].prevents,
        steps=CONTENDERS[name].steps,
        forgetful=player.arena.is_forgetful,
        settled=player.settled,
        seconds=player.seconds,
        missed=player.missed,
    )


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    missing = {needs for needs in ("provider", "rows") if not getattr(options, needs)}
    playable = [name for name, contender in CONTENDERS.items() if contender.needs not in missing]
    options.contenders = options.contenders or playable
    for needs in sorted(missing):
        alien = sorted(name for name in set(options.contenders) if CONTENDERS[name].needs == needs)
        if alien:
            parser.error(f"only with --{needs}: {', '.join(alien)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides the work, the duplicates and the kills")
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--pool", choices=("prefork", "threads"), default="prefork")
    effects = parser.add_mutually_exclusive_group()
    effects.add_argument("--provider", action="store_true", help="have effects at a provider, which adds contenders")
    effects.add_argument("--rows", action="store_true", help="have effects in databases, which adds contenders")
    parser.add_argument("--pause", action="store_true", help="also stop processes past their claim, and continue them")
    parser.add_argument("--faults", action="store_true", help="make DynamoDB, a gateway and credentials fail")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--one-by-one", action="store_true", help="play the contenders one after the other")
    parser.add_argument("--keys", type=int, default=150)
    parser.add_argument("--messages", type=int, default=184)
    parser.add_argument("--kills", type=int, default=60)
    add_files(parser, everything="everything that was found", tables="the table", picture="the recovery times")
    parser.add_argument("--directory", type=Path, help="a new folder that keeps the journals and the workers' logs")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
