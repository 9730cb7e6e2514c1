"""Shows the phases in the terminal while they are played, and the two side by side at the end."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from idempotent_tasks.demo.ledger import Figures, Ledger, Watcher
from idempotent_tasks.demo.story import Line, Narrator

__all__ = ["Screen"]

_LAST_LINES = 8
_MIDDLE = {
    "messages published": "published",
    "deliveries": "deliveries",
    "runs of the body": "runs",
    "replays of a stored result": "replays",
    "deferrals": "deferrals",
    "pool children killed": "children_killed",
    "workers killed": "workers_killed",
    "recoveries of a killed run": "recoveries",
}
_END = {
    "charges wanted": "wanted",
    "charges made": "charges",
    "charged twice": "charged_twice",
    "lost": "lost",
    "money wanted": "wanted_cents",
    "money taken": "charged_cents",
}
_LIMIT = (
    "The limit: a body that dies after its charge and before the commit of its result runs again. "
    "No kill here falls between the two; the README says how to close that window."
)


class Screen:
    """The terminal: a live display, or plain lines where there is no terminal to draw on."""

    def __init__(self, console: Console, *, live: bool) -> None:
        self._console = console
        self._live = live
        #: Each phase's title and its ledger, the present one last.
        self._acts: dict[str, Ledger] = {}

    def say(self, text: str) -> None:
        """Print some plain text."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def act(self, title: str, explanation: str) -> Iterator[Watcher]:
        """Show one phase; the yielded function is to be called with its ledger again and again."""
        self._console.rule(f"[bold]{title}", align="left")
        self.say(explanation)
        with self._live_act(title) if self._live else self._plain_act(title) as watch:
            yield watch

    @contextmanager
    def _live_act(self, title: str) -> Iterator[Watcher]:
        progress = Progress(TextColumn("payments charged"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = progress.add_task(title, total=None)
        lines: deque[Line] = deque(maxlen=_LAST_LINES)
        narrator = Narrator()
        with Live(console=self._console, refresh_per_second=8) as live:

            def watch(ledger: Ledger) -> None:
                self._acts[title] = ledger
                lines.extend(narrator.news(ledger.entries))
                progress.update(bar, total=len(ledger.payments), completed=ledger.charged)
                live.update(Group(progress, _table(self._figures(), _MIDDLE), _last(lines)))

            yield watch

    @contextmanager
    def _plain_act(self, title: str) -> Iterator[Watcher]:
        narrator = Narrator()

        def watch(ledger: Ledger) -> None:
            self._acts[title] = ledger
            for line in narrator.news(ledger.entries):
                self.say(str(line))

        yield watch

    def end(self, *, kept: bool) -> None:
        """Print the phases side by side, and whether the promise was kept."""
        figures = self._figures()
        self._console.rule("[bold]Side by side", align="left")
        self._console.print(_table(figures, _MIDDLE, _END))
        verdict = Text("The promise held: " if kept else "The promise BROKE: ", "bold green" if kept else "bold red")
        self._console.print(verdict.append(_summary(list(figures.values())[-1]), "default"))
        self._console.print(_LIMIT, style="dim", highlight=False)

    def _figures(self) -> dict[str, Figures]:
        return {title: ledger.figures() for title, ledger in self._acts.items()}


def _last(lines: deque[Line]) -> RenderableType:
    missing = [Text()] * (_LAST_LINES - len(lines))
    return Group(*(Text(str(line), line.style, no_wrap=True, overflow="ellipsis") for line in lines), *missing)


def _table(figures: dict[str, Figures], *sections: dict[str, str]) -> Table:
    table = Table("", *(title for title in figures))
    for column in table.columns[1:]:
        column.justify = "right"
    for section in sections:
        for label, name in section.items():
            table.add_row(label, *(_cell(name, each) for each in figures.values()))
        table.add_section()
    return table


def _cell(name: str, figures: Figures) -> Text:
    number: int = getattr(figures, name)
    if name.endswith("_cents"):
        return Text(f"{number / 100:,.2f}")
    right = {"charges": figures.wanted, "charged_twice": 0, "lost": 0}
    if name not in right:
        return Text(str(number))
    return Text(str(number), "bold green" if number == right[name] else "bold red")


def _summary(figures: Figures) -> str:
    return (
        f"{figures.wanted} payments, {figures.deliveries} deliveries, {figures.charges} charges, "
        f"{figures.charged_twice} charged twice, {figures.lost} lost."
    )
