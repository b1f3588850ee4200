"""Jupyter: notebooks in a real kernel, and `genmlx-shell --kernel` as its clients see it."""

import base64
import html
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_home import jupyter_home
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import v4
from traitlets.config import Config

LINE = """%%gen
def line(xs):
    slope ~ normal(0, 10)
    intercept ~ normal(0, 10)
    for i, x in enumerate(xs):
        y[i] ~ normal(slope * x + intercept, 1)
    return slope"""
# Without machine code, of which a run is too short to be watched.
DATA = "import sys; sys.modules['llvmlite'] = None; xs, ys = [1., 2., 3., 4., 5.], [2.1, 3.9, 6.2, 7.8, 10.1]"
FIT = "%infer ess line(xs) | given y=ys -n 2000 -w 500 -c 2 -s 1 --every 0.02 -o post"
LONG = "%infer ess line(xs) | given y=ys -n 1000000 -w 100 -c 2 -s 1 -o post"
SECONDS = 120
NUMBERS = itertools.count()


class Client(NotebookClient):
    """Runs a notebook, and keeps what each cell sent to be shown: the kind of the message and its data."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data", "execute_result"):
            self.sent.setdefault(cell_index, []).append((msg["msg_type"], msg["content"]["data"]))
        return super().process_message(msg, cell, cell_index)


def client(folder, environment, *cells, **options):
    """A notebook of these cells, to be executed in the kernel that comes with ipykernel."""
    made = [v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in cells]
    config = Config()
    config.KernelManager.transport = "ipc"
    config.KernelManager.ip = os.path.join(environment["JUPYTER_RUNTIME_DIR"], f"kernel-{next(NUMBERS)}")
    found = Client(
        v4.new_notebook(cells=made),
        timeout=options.pop("timeout", SECONDS),
        config=config,
        resources={"metadata": {"path": str(folder)}},
        **options,
    )
    found.sent = {}
    return found


def cell(source, *tags):
    return source, list(tags)


@pytest.fixture(scope="module")
def home(environment):
    # Sockets are files here, whose paths may have some hundred characters at most; pytest's own folders are deep.
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        found = jupyter_home(Path(folder), environment)
        Path(found["JUPYTER_RUNTIME_DIR"]).mkdir()
        for name in set(os.environ) - set(found):
            patch.delenv(name)
        for name, value in found.items():
            patch.setenv(name, value)
        yield found


LOOKS = {
    "extension": cell("%load_ext genmlx\n%config GenMagics.paint_share = 1.0"),
    "data": cell(DATA),
    "model": cell(LINE),
    "trace": cell("%trace line(xs) | given y=ys -s 1"),
    "fit": cell(FIT),
    "mean": cell("post.mean('slope').item()"),
    "post": cell("post"),
    "silent": cell(f"{FIT.replace('2000', '1000')};"),
    "diag": cell("%diag post"),
    "plot": cell("%plot post slope"),
    "first": cell("a = %trace line(xs) -s 1 -q"),
    "diff": cell("changed = %trace a --set slope=2.5 -q\n%trace --diff a changed"),
    "memory": cell("%mem"),
    "error": cell("line(xs).simulate()['slop']", "raises-exception"),
    "typo": cell("line(xs).simulate(\n", "raises-exception"),
}


@pytest.fixture(scope="module")
def notebook(home, tmp_path_factory):
    """A notebook that was run: outputs of a cell by its name, and what was sent for them."""
    run = client(tmp_path_factory.mktemp("notebook"), home, *LOOKS.values())
    cells = run.execute().cells
    names = list(LOOKS)
    return SimpleNamespace(
        outputs={name: one.outputs for name, one in zip(names, cells, strict=True)},
        counts={name: one.execution_count for name, one in zip(names, cells, strict=True)},
        sent={names[i]: sent for i, sent in run.sent.items()},
    )


def shown(outputs):
    """The outputs of a cell but the memory line."""
    return [one for one in outputs if one.get("metadata", {}).get("genmlx") != "mem"]


def text(page):
    return html.unescape(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def rows(page):
    """The cells of each row of the tables of a page."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(one) for one in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in found]


