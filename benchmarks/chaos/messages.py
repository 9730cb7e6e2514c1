"""What became of each message of one contender: its results, and where it was last seen. Pure."""

from typing import Final

from benchmarks.chaos.history import Event, History, What

__all__ = ["SUCCESS", "Messages"]

SUCCESS: Final = "SUCCESS"
#: The delivery ended because Celery published the message again.
RETRY: Final = "RETRY"
_UNFINISHED: Final = ("PENDING", "STARTED", RETRY)
_SIGNS: Final = (What.PUBLISHED, What.RECEIVED, What.STARTED, What.DEFERRED, What.OVER)


class Messages:
    """The messages of a history."""

    def __init__(self, history: History) -> None:
        #: The publications of each key, those included that the contender dropped.
        self.publications: dict[str, list[Event]] = {}
        self._results: dict[str, list[Event]] = {}
        #: The signs of life of each message, oldest first.
        self._signs: dict[str, list[Event]] = {}
        self._runs = {run.started.run: run for run in history.all_runs()}
        self._deaths = [each for each in history.of(What.KILLED) if not each.pid] + list(history.of(What.EXITED))
        self._broker_is_empty = any(history.of(What.EMPTY))
        for event in history.events:
            if event.what in (What.PUBLISHED, What.DROPPED):
                self.publications.setdefault(event.key, []).append(event)
            if event.what in _SIGNS and event.task_id:
                self._signs.setdefault(event.task_id, []).append(event)
            elif event.what is What.RESULT:
                self._results.setdefault(event.task_id, []).append(event)

    def answers(self, publication: Event) -> list[Event]:
        """Return the successful results that its publisher could see."""
        return [event for event in self._results.get(publication.task_id, ()) if event.state == SUCCESS]

    def vanished(self, publication: Event) -> bool:
        """Return whether the message is nowhere, although nobody acknowledged its last copy.

        It has no result, the broker is empty, and it was last seen with the broker, or in a process that was killed;
        and a whole worker was killed after that.
        """
        finished = [each for each in self._results.get(publication.task_id, ()) if each.state not in _UNFINISHED]
        signs = self._signs.get(publication.task_id)
        if finished or not signs or not self._broker_is_empty:
            return False
        last = signs[-1]
        deaths = [death for death in self._deaths if death.at >= last.at]
        match last.what:
            case What.RECEIVED:
                return any(death.worker == last.worker for death in deaths)
            case What.STARTED:
                return self._runs[last.run].killed is not None and bool(deaths)
            case What.OVER:
                again = last.state == RETRY or any(each.what is What.DEFERRED for each in signs[-2:])
                return again and bool(deaths)
            case _:
                return bool(deaths)

    def end_of(self, publication: Event) -> str:
        """Say how the message ended, for people."""
        if publication.what is What.DROPPED:
            return "was not published"
        results = self._results.get(publication.task_id)
        last = self._signs[publication.task_id][-1]
        state = f" {last.state}" if last.state else ""
        where = f"last seen at line {last.line}, {last.at:.3f} s: {last.what}{state}"
        return f"ends in {results[-1].state if results else 'no state'}; {where}"
