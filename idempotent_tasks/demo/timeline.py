"""The phases as an SVG timeline: a row for each payment, a bar for each run, a mark for each event."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from xml.etree import ElementTree as ET

from idempotent_tasks.demo.journal import What
from idempotent_tasks.demo.ledger import History, Ledger, Run

__all__ = ["Panel", "picture"]

_FONT = "-apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
#: Half the width of a mark.
_MARK = 3.6
_WIDTH, _MARGIN, _GAP = 1000.0, 14.0, 26.0
_NAMES, _TALLY = 50.0, 30.0
_TOP, _ROW, _FOOT = 60.0, 13.0, 62.0
_BAR = 9.0
_TICK_SECONDS = 5

_INK, _FAINT, _GRID, _ZEBRA = "#1f2328", "#59636e", "#d1d9e0", "#f6f8fa"
_CHARGED, _CHARGED_AGAIN, _KILLED = "#4493e0", "#cf222e", "#d4a72c"
_KILLED_INK = "#7d4e00"
_DEFERRED, _REPLAYED, _KEPT = "#8250df", "#1a7f37", "#1a7f37"


class _Canvas:
    """An SVG document of a few shapes; lengths are in user units, the origin is the top left corner."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._svg = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width:g} {height:g}",
                "font-family": _FONT,
                "role": "img",
            },
        )
        ET.SubElement(self._svg, "title").text = title
        self.box(0, 0, width, height, "#ffffff", radius=6)

    def __str__(self) -> str:
        ET.indent(self._svg)
        return ET.tostring(self._svg, encoding="unicode") + "\n"

    def box(self, x: float, y: float, width: float, height: float, fill: str, *, radius: float = 0) -> None:
        """Fill a rectangle."""
        self._add("rect", fill=fill, x=x, y=y, width=width, height=height, rx=radius)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, *, width: float = 1) -> None:
        """Draw a straight line."""
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, **{"stroke-width": width})

    def text(
        self, x: float, y: float, text: str, fill: str, *, size: float, bold: bool = False, anchor: str = "start"
    ) -> None:
        """Write one line of text; ``y`` is its baseline."""
        weight = "600" if bold else "400"
        style: dict[str, float | str] = {"font-size": size, "font-weight": weight, "text-anchor": anchor}
        self._add("text", x=x, y=y, fill=fill, **style).text = text

    def ring(self, x: float, y: float, stroke: str) -> None:
        """Draw a small empty circle."""
        self._add("circle", cx=x, cy=y, r=_MARK - 0.8, fill="#ffffff", stroke=stroke, **{"stroke-width": 1.5})

    def diamond(self, x: float, y: float, fill: str) -> None:
        """Draw a small filled diamond with a white edge."""
        points = f"{x:.1f},{y - _MARK:.1f} {x + _MARK:.1f},{y:.1f} {x:.1f},{y + _MARK:.1f} {x - _MARK:.1f},{y:.1f}"
        self._add("polygon", points=points, fill=fill, stroke="#ffffff", **{"stroke-width": 0.6})

    def cross(self, x: float, y: float, stroke: str) -> None:
        """Draw a small bold X."""
        arm = _MARK - 0.4
        for slope in (arm, -arm):
            self.line(x - arm, y - slope, x + arm, y + slope, stroke, width=2)

    def _add(self, tag: str, **attributes: float | str) -> ET.Element:
        written = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()}
        return ET.SubElement(self._svg, tag, written)


@dataclass(frozen=True, slots=True)
class Panel:
    """One phase and its title."""

    title: str
    ledger: Ledger

    @property
    def begun(self) -> float:
        """When the first message was published, in epoch seconds."""
        return min(at for history in self.ledger.histories.values() for at in history.published)

    @property
    def seconds(self) -> float:
        """Seconds from `begun` to the last entry of the journal."""
        return self.ledger.entries[-1].at - self.begun


def picture(panels: Sequence[Panel]) -> str:
    """Return an SVG document with the panels side by side, on one time scale."""
    names = [payment.name for payment in panels[0].ledger.payments]
    bottom = _TOP + len(names) * _ROW
    seconds = _TICK_SECONDS * max(1, ceil(max(panel.seconds for panel in panels) / _TICK_SECONDS))
    canvas = _Canvas(_WIDTH, bottom + _FOOT, "What became of each payment: " + ", ".join(each.title for each in panels))
    for row, name in enumerate(names):
        if row % 2 == 0:
            canvas.box(_MARGIN, _TOP + row * _ROW, _WIDTH - 2 * _MARGIN, _ROW, _ZEBRA)
        canvas.text(_MARGIN + 4, _TOP + row * _ROW + 10, name, _FAINT, size=10)
    width = (_WIDTH - 2 * _MARGIN - _NAMES - _GAP * (len(panels) - 1)) / len(panels)
    for index, panel in enumerate(panels):
        left = _MARGIN + _NAMES + index * (width + _GAP)
        _Drawing(canvas, panel, left, left + width, seconds).draw()
    _legend(canvas, bottom + _FOOT - 16)
    return str(canvas)


