"""`genmlx-shell`: an IPython shell that starts inside the language, and runs code, scripts and notebooks."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from IPython.core.completer import Completer, IPCompleter
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from IPython.terminal.ipapp import TerminalIPythonApp
from IPython.terminal.prompts import Prompts, RichPromptDisplayHook
from pygments.token import Token
from traitlets import Bool, Dict, Int, Type, Unicode, default

from . import __version__, banner
from .execute import CellCompiler, describe_error, remember_source, run_cell
from .percent import Cell, NotebookError, is_percent, parse_percent, read_notebook, read_source
from .typed import TypedCells

USAGE = """\
usage: genmlx-shell [options]                    a prompt with genmlx in scope
       genmlx-shell [options] -c CODE [ARG ...]  run code, display the last expression
       genmlx-shell [options] FILE [ARG ...]     run a script (.py), a notebook (.py with # %% cells,
                                                 .ipynb), or IPython code (.ipy)
       genmlx-shell [options] < FILE             run code from standard input (also: -)
       genmlx-shell --kernel [options]           a Jupyter kernel for editors, consoles and JupyterLab;
                                                 --kernel --help says more

options:
  -i              stay at the prompt after CODE or FILE
  --no-banner     no banner
  --profile NAME  the IPython profile; the profile's settings apply as in ipython
  --version       print the version
  -h, --help      this page; --help-all lists every IPython option

exit status: 0 fine, 1 an error was not caught, 2 unusable arguments, 130 interrupted;
sys.exit(n) keeps its n."""

# Figures become cell outputs in place of windows: https://github.com/ipython/matplotlib-inline
INLINE_FIGURES = "module://matplotlib_inline.backend_inline"


class GenPrompts(Prompts):
    """`gen[1]> `"""

    def in_prompt_tokens(self) -> list[Any]:
        mode, line_number, _, number, _ = super().in_prompt_tokens()
        return [mode, line_number, (Token.Prompt, "gen["), number, (Token.Prompt, "]> ")]


class GenDisplayHook(RichPromptDisplayHook):
    """Values of code that is not typed have no `Out[n]:` in front."""

    shell: GenShell

    def write_output_prompt(self) -> None:
        if self.shell.batch:
            self.prompt_end_newline = True
        else:
            super().write_output_prompt()


class GenShell(TypedCells, TerminalInteractiveShell):
    """IPython's terminal shell with our prompt, plus a batch mode for code that is not typed."""

    prompts_class = Type(GenPrompts).tag(config=True)
    displayhook_class = Type(GenDisplayHook)
    compiler_class = Type(CellCompiler)
    enable_tip = Bool(False).tag(config=True)
    confirm_exit = Bool(False).tag(config=True)
    cache_size = Int(50).tag(config=True)  # Out pins what it holds, posteriors too
    term_title_format = Unicode("genmlx: {cwd}").tag(config=True)
    batch = Bool(False)

    @default("banner1")
    def _banner1_default(self) -> str:
        return banner()

    def init_completer(self) -> None:
        super().init_completer()
        # The first Tab costs 80 ms with jedi and 1 ms without, for the same matches.
        if not any("use_jedi" in self.config[owner.__name__] for owner in (Completer, IPCompleter)):
            self.Completer.use_jedi = False

    def _extra_prompt_options(self) -> dict[str, Any]:
        options = super()._extra_prompt_options()
        if not self.simple_prompt:
            options["bottom_toolbar"] = self.toolbar
        return options

    def toolbar(self) -> list[tuple[str, str]]:
        """Device, memory, the models that were defined last, the last posterior; in red, what failed to load."""
        session = getattr(self, "_genmlx_session", None)
        if session is None:
            return []
        try:
            return [("", session.toolbar()), *(("fg:ansired bold", f"  {name}!") for name in session.pending())]
        except Exception as error:  # a toolbar that raises would take the prompt with it
            return [("", f" {type(error).__name__}: {error}")]

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        if not (self.batch and issubclass(self._get_exc_info(exc_tuple)[0], SystemExit)):
            super().showtraceback(exc_tuple, *args, **kwargs)

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        if self.batch:
            print(self.InteractiveTB.stb2text(stb), file=sys.stderr)
        else:
            super()._showtraceback(etype, evalue, stb)

    def run_cells(self, cells: list[Cell], path: str | None = None) -> BaseException | None:
        """Run code cells until one fails; the error, if any. With a path, the failing cell is named."""
        for cell in cells:
            if cell.kind != "code":
                continue
            result = run_cell(self, cell)
            error = result.error_before_exec or result.error_in_exec
            if error is not None:
                if path is not None and not isinstance(error, SystemExit):
                    print(describe_error(path, cell, error), file=sys.stderr)
                return error
        return None

    def run_script(self, source: str, filename: str) -> BaseException | None:
        """Run a Python script as `python FILE` does; the error, if any."""
        try:
            trap: Any = self.builtin_trap
            with trap:
                exec(compile(source, filename, "exec", dont_inherit=True), self.user_ns)
        except BaseException as error:
            inside = error.__traceback__ and error.__traceback__.tb_next
            self.showtraceback((type(error), error, inside), tb_offset=0)
            return error
        return None


