"""A canvas of the few shapes that the timeline is made of, written as SVG."""

from xml.etree import ElementTree as ET

__all__ = ["Canvas"]

_FONT = "-apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', Helvetica, Arial, sans-serif"
#: Half the size of a mark.
_MARK = 3.6


class Canvas:
    """A white picture; lengths are in user units, the origin is the top left corner."""

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
        """Draw a small circle, empty."""
        self._add("circle", cx=x, cy=y, r=_MARK - 0.8, fill="#ffffff", stroke=stroke, **{"stroke-width": 1.5})

    def diamond(self, x: float, y: float, fill: str) -> None:
        """Draw a small diamond, full, with a white edge."""
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
