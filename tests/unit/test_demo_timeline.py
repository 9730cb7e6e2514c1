"""The demo's timeline: well-formed SVG, a row for each payment, a shape for each event."""

from xml.etree import ElementTree as ET

from idempotent_tasks.demo.journal import Entry, What
from idempotent_tasks.demo.ledger import Ledger
from idempotent_tasks.demo.plan import draw
from idempotent_tasks.demo.timeline import Panel, picture

SVG = "{http://www.w3.org/2000/svg}"


def ledger_of(*happened: tuple[float, What, int], count: int = 8) -> Ledger:
    """Return a ledger of published payments, the first of them with these events, as seconds, kind and process."""
    payments = draw(count, 1)
    ledger = Ledger(payments)
    for payment in payments:
        ledger.add(Entry(at=100.0, what=What.PUBLISHED, payment=payment.name))
    for seconds, what, pid in happened:
        ledger.add(Entry(at=100.0 + seconds, what=what, payment=payments[0].name, pid=pid))
    return ledger


def shapes(svg: str, tag: str) -> list[ET.Element]:
    """Return the elements with this tag."""
    return list(ET.fromstring(svg).iter(SVG + tag))


def texts(svg: str) -> list[str]:
    """Return the texts of the picture."""
    return [element.text or "" for element in shapes(svg, "text")]


def test_each_payment_has_a_row_in_each_panel() -> None:
    """Names appear once, charges once a panel, titles and sums above."""
    charged = ledger_of((1, What.STARTED, 1), (2, What.CHARGED, 1), (2, What.FINISHED, 1))
    written = texts(picture([Panel("plain <task>", ledger_of()), Panel("ours", charged)]))
    assert [text for text in written if text.startswith("pay-")] == [f"pay-{number:02d}" for number in range(1, 9)]
    assert written.count("0") == 8 + 7
    assert written.count("1") == 1
    assert "plain <task>" in written
    assert "1 charges for 8 payments, 0 charged twice, 7 lost" in written


def test_replay_and_deferral_are_marked() -> None:
    """The picture has one ring and one diamond more than without them."""
    without = picture([Panel("ours", ledger_of())])
    marked = picture([Panel("ours", ledger_of((1, What.DEFERRED, 1), (2, What.REPLAYED, 1)))])
    for tag in ("circle", "polygon"):
        assert len(shapes(marked, tag)) == len(shapes(without, tag)) + 1


def test_killed_worker_is_written_above_its_line() -> None:
    """The moment of the kill has a label."""
    killed = ledger_of((1, What.STARTED, 1), (2, What.WORKER_KILLED, 1))
    assert "worker killed" in texts(picture([Panel("ours", killed)]))
    assert "worker killed" not in texts(picture([Panel("ours", ledger_of())]))


def test_runs_at_the_same_time_do_not_cover_each_other() -> None:
    """Two overlapping runs have two lanes, and two colours as the second charged again."""
    both = ledger_of(
        *((1, What.STARTED, 1), (2, What.STARTED, 2)),
        *((3, What.CHARGED, 1), (3, What.FINISHED, 1), (4, What.CHARGED, 2), (4, What.FINISHED, 2)),
    )
    before = {ET.tostring(shape) for shape in shapes(picture([Panel("plain", ledger_of((4, What.READY, 0)))]), "rect")}
    first, second = [
        shape for shape in shapes(picture([Panel("plain", both)]), "rect") if ET.tostring(shape) not in before
    ]
    assert float(first.attrib["y"]) + float(first.attrib["height"]) <= float(second.attrib["y"])
    assert first.attrib["fill"] != second.attrib["fill"]


def test_scale_reaches_the_end_of_the_longer_phase() -> None:
    """The axis of both panels ends at the next five seconds."""
    written = texts(
        picture([Panel("plain", ledger_of((3, What.READY, 0))), Panel("ours", ledger_of((12, What.READY, 0)))])
    )
    assert written.count("15 s") == 2
    assert "20 s" not in written
