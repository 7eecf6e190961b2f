"""Standard error and standard output of the command line: progress, notes, errors and tables.

On a terminal with rich, in colour where NO_COLOR does not forbid it; elsewhere plain lines, one every three seconds at least.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.packages import problem

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

#: Seconds between preview pictures, and between progress lines where standard error is not a terminal.
PREVIEW_SECONDS, LINE_SECONDS = 10.0, 2.0
#: Seconds of silence after which a bar moves on a terminal, and a line elsewhere says that work goes on.
BAR_SECONDS, BEAT_SECONDS = 1.5, 2.5
#: Seconds within which a second Ctrl-C is part of the first.
SAME_SECONDS = 1.0
#: Seconds that reading a file may take without a line.
READ_SECONDS = 2.0


class Console:
    """Standard error: a bar on a terminal, a plain line now and then elsewhere. Results go to standard output."""

    def __init__(self) -> None:
        self.screen: Any = None
        if sys.stderr.isatty() and not problem("rich.console"):
            from rich.console import Console as Screen

            screen = Screen(stderr=True, highlight=False)
            self.screen = None if screen.is_dumb_terminal else screen
        self.live: Progress | None = None
        self.stage, self.began, self.first, self.spoken = "", 0.0, 0, 0.0
        self.fitting = self.stopping = self.interrupted = self.said = False
        self.notes: list[str] = []
        self.asked = 0.0
        self.lock, self.doing, self.wrote = threading.RLock(), "reading", time.monotonic()

    def note(self, text: str) -> None:
        """A line that waits until work begins: bad input is answered by its error alone."""
        self.notes.append(text)

    def line(self, text: str) -> None:
        """A line that stays."""
        with self.lock:
            self._write_notes()
            self._write(text)

    def result(self, text: object) -> None:
        """What a command is run for, on standard output."""
        with self.lock:
            self._halt()
            print(text, flush=True)

    def table(self, text: str) -> None:
        """An aligned or a Markdown table on standard output, drawn with rules where that is a terminal."""
        if not sys.stdout.isatty() or problem("rich.table"):
            return self.result(text)
        from rich.console import Console as Screen
        from rich.table import Table

        rows = [
            re.split(r"\s*\|\s*" if "|" in line else r"\s{2,}", line.strip().strip("|").strip()) for line in text.splitlines()
        ]
        header, *rows = [row for row in rows if re.search(r"\w", "".join(row))]
        made = Table()
        for number, name in enumerate(header):
            made.add_column(name, justify="right" if number else "left")
        for row in rows:
            made.add_row(*row)
        with self.lock:
            self._halt()
            Screen(highlight=False, markup=False).print(made)

    def step(self, stage: str, step: int, steps: int, note: str = "") -> None:
        """Progress of a stage, with the time left."""
        if self.interrupted:  # and a library has swallowed it
            raise KeyboardInterrupt
        with self.lock:
            now = time.monotonic()
            self._write_notes()
            if stage != self.stage:
                self._halt()
                self.stage, self.began, self.first, self.spoken = stage, now, step, now
            done, last = step - self.first, step >= steps
            text = f"{stage}  {step}/{steps}{note}"
            if last:
                self._halt()
                self._write(text)
                self.stage, self.doing = "", "writing"
            elif self.screen is not None:
                self._draw(stage, step, steps, note)
            elif now - self.spoken >= LINE_SECONDS:
                left = f"  {_clock((now - self.began) / done * (steps - step))} left" if done > 0 else ""
                self._write(text + left)
                self.spoken, self.doing = now, text

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Says that work goes on where nothing else does: what it is about and for how long."""
        ended = threading.Event()

        def beat() -> None:
            beaten, quiet = 0.0, BEAT_SECONDS if self.screen is None else BAR_SECONDS
            while not ended.wait(quiet / 5):
                with self.lock:
                    now = time.monotonic()
                    if self.live is not None or now - max(beaten, self.wrote) < quiet:
                        continue
                    if self.screen is not None:
                        self._draw(self.doing, 0, None, "")
                    elif self.said or self.notes:  # before, bad input is answered by its error alone
                        print(f"{self.doing}  ({_clock(now - self.wrote)})", file=sys.stderr, flush=True)
                        beaten = now

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._halt()

    def _write(self, text: str) -> None:
        if self.screen is None:
            print(text, file=sys.stderr, flush=True)
        else:
            from rich.text import Text

            shown = Text(text)
            shown.highlight_regex(r"^error:", "bold red")
            shown.highlight_regex(r"^warning:", "bold yellow")
            self.screen.print(shown, soft_wrap=True)
        self.said, self.wrote = True, time.monotonic()

    def _write_notes(self) -> None:
        notes, self.notes = self.notes, []
        for note in notes:
            self._write(note)

    def _draw(self, stage: str, step: int, steps: int | None, note: str) -> None:
        """The bar; without a number of steps one that only moves."""
        if self.live is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = ["{task.description}", BarColumn(24), "{task.fields[count]}{task.fields[note]}"]
            made = [TextColumn(text, markup=False) if isinstance(text, str) else text for text in columns]
            made += [TimeElapsedColumn()] if steps is None else [TimeRemainingColumn(compact=True), TextColumn("left")]
            # What is written to standard output is no part of the bar.
            self.live = Progress(*made, console=self.screen, transient=True, redirect_stdout=False, redirect_stderr=False)
            self.live.add_task(stage, total=steps, completed=step, count="", note="")
        self.live.update(self.live.task_ids[0], completed=step, count="" if steps is None else f"{step}/{steps}", note=note)
        self.live.start()

    def _halt(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def counting(self, stage: str) -> Callable[[int, int], None]:
        """Progress of something without losses."""
        return lambda step, steps: self.step(stage, step, steps)

    def reading(self, path: Path) -> Callable[[int, int], None]:
        """Progress of reading a file, once that takes long: bad input is answered by its error alone."""
        began, stage = 0.0, f"read {path.name}, %"

        def progress(done: int, of: int) -> None:
            nonlocal began
            began = began or time.monotonic()
            if time.monotonic() - began > READ_SECONDS:
                if self.stage != stage:
                    self.line(f"reading {path}")
                self.step(stage, done, of)

        return progress

    def watch(self, out: Path, label: str = "") -> Callable[..., None]:
        """Progress of a fit: a line with the loss, ``preview.png`` in ``out`` now and then, and interruption between steps."""
        drawn = time.monotonic()

        def progress(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], Tensor]) -> None:
            nonlocal drawn
            loss = sum(losses.values())
            self.step(label + stage, step, steps, f"  loss {loss:.4g}" if losses else "")
            self.fitting = bool(losses) and step < steps
            if time.monotonic() - drawn > PREVIEW_SECONDS:
                from .core.io import write_png

                write_png(out / "preview.png", preview())
                drawn = time.monotonic()
            if self.stopping:
                raise KeyboardInterrupt

        return progress

    def check(self) -> None:
        """Ends a step that goes on for long after the Ctrl-C that it ought to end with: what was sound before it is kept."""
        if self.stopping and time.monotonic() - self.asked > SAME_SECONDS:
            raise KeyboardInterrupt

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end a fit between two steps, so that its checkpoint is exact; elsewhere, and again, at once."""

        raised = 0.0

        def stop(number: int, frame: Any) -> None:
            nonlocal raised
            if self.fitting and not self.stopping:
                self.stopping, self.asked = True, time.monotonic()
                with suppress(RuntimeError):  # in the midst of another line
                    self.line("stopping after this step")
            elif not self.interrupted or time.monotonic() - raised > SAME_SECONDS:
                self.interrupted, raised = True, time.monotonic()
                raise KeyboardInterrupt

        try:
            before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
        except ValueError:  # not the main thread: whoever runs us handles signals
            before = []
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


class ConsoleLog(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.INFO:
            self.console.note(record.getMessage())
        else:
            self.console.line(f"{record.levelname.lower()}: {record.getMessage()}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
