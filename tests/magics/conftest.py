"""A shell without a screen, with the extension loaded: what cells print, and the errors that they end in."""

import os
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from line_model import LINE
from traitlets.config import Config


class Prompt:
    """``prompt(cell)`` runs a cell and gives what it printed; ``prompt.fails(cell)`` gives its error and the screen."""

    def __init__(self, ip):
        self.ip = ip

    def __call__(self, cell):
        with capture_output() as captured:
            result = self.ip.run_cell(cell, store_history=True)
        result.raise_error()
        assert captured.stderr == ""
        return captured.stdout.rstrip("\n")

    def fails(self, cell):
        with capture_output() as captured:
            result = self.ip.run_cell(cell, store_history=True)
        assert not result.success
        return result.error_in_exec or result.error_before_exec, captured.stdout + captured.stderr

    def __getitem__(self, name):
        return self.ip.user_ns[name]

    def value(self, expression):
        self(f"_value = {expression}")
        return self["_value"]


@pytest.fixture(scope="module", autouse=True)
def no_models_of_other_sessions():
    """A name of ``__main__`` is one model for a process, whichever shell defines it."""
    handles = sys.modules["genmlx.gen"]._handles if "genmlx.gen" in sys.modules else {}
    for identity in [identity for identity in handles if identity[0] == "__main__"]:
        del handles[identity]


@pytest.fixture(scope="module")
def ip(tmp_path_factory):
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    os.environ["IPYTHONDIR"] = str(tmp_path_factory.mktemp("ipython"))
    main = sys.modules["__main__"]
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()
    sys.modules["__main__"] = main


@pytest.fixture
def prompt(ip):
    ip.run_line_magic("load_ext", "magics")
    ip._genmlx_session.settings.mem = "off"
    yield Prompt(ip)
    ip.run_line_magic("unload_ext", "magics")
    ip.reset(new_session=True)
    ip.execution_count = 1
    vars(sys).update(dict.fromkeys(("last_exc", "last_value", "last_traceback", "last_type")))
    handles = sys.modules["genmlx.gen"]._handles
    for name in [name for name in handles if name[0] == "__main__"]:  # those that a caught error still holds
        del handles[name]


@pytest.fixture(scope="module")
def shell_with_a_line():
    """A shell with our extension, a model of a line, and data."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    ip = InteractiveShell(config=config)
    ip.run_line_magic("load_ext", "genmlx")
    ip.run_cell(LINE, store_history=True).raise_error()
    yield ip
    ip.run_line_magic("unload_ext", "genmlx")


@pytest.fixture
def run(ip, monkeypatch):
    """`run(source)` is the result of a cell, what it showed, and what it wrote to stderr."""
    monkeypatch.setenv("GENMLX_DISPLAY", "off")

    def run(source):
        with capture_output() as captured:
            result = ip.run_cell(source, store_history=True)
        shown = "".join(output.data.get("text/plain", "") for output in captured.outputs)
        return result, captured.stdout + shown, captured.stderr

    return run