class _Drawing:
    """Draws one panel onto the canvas."""

    def __init__(self, canvas: _Canvas, panel: Panel, left: float, right: float, seconds: int) -> None:
        self._canvas = canvas
        self._panel = panel
        self._left = left
        self._right = right
        self._seconds = seconds

    def draw(self) -> None:
        """Draw title, grid and rows."""
        self._title()
        self._grid(_TOP + len(self._panel.ledger.payments) * _ROW)
        for row, payment in enumerate(self._panel.ledger.payments):
            self._row(_TOP + row * _ROW, self._panel.ledger.histories[payment.name])

    def _x(self, at: float) -> float:
        share = (at - self._panel.begun) / self._seconds
        return self._left + share * (self._right - _TALLY - self._left)

    def _title(self) -> None:
        figures = self._panel.ledger.figures()
        verdict = f"{figures.charges} charges for {figures.wanted} payments"
        details = f"{verdict}, {figures.charged_twice} charged twice, {figures.lost} lost"
        color = _KEPT if figures.promise_kept else _CHARGED_AGAIN
        self._canvas.text(self._left, 24, self._panel.title, _INK, size=16, bold=True)
        self._canvas.text(self._left, 42, details, color, size=12, bold=True)
        self._canvas.text(self._right, _TOP - 5, "charges", _FAINT, size=9, anchor="end")

    def _grid(self, bottom: float) -> None:
        for second in range(0, self._seconds + 1, _TICK_SECONDS):
            x = self._x(self._panel.begun + second)
            self._canvas.line(x, _TOP, x, bottom, _GRID, width=0.7)
            self._canvas.text(x, bottom + 13, f"{second} s", _FAINT, size=10, anchor="middle")
        for entry in self._panel.ledger.entries:
            if entry.what is What.WORKER_KILLED:
                self._canvas.line(self._x(entry.at), _TOP, self._x(entry.at), bottom, _KILLED, width=1.2)
                self._canvas.text(self._x(entry.at), _TOP - 5, "worker killed", _KILLED_INK, size=9, anchor="middle")

    def _row(self, top: float, history: History) -> None:
        first_charge = min((run.charged for run in history.runs if run.charged), default=None)
        for run, lane, lanes in _lanes(history.runs):
            height = _BAR / lanes
            self._run(run, top + 2 + lane * height, height - (lanes > 1) * 0.6, first_charge)
        for marks, draw in self._marks(history):
            for at in marks:
                draw(self._x(at), top + _ROW / 2)
        once = history.charges == 1
        color = _FAINT if once else _CHARGED_AGAIN
        self._canvas.text(self._right - 8, top + 10, str(history.charges), color, size=10, bold=not once, anchor="end")

    def _run(self, run: Run, top: float, height: float, first_charge: float | None) -> None:
        left, right = self._x(run.started), self._x(run.ended or run.started)
        color = _CHARGED if run.charged in (None, first_charge) else _CHARGED_AGAIN
        self._canvas.box(left, top, max(right - left, 1.5), height, _KILLED if run.killed else color, radius=1.5)
        if run.killed:
            self._canvas.cross(right, top + height / 2, _INK)

    def _marks(self, history: History) -> list[tuple[list[float], Callable[[float, float], None]]]:
        canvas = self._canvas
        return [
            (history.published, lambda x, y: _tick(canvas, x, y)),
            (history.deferred, lambda x, y: canvas.ring(x, y, _DEFERRED)),
            (history.replayed, lambda x, y: canvas.diamond(x, y, _REPLAYED)),
        ]


def _tick(canvas: _Canvas, x: float, y: float) -> None:
    canvas.line(x, y - _ROW / 2 + 1, x, y + _ROW / 2 - 1, _INK, width=1.3)


def _lanes(runs: Sequence[Run]) -> Iterator[tuple[Run, int, int]]:
    """Yield each run, its lane, and the number of lanes of its row; runs that overlap have different lanes."""
    ends: list[float] = []
    lanes: list[int] = []
    for run in runs:
        lane = next((index for index, end in enumerate(ends) if end <= run.started), len(ends))
        ends[lane : lane + 1] = [run.ended or run.started]
        lanes.append(lane)
    for run, lane in zip(runs, lanes, strict=True):
        yield run, lane, len(ends)


def _legend(canvas: _Canvas, y: float) -> None:
    entries: list[tuple[str, Callable[[float], None]]] = [
        ("published", lambda x: _tick(canvas, x + 6, y)),
        ("run that charged", lambda x: canvas.box(x, y - 4, 13, 8, _CHARGED, radius=1.5)),
        ("run that charged again", lambda x: canvas.box(x, y - 4, 13, 8, _CHARGED_AGAIN, radius=1.5)),
        ("run that was killed", lambda x: _killed_sample(canvas, x, y)),
        ("put off: another delivery is at it", lambda x: canvas.ring(x + 7, y, _DEFERRED)),
        ("stored result returned", lambda x: canvas.diamond(x + 7, y, _REPLAYED)),
    ]
    x = _MARGIN + 4
    for label, draw in entries:
        draw(x)
        canvas.text(x + 18, y + 4, label, _INK, size=11)
        x += 18 + len(label) * 5.6 + 18


def _killed_sample(canvas: _Canvas, x: float, y: float) -> None:
    canvas.box(x, y - 4, 10, 8, _KILLED, radius=1.5)
    canvas.cross(x + 10, y, _INK)
