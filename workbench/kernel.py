"""`genmlx-shell --kernel`: a Jupyter kernel that starts inside the language, for JupyterLab, editors and consoles."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelspec import make_ipkernel_cmd, write_kernel_spec
from ipykernel.zmqshell import ZMQInteractiveShell
from jupyter_client.kernelspec import KernelSpecManager
from traitlets import Int, Type, Unicode, default

from . import __version__, banner
from .memory import limit_cache
from .typed import TypedCells

NAME, TITLE = "genmlx", "GenMLX"
USAGE = """\
usage: genmlx-shell --kernel [options]       a Jupyter kernel with genmlx in scope, for clients to attach to
       genmlx-shell --kernel --install       put it among the kernels that JupyterLab offers, as "GenMLX"

options:
  -f FILE         where to write the connection file
  --transport tcp for clients that do not speak ipc, which only your user can read
  --profile NAME  the IPython profile; --help-all lists every option of an IPython kernel
  -h, --help      this page

options of --install:
  --user          for your user, for a Jupyter that is installed elsewhere
  --prefix DIR    below DIR; without either, in the environment that genmlx is installed in

exit status: 0 fine, 2 unusable arguments or no ipykernel"""


class KernelShell(TypedCells, ZMQInteractiveShell):
    cache_size = Int(50).tag(config=True)  # Out pins what it holds, posteriors too


class Kernel(IPythonKernel):
    shell_class = Type(KernelShell)
    implementation = NAME
    implementation_version = __version__

    @property
    def banner(self) -> str:
        return banner()

    def do_is_complete(self, code: str) -> dict[str, str]:
        shell: Any = self.shell
        status, indent = shell.check_complete(code)
        return {"status": status, "indent": indent}


class KernelApp(IPKernelApp):
    """An IPython kernel with our extension. The user's profile applies, and wins over our defaults."""

    name = Unicode("genmlx-shell --kernel")
    kernel_class = Type(Kernel, klass="ipykernel.kernelbase.Kernel").tag(config=True)

    @default("transport")
    def _transport_default(self) -> str:
        return "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        """For ipc the beginning of the sockets' paths, which clients in other folders must find."""
        return os.path.splitext(self.abs_connection_file)[0] if self.transport == "ipc" else super()._ip_default()

    @property
    def attended(self) -> bool:
        """Whether a person has started it at a terminal, and not a server or an editor."""
        return not self.parent_handle

    def initialize(self, argv: Any = None) -> None:
        limit_cache()
        super().initialize(argv)

    def init_extensions(self) -> None:
        super().init_extensions()
        shell: Any = self.shell
        shell.extension_manager.load_extension("magics")

    def log_connection_info(self) -> None:
        if not self.attended:
            return super().log_connection_info()
        path = Path(self.abs_connection_file)
        short = path.name if str(path.parent) == self.connection_dir else str(path)
        print(banner(), f"connection file: {path}", sep="", file=sys.__stdout__)
        print(f"attach with:     jupyter console --existing {shlex.quote(short)}", file=sys.__stdout__)
        print("Ctrl-C interrupts what runs, Ctrl-\\ ends the kernel", file=sys.__stdout__, flush=True)

    def init_signal(self) -> None:
        super().init_signal()
        if self.attended:
            signal.signal(signal.SIGQUIT, self.leave)
            signal.signal(signal.SIGTERM, self.leave)

    def leave(self, number: int, frame: Any) -> None:
        """End at once, whatever runs; files without a kernel would mislead clients."""
        self.cleanup_connection_file()
        os._exit(0 if number == signal.SIGQUIT else 128 + number)


def install(user: bool, prefix: str | None) -> str:
    """Write the kernel's description where Jupyter looks for kernels; the folder."""
    # -P: a file of the notebook's folder must not stand for a module that the kernel imports while it starts.
    command = make_ipkernel_cmd("workbench.kernel", python_arguments=["-P", "-Xfrozen_modules=off"])
    with tempfile.TemporaryDirectory() as folder:
        made = write_kernel_spec(Path(folder) / NAME, overrides={"argv": command, "display_name": TITLE})
        place = None if user else prefix or sys.prefix
        return KernelSpecManager().install_kernel_spec(made, NAME, user=user, prefix=place)


def main(arguments: list[str] | None = None) -> None:
    argv = sys.argv[1:] if arguments is None else arguments
    if "-h" in argv or "--help" in argv:
        print(USAGE)
    elif "--install" in argv:
        parser = ArgumentParser("genmlx-shell", usage="genmlx-shell --kernel --install [--user | --prefix DIR]")
        parser.add_argument("--install", action="store_true")
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--user", action="store_true")
        where.add_argument("--prefix")
        asked = parser.parse_args(argv)
        try:
            print(f"{TITLE}: {install(asked.user, asked.prefix)}")
        except OSError as error:
            print(f"genmlx-shell: cannot install the kernel: {error}", file=sys.stderr)
            sys.exit(2)
    else:
        app = KernelApp.instance()
        app.initialize(argv)
        app.start()


if __name__ == "__main__":
    main()