def test_a_live_run_is_one_output_that_ends_as_the_summary(notebook):
    (output,) = shown(notebook.outputs["fit"])
    assert output.output_type == "display_data" and set(output.data) == {"text/plain", "text/html"}
    assert output.data["text/plain"].startswith("post: Posterior ess 2x2000 line v1\n")
    table = {row[0]: row[1:] for row in rows(output.data["text/html"])}
    assert list(table) == ["", "slope", "intercept"] and table[""][0] == "mean"
    mean = float(notebook.outputs["mean"][0].data["text/plain"])
    assert abs(float(table["slope"][0]) - mean) < 0.001 and abs(mean - 1.988) < 0.1
    assert table["slope"][0] in output.data["text/plain"]


def test_a_live_run_sends_pictures_of_one_height_in_each_phase_before_its_summary(notebook):
    kinds = [kind for kind, data in notebook.sent["fit"] if "genmlx" not in data]
    frames = [data["text/html"] for _, data in notebook.sent["fit"][:-2]]
    assert kinds[0] == "display_data" and set(kinds[1:-1]) == {"update_display_data"} and len(frames) >= 3
    heights = {("warmup" in page, page.count("<tr"), page.count("<svg")) for page in frames}
    assert heights == {(True, 1 + 2, 0), (False, 1 + 2 + 2, 2)}
    phases = ["warmup" if "warmup" in page else "sampling" for page in frames]
    assert phases == sorted(phases, reverse=True) and phases[-1] == "sampling"
    assert frames[-1].count("<polyline") == 2 * 2
    assert frames[-1] != notebook.sent["fit"][-2][1]["text/html"]


def test_a_semicolon_leaves_a_line_in_place_of_the_pictures(notebook):
    (output,) = shown(notebook.outputs["silent"])
    assert output.data == {"text/plain": "post: Posterior ess 2x1000 line v1"}


def test_results_and_trees_are_shown_in_html_and_in_plain_text(notebook):
    (post,) = shown(notebook.outputs["post"])
    assert post.output_type == "execute_result" and len(rows(post.data["text/html"])) == 3
    (tree,) = shown(notebook.outputs["trace"])
    assert tree.data["text/html"].count("<details") == 1 and "├── slope" in tree.data["text/plain"]
    assert re.findall(r'title="([^"]*)"', text(tree.data["text/html"]))[:3] == ["slope", "intercept", "y"]
    (diag,) = shown(notebook.outputs["diag"])
    assert [row[0] for row in rows(diag.data["text/html"])][0] == "" and len(rows(diag.data["text/html"])) == 3
    (diff,) = shown(notebook.outputs["diff"])
    assert "slope" in diff.data["text/plain"] and "-> 2.5" in text(diff.data["text/html"])


def test_a_figure_is_a_picture(notebook):
    (output,) = shown(notebook.outputs["plot"])
    assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG\r\n")


def test_nothing_that_is_shown_has_escape_sequences(notebook):
    sent = [data for messages in notebook.sent.values() for _, data in messages]
    texts = [value for data in sent for kind, value in data.items() if kind.startswith("text/")]
    assert len(texts) > 20 and "\x1b" not in "".join(texts)


def test_the_memory_line_is_an_output_by_itself(notebook):
    for name in ("data", "model", "fit", "post", "diag", "plot", "diff"):
        last = notebook.outputs[name][-1]
        assert last.output_type == "display_data" and last.metadata == {"genmlx": "mem"}, name
        assert re.fullmatch(
            r"mem [+-][\d.]+ \wB? \(active [\d.]+ \w?B\)  peak .*  cache .*  \d+\.\d\d s  \w+", last.data["text/plain"]
        )
        assert last.data["text/plain"] in text(last.data["text/html"])
    assert len(shown(notebook.outputs["memory"])) == len(notebook.outputs["memory"])


def test_an_error_is_three_lines_and_names_the_cell(notebook):
    (output,) = shown(notebook.outputs["error"])
    assert output.output_type == "error" and output.ename == "UnknownAddress"
    where = f"Cell In[{notebook.counts['error']}], line 1"
    assert output.traceback[0] == f"UnknownAddress: no choice at 'slop' ({where})"
    assert len(output.traceback) == 3 and output.traceback[2] == "did you mean 'slope'?"
    (typo,) = shown(notebook.outputs["typo"])
    assert typo.ename == "SyntaxError" or typo.ename == "_IncompleteInputError"


