"""How work that takes long is shown: a live bar on a terminal, a line now and then elsewhere, by the same words.

Colours are left out where ``NO_COLOR`` is set, as rich does it; a notebook, a pipe and a log get the lines.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

LINE_EVERY_S = 15.0


class Pace:
    """Time left, by the pace since the first step that was seen, so that a start-up does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left_s(self, done: int, total: int) -> float | None:
        """Seconds until all is done; none as long as there is no pace."""
        now = time.monotonic()
        if self._first is None and done > 0:
            self._first = (now, done)
        if self._first is None or done <= self._first[1]:
            return None
        began, first = self._first
        return (now - began) / (done - first) * (total - done)


class _TimeLeft(ProgressColumn):
    """Of the field ``left_s``; nothing where a task does not have it."""

    def render(self, task: Task) -> Text:
        if "left_s" not in task.fields:
            return Text("")
        return Text(in_words(task.fields["left_s"]) or "-:--:-- left")


def in_words(left_s: float | None) -> str:
    """``0:02:10 left``; empty where nobody knows."""
    return "" if left_s is None else f"{timedelta(seconds=int(left_s))} left"


def live_bar(console: Console) -> Progress:
    """The bar of a terminal: how far, in words, time since the start, and time left."""
    columns = (BarColumn(20), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), _TimeLeft())
    return Progress(*columns, console=console, transient=True)


class ShowsCount(Protocol):
    """Told how many of how many are done."""

    def __call__(self, done: int, total: int) -> None: ...


@contextmanager
def counted(title: str, console: Console) -> Iterator[ShowsCount]:
    """Shows work that is counted while the block runs; yields the function that is told the count."""
    pace = Pace()
    if not console.is_terminal:
        yield _Lines(title, console, pace)
        return
    with live_bar(console) as bar:
        task = bar.add_task(title, total=None, left_s=None)

        def show(done: int, total: int) -> None:
            text = _said(title, done, total)
            bar.update(task, completed=done, total=total, description=text, left_s=pace.left_s(done, total))

        yield show


class _Lines:
    """A line now and then; none of what is soon done."""

    def __init__(self, title: str, console: Console, pace: Pace) -> None:
        self._title, self._console, self._pace = title, console, pace
        self._shown_at_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        left_s = self._pace.left_s(done, total)
        if time.monotonic() - self._shown_at_s < LINE_EVERY_S:
            return
        self._shown_at_s = time.monotonic()
        line = ", ".join(filter(None, (_said(self._title, done, total), in_words(left_s))))
        self._console.print(line, markup=False, highlight=False)


def _said(title: str, done: int, total: int) -> str:
    return f"{title}, {done / total:.0%}" if total else title