class GenApp(TerminalIPythonApp):
    """The command line around `GenShell`. The user's IPython profile applies, and wins over our defaults."""

    name = Unicode("genmlx-shell")
    interactive_shell_class = Type(GenShell).tag(config=True)
    subcommands = Dict()
    extra_args: list[str]

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Options up to CODE or FILE are ours and IPython's; what follows belongs to the code that runs."""
        rest = list(sys.argv[1:] if argv is None else argv)
        options: list[str] = []
        code: str | None = None
        while code is None and rest and rest[0].startswith("-") and rest[0] != "-":
            option = rest.pop(0)
            if option == "--":
                break
            name, equals, _ = option.lstrip("-").partition("=")
            if option == "--kernel":
                self.refuse("--kernel comes first: genmlx-shell --kernel [options]")
            if option == "-c":
                if not rest:
                    self.refuse("-c needs code to run")
                code = rest.pop(0)
            elif "." in name or name in self.flags or name in ("help", "help-all", "h", "version", "V"):
                options.append(option)
            elif name in self.aliases and len(name) > 1 and (equals or rest):
                options.append(option if equals else f"{option}={rest.pop(0)}")
            else:
                self.refuse(f"unusable option {option}; genmlx-shell --help lists them")
        try:
            super().parse_command_line(options)
        except SystemExit as stop:
            sys.exit(2 if stop.code else 0)
        if code is not None:
            self.code_to_run = code or "pass"
            sys.argv = ["-c", *rest]
        elif rest:
            self.file_to_run = rest[0]
            sys.argv = rest
        elif not sys.stdin.isatty() and not self.force_interact:
            self.file_to_run = "-"
            sys.argv = ["-"]
        self.extra_args = []
        if self.file_to_run not in ("", "-") and not os.path.isfile(self.file_to_run):
            kind = "a directory, not a file" if os.path.isdir(self.file_to_run) else "no such file"
            self.refuse(f"{kind}: {self.file_to_run}")

    def refuse(self, message: str) -> NoReturn:
        print(f"genmlx-shell: {message}", file=sys.stderr)
        sys.exit(2)

    def print_help(self, classes: bool = False) -> None:
        if classes:
            super().print_help(classes)
        else:
            print(USAGE)

    def print_version(self) -> None:
        print(f"genmlx {__version__}")

    def init_shell(self) -> None:
        from .memory import limit_cache

        limit_cache()
        terminal = sys.stdout.isatty() and sys.stderr.isatty()
        plain = not terminal or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        if not self.interact:
            self.config.HistoryManager.enabled = False
            self.config.TerminalInteractiveShell.simple_prompt = True
            self.config.TerminalInteractiveShell.term_title = False
        if plain:
            self.config.InteractiveShell.colors = "nocolor"
        if not sys.stdout.isatty():
            self.config.TerminalInteractiveShell.editing_mode = "emacs"  # leaving vi mode writes an escape sequence
        if not terminal or self.something_to_run:
            os.environ.setdefault("MPLBACKEND", INLINE_FIGURES)
        super().init_shell()
        shell: Any = self.shell
        if not sys.stdout.isatty():
            shell.mime_renderers = {}
            shell.display_formatter.active_types = ["text/plain"]
        if not self.interact:
            shell.user_ns["exit"] = shell.user_ns["quit"] = sys.exit
            warnings.filterwarnings("ignore", message="To exit: use 'exit'")

    def init_extensions(self) -> None:
        super().init_extensions()
        self.shell.extension_manager.load_extension("magics")

    def start(self) -> None:
        # What IPython imports lives on: without this a collection of it (12 ms) falls in front of the first prompt.
        gc.freeze()
        super().start()

    def _run_cmd_line_code(self) -> None:
        if not self.something_to_run:
            return
        shell: Any = self.shell
        shell.batch = True
        error = self.run_code_or_file()
        shell.batch = not self.interact
        if error is None or self.interact:
            return
        if isinstance(error, SystemExit):
            sys.exit(error.code)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)

    def run_code_or_file(self) -> BaseException | None:
        shell: Any = self.shell
        if self.code_to_run:
            return self.run_text(self.code_to_run, "<string>")
        if self.file_to_run == "-":
            return self.run_text(sys.stdin.read(), "<stdin>")
        path = Path(self.file_to_run)
        filename = str(path.resolve())
        sys.path.insert(0, os.path.dirname(filename))
        shell.user_ns["__file__"] = self.file_to_run
        try:
            cells = read_notebook(path)
            text = "" if cells is not None else read_source(path)
        except (OSError, UnicodeDecodeError, SyntaxError, NotebookError) as error:
            self.refuse(f"cannot read {path}: {error}")
        if cells is not None:
            return shell.run_cells(cells, str(path))
        if path.suffix == ".ipy":
            return shell.run_cells([Cell(1, "code", text, 1, filename)])
        return shell.run_script(text, filename)

    def run_text(self, text: str, filename: str) -> BaseException | None:
        """Code that is in no file: one cell, or several if it has markers."""
        shell: Any = self.shell
        remember_source(filename, text)
        if is_percent(text):
            return shell.run_cells(parse_percent(text, filename), filename)
        return shell.run_cells([Cell(1, "code", text, 1, filename)])


def start_kernel(arguments: list[str]) -> None:
    try:
        from . import kernel
    except ModuleNotFoundError as error:
        if error.name != "ipykernel":
            raise
        print('genmlx-shell: --kernel needs ipykernel: pip install "genmlx[jupyter]"', file=sys.stderr)
        sys.exit(2)
    kernel.main(arguments)


def main() -> None:
    if sys.argv[1:2] == ["--kernel"]:
        return start_kernel(sys.argv[2:])
    try:
        app = GenApp.instance()
        app.initialize()
        app.start()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
