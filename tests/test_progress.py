"""Work that is counted, shown: on a terminal, without one, and without colours."""

import io

import pytest
from rich.console import Console

from dira_dist import progress
from dira_dist.progress import Pace, counted, in_words


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_time_left_is_by_the_pace_since_the_first_step(clock: Clock) -> None:
    pace = Pace()
    assert pace.left_s(0, 10) is None
    clock.now_s = 100
    assert pace.left_s(2, 10) is None
    clock.now_s = 104
    assert pace.left_s(4, 10) == pytest.approx(12)
    assert in_words(12.4) == "0:00:12 left"


def shown(clock: Clock, console: Console) -> str:
    with counted("sharding", console) as show:
        for done in range(5):
            clock.now_s = 10.0 * done
            show(done, 4)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then(clock: Clock) -> None:
    assert shown(clock, Console(file=io.StringIO())) == "sharding, 50%, 0:00:20 left\nsharding, 100%, 0:00:00 left\n"


def test_on_a_terminal_there_is_a_bar_that_is_gone_at_the_end(clock: Clock) -> None:
    text = shown(clock, Console(file=io.StringIO(), force_terminal=True, width=80))
    assert "sharding, 100%" in text and "left" in text
    assert text.rstrip().endswith("\x1b[2K")


def test_no_color_is_obeyed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = "\x1b[3"
    plain = {"force_terminal": True, "width": 80, "color_system": "standard"}
    assert coloured in shown(clock, Console(file=io.StringIO(), **plain))  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured not in shown(clock, Console(file=io.StringIO(), **plain))  # type: ignore[arg-type]
