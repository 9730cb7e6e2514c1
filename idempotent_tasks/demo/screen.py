"""The demo's terminal output: each phase while it runs, and both side by side at the end."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from idempotent_tasks.demo.journal import Entry, What
from idempotent_tasks.demo.ledger import Figures, Ledger, Watcher

__all__ = ["Narrator", "Screen"]

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


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the output."""

    #: Seconds since the first entry of the journal.
    seconds: float
    text: str
    #: A style of rich.
    style: str = ""

    def __str__(self) -> str:
        return f"{self.seconds:5.1f} s  {self.text}"


class Narrator:
    """Describes the kills, second runs, second charges, replays and deferrals of a phase as its entries arrive."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._described = 0
        self._seen: Counter[tuple[What, str]] = Counter()

    def news(self, entries: Sequence[Entry]) -> list[Line]:
        """Return the lines about the entries since the last call; ``entries`` are all of the phase, oldest first."""
        if entries and not self._described:
            self._begun = entries[0].at
        new = entries[self._described :]
        self._described = len(entries)
        return [line for entry in new if (line := self._describe(entry))]

    def _describe(self, entry: Entry) -> Line | None:
        self._seen[entry.what, entry.payment] += 1
        text, style = _sentence(entry, self._seen[entry.what, entry.payment])
        return Line(entry.at - self._begun, f"{entry.payment}: {text}", style) if text else None


def _sentence(entry: Entry, count: int) -> tuple[str, str]:
    """Return the text about an entry and its style; ``count`` is how many of its kind the payment has so far."""
    always = {
        What.CHILD_KILLED: (f"pool child {entry.pid} killed while it charges", "yellow"),
        What.WORKER_KILLED: (f"worker {entry.pid} killed with its whole pool while it charges", "yellow"),
        What.REPLAYED: ("done before; the stored result is returned", "green"),
    }
    at_first = {What.DEFERRED: ("another delivery is at it; this one is put off until that is done", "magenta")}
    repeated = {
        What.PUBLISHED: ("published a second time", ""),
        What.STARTED: (f"the body runs again, run {count}", "yellow"),
        What.CHARGED: (f"CHARGED AGAIN, {entry.cents / 100:.2f}, charge {count}", "bold red"),
    }
    return always.get(entry.what) or (at_first if count == 1 else repeated).get(entry.what) or ("", "")


class Screen:
    """A live display, or plain lines if there is no terminal."""

    def __init__(self, console: Console, *, live: bool) -> None:
        self._console = console
        self._live = live
        #: The ledger of each phase by its title, the current one last.
        self._ledgers: dict[str, Ledger] = {}

    def say(self, text: str) -> None:
        """Print plain text."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def phase(self, title: str, explanation: str) -> Iterator[Watcher]:
        """Show one phase; call the yielded function with its ledger again and again."""
        self._console.rule(f"[bold]{title}", align="left")
        self.say(explanation)
        plain = nullcontext(partial(self._print_new, title, Narrator()))
        with self._live_phase(title) if self._live else plain as watch:
            yield watch

    @contextmanager
    def _live_phase(self, title: str) -> Iterator[Watcher]:
        progress = Progress(TextColumn("payments charged"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = progress.add_task(title, total=None)
        lines: deque[Line] = deque(maxlen=_LAST_LINES)
        narrator = Narrator()
        with Live(console=self._console, refresh_per_second=8) as live:

            def watch(ledger: Ledger) -> None:
                self._ledgers[title] = ledger
                lines.extend(narrator.news(ledger.entries))
                progress.update(bar, total=len(ledger.payments), completed=ledger.charged)
                live.update(Group(progress, _table(self._figures(), _MIDDLE), _last(lines)))

            yield watch

    def _print_new(self, title: str, narrator: Narrator, ledger: Ledger) -> None:
        self._ledgers[title] = ledger
        for line in narrator.news(ledger.entries):
            self.say(str(line))

    def end(self, *, kept: bool) -> None:
        """Print the phases side by side and the verdict."""
        figures = self._figures()
        self._console.rule("[bold]Side by side", align="left")
        self._console.print(_table(figures, _MIDDLE, _END))
        verdict = Text("The promise held: " if kept else "The promise BROKE: ", "bold green" if kept else "bold red")
        self._console.print(verdict.append(_summary(list(figures.values())[-1]), "default"))
        self._console.print(_LIMIT, style="dim", highlight=False)

    def _figures(self) -> dict[str, Figures]:
        return {title: ledger.figures() for title, ledger in self._ledgers.items()}


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
