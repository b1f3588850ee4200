"""A program on a pseudo terminal, and a model of the screen that it draws on."""

import re
import sys
import time

import pexpect
import pyte

ROWS, COLUMNS = 30, 100


class Terminal:
    """A program on a pseudo terminal; `screen` is what it has drawn."""

    def __init__(self, arguments, environment, folder, reports=False, rows=ROWS, columns=COLUMNS):
        """With `reports` it tells programs where the cursor is, as terminals do; prompt-toolkit's toolbar needs it."""
        self._reports = reports
        self._drawn = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._drawn)
        self._started = time.monotonic()
        self.process = pexpect.spawn(
            sys.executable,
            arguments,
            env={**environment, "TERM": "xterm-256color", **({} if reports else {"PROMPT_TOOLKIT_NO_CPR": "1"})},
            cwd=str(folder),
            dimensions=(rows, columns),
        )

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._drawn.display).rstrip()

    def svg(self, title: str) -> str:
        """The screen as a picture."""
        import io

        from rich.console import Console
        from rich.text import Text

        console = Console(record=True, file=io.StringIO(), width=self._drawn.columns, force_terminal=True)
        rows = [[row[column] for column in range(self._drawn.columns)] for row in self._rows()]
        for row in rows:
            line = Text()
            for one in row:
                line.append(one.data, _style(one))
            console.print(line, no_wrap=True, overflow="crop")
        return console.export_svg(title=title)

    def _rows(self):
        used = len(self.screen.splitlines())
        return [self._drawn.buffer[row] for row in range(used)]

    def wait(self, pattern: str, seconds: float = 20.0) -> float:
        """Read until the screen shows the pattern; the seconds since the start."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.screen, re.MULTILINE):
            if time.monotonic() > end:
                raise AssertionError(f"no {pattern!r} on the screen:\n{self.screen}")
            try:
                said = self.process.read_nonblocking(65536, timeout=0.02)
                self._stream.feed(said)
                if self._reports and b"\x1b[6n" in said:
                    self.type(f"\x1b[{self._drawn.cursor.y + 1};{self._drawn.cursor.x + 1}R")
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                raise AssertionError(f"ended before {pattern!r}:\n{self.screen}") from None
        return time.monotonic() - self._started

    def type(self, text: str) -> None:
        self.process.send(text)

    def status(self) -> int | None:
        """The exit status of a program that is about to end."""
        self.process.expect(pexpect.EOF, timeout=20)
        self.process.close()
        return self.process.exitstatus


def _style(character) -> str:
    """A character's colours and weight, as rich has them."""
    parts = [name for name in ("bold", "italics", "reverse") if getattr(character, name)]
    for colour, place in ((character.fg, ""), (character.bg, "on ")):
        if colour != "default":
            known = {"brown": "yellow"}.get(colour, colour).replace("bright", "bright_")
            parts.append(place + (f"#{colour}" if re.fullmatch("[0-9a-f]{6}", colour) else known))
    return " ".join(parts).replace("italics", "italic")