def test_a_mistake_in_a_magic_fails_the_notebook(home, tmp_path):
    wrong = cell("%infer nuts line(xs) | given slop=1")
    run = client(tmp_path, home, cell("%load_ext genmlx"), cell(DATA), cell(LINE), wrong, cell("ran = 1"))
    with pytest.raises(CellExecutionError, match="no address 'slop' in line v1; did you mean 'slope'"):
        run.execute()
    *_, failed, after = run.nb.cells
    (stream,) = [one for one in failed.outputs if one.output_type == "stream"]
    assert stream.text.splitlines()[1:] == ["    %infer nuts line(xs) | given slop=1", " " * 33 + "^^^^"]
    assert after.execution_count is None


def test_a_run_that_is_cut_short_fails_a_notebook_that_nobody_attends(home, tmp_path):
    begun = [cell("%load_ext genmlx"), cell(DATA), cell(LINE)]
    run = client(tmp_path, home, *begun, cell(LONG), cell("ran = 1"), timeout=4, interrupt_on_timeout=True)
    with pytest.raises(CellExecutionError, match="InferenceInterrupted: .*interrupted; what was drawn is in _post"):
        run.execute()
    assert run.nb.cells[-1].execution_count is None


# `genmlx-shell --kernel`


@pytest.fixture
def kernel(home, tmp_path):
    """A kernel that a person has started, and a client that has attached to it as its lines say."""
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.shell", "--kernel"], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=home
    )
    attached = BlockingKernelClient()
    try:
        lines = [process.stdout.readline().rstrip("\n") for _ in range(4)]
        path = Path(re.fullmatch(r"connection file: (.*)", lines[1])[1])
        attached.load_connection_file(str(path))
        attached.start_channels()
        attached.wait_for_ready(timeout=SECONDS)
        yield SimpleNamespace(
            process=process, lines=lines, path=path, client=attached, run=lambda code: run(attached, code)
        )
    finally:
        attached.stop_channels()
        process.kill()
        process.wait()
        process.stdout.close()


def run(attached, code):
    """Run code as a console does: the reply, and the data that was shown. A console leaves out updates."""
    shown = []

    def take(message):
        content, kind = message["content"], message["msg_type"]
        if kind in ("display_data", "execute_result") and content["metadata"].get("genmlx") != "mem":
            shown.append(content["data"])

    reply = attached.execute_interactive(
        code, allow_stdin=True, stdin_hook=lambda message: attached.input(""), output_hook=take, timeout=SECONDS
    )
    return reply["content"], shown


def matches(attached, code):
    content = attached.complete(code, reply=True, timeout=SECONDS)["content"]
    return [code[: content["cursor_start"]] + one for one in content["matches"]]


def test_a_client_finds_the_language_in_scope_and_all_that_the_shell_has(kernel):
    assert re.match(r"GenMLX \d+\.\d+\.\d+ +mlx \d", kernel.lines[0])
    assert kernel.lines[2] == f"attach with:     jupyter console --existing {kernel.path.name}"
    info = kernel.client.kernel_info(reply=True, timeout=SECONDS)["content"]
    assert info["implementation"] == "genmlx" and info["banner"].startswith(kernel.lines[0])

    assert [kernel.run(code)[0]["status"] for code in (DATA, LINE)] == ["ok", "ok"]
    reply, (tree,) = kernel.run("%trace line(xs) | given y=ys")
    assert reply["status"] == "ok" and "<details" in tree["text/html"]
    reply, (summary,) = kernel.run("%infer nuts line(xs) | given y=ys -n 50 -w 500 -c 2 -o post")
    assert reply["status"] == "ok" and summary["text/plain"].startswith("post: Posterior nuts 2x50 line v1")

    assert matches(kernel.client, "%infer nu") == ["%infer nuts"]
    assert "%infer nuts line(" in matches(kernel.client, "%infer nuts li")
    assert matches(kernel.client, "%infer nuts line(xs) | given inte") == ["%infer nuts line(xs) | given intercept="]
    assert "importance_sampling" in matches(kernel.client, "importance_s")
    for code, status in (("%%gen\ndef line(xs):", ("incomplete", "    ")), (f"{LINE}\n", ("complete", ""))):
        kernel.client.is_complete(code)
        typed = kernel.client.get_shell_msg(timeout=SECONDS)["content"]
        assert (typed["status"], typed["indent"]) == status
    asked = kernel.client.inspect("line", reply=True, timeout=SECONDS)["content"]
    assert asked["found"] and re.search(r"line v1 +Cell In\[2\], line 2", plain(asked["data"]["text/plain"]))
    assert "normal(slope * x + intercept, 1)" in plain(asked["data"]["text/plain"])


