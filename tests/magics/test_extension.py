"""`%load_ext genmlx` and `%unload_ext magics` in an ordinary IPython session."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

SESSION = """\
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

config = Config()
config.HistoryManager.enabled = False
ip = InteractiveShell.instance(config=config)
ip.run_line_magic("load_ext", "magics")
ip.run_cell("print(genmlx.normal is normal, mx.__name__, callable(gen))").raise_error()
ip.run_cell("select = 5").raise_error()
print("poisson" in ip.user_ns, "mh" in ip.user_ns)
ip.run_cell("def f(): return poisson(3.0), mh").raise_error()
ip.run_cell("beta = 7").raise_error()
ip.run_cell("print(f()[0], beta)").raise_error()
words = ip.Completer.complete("gam")[1], ip.Completer.complete("nut")[1]
ip.run_cell("%timeit -n1 -r1 -q switch").raise_error()
print("switch" in ip.user_ns, "gamma" in words[0], "nuts" in words[1])
ip.run_line_magic("unload_ext", "magics")
print("gen" in ip.user_ns, "mx" in ip.user_ns, "poisson" in ip.user_ns, ip.user_ns["select"], ip.user_ns["beta"])
"""

WANT = """\
True mlx.core True
False False
poisson(3.0) 7
True True True
False False False 5 7
"""


def test_loading_gives_the_names_and_unloading_takes_them_back(tmp_path):
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SESSION], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (WANT, "")