def plain(shown):
    return re.sub(r"\x1b\[[\d;]*m", "", shown)


def test_an_interrupt_keeps_what_was_drawn_where_somebody_watches(kernel):
    for code in (DATA, LINE):
        kernel.run(code)
    sampling = kernel.client.execute(LONG, allow_stdin=True)
    waiting = time.monotonic() + SECONDS
    while time.monotonic() < waiting:
        message = kernel.client.get_iopub_msg(timeout=SECONDS)
        if "sampling" in message["content"].get("text", ""):  # a line in place of a picture
            break
    control = kernel.client.control_channel
    control.send(kernel.client.session.msg("interrupt_request", {}))
    reply = kernel.client.get_shell_msg(timeout=SECONDS)
    assert reply["parent_header"]["msg_id"] == sampling and reply["content"]["status"] == "ok"
    _, (status,) = kernel.run("post.status, 1 <= post.draws < 1000000, _post is post")
    assert status["text/plain"] == "('interrupted', True, True)"
    _, (summary,) = kernel.run("post")
    assert "interrupted at" in summary["text/plain"].splitlines()[0]


def test_ctrl_c_at_its_terminal_stops_a_cell_and_ctrl_backslash_the_kernel(kernel):
    kernel.client.execute("print('begun', flush=True)\nwhile True: pass")
    while kernel.client.get_iopub_msg(timeout=SECONDS)["content"].get("text") != "begun\n":
        pass
    kernel.process.send_signal(signal.SIGINT)
    reply = kernel.client.get_shell_msg(timeout=SECONDS)["content"]
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    kernel.process.send_signal(signal.SIGINT)
    assert kernel.run("6 * 7")[1] == [{"text/plain": "42"}]
    kernel.process.send_signal(signal.SIGQUIT)
    assert kernel.process.wait(timeout=SECONDS) == 0
    assert not list(kernel.path.parent.glob(f"{kernel.path.stem}*"))


def test_jupyter_offers_the_kernel_once_it_is_installed(home, shell, tmp_path):
    made = shell("--kernel", "--install", "--prefix", str(tmp_path / "there"), **home)
    folder = tmp_path / "there" / "share" / "jupyter" / "kernels"
    assert (made.returncode, made.stdout, made.stderr) == (0, f"GenMLX: {folder / 'genmlx'}\n", "")
    specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    assert json.loads((folder / "genmlx" / "kernel.json").read_text())["display_name"] == "GenMLX"

    # A notebook's folder may have modules of any name.
    for name in ("magics", "workbench", "ipykernel"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('of the wrong folder')")
    sockets = f"{home['JUPYTER_RUNTIME_DIR']}/genmlx"
    manager = KernelManager(kernel_name="genmlx", kernel_spec_manager=specs, transport="ipc", ip=sockets)
    manager.start_kernel(cwd=str(tmp_path), env={k: v for k, v in home.items() if k != "PYTHONSAFEPATH"})
    attached = manager.blocking_client()
    try:
        attached.start_channels()
        attached.wait_for_ready(timeout=SECONDS)
        run(attached, LINE)
        assert run(attached, "line([1.]).simulate()['y', 0].shape")[1] == [{"text/plain": "()"}]
    finally:
        attached.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-banner", "--kernel"], "genmlx-shell: --kernel comes first"),
        (["--kernel", "--install", "--nowhere"], "unrecognized arguments: --nowhere"),
        (["--kernel", "--install", "--user", "--prefix", "x"], "not allowed with argument --user"),
        (["--kernel", "--install", "--prefix", "/dev/null/x"], "genmlx-shell: cannot install the kernel"),
        (["--kernel", "--nonsense"], "--nonsense"),
    ],
)
def test_unusable_arguments_leave_2(shell, arguments, said):
    found = shell(*arguments)
    assert found.returncode == 2 and said in found.stderr and not found.stdout


def test_help_names_the_options_of_the_kernel(shell):
    found = shell("--kernel", "--help")
    assert found.returncode == 0 and "--kernel --install" in found.stdout
    assert "--kernel" in shell("--help").stdout


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "ipykernel":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["genmlx-shell", "--kernel"]
from workbench.shell import main
main()
"""


def test_without_ipykernel_it_says_what_to_install(environment, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=SECONDS
    )
    assert found.returncode == 2
    assert found.stderr == 'genmlx-shell: --kernel needs ipykernel: pip install "genmlx[jupyter]"\n'
