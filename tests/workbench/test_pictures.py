"""A session as the README shows it. With `GENMLX_PICTURES=FOLDER` the picture of it is written there."""

import os
import re
from pathlib import Path

from terminal import Terminal

MODEL = """%%gen --check (xs,)
def line(xs):
slope ~ normal(0, 10)
intercept ~ normal(0, 10)
for i, x in enumerate(xs):
y[i] ~ normal(slope * x + intercept, 1)
"""


def test_a_model_is_defined_looked_at_and_fitted(environment, tmp_path):
    known = {name: value for name, value in environment.items() if name not in ("CI", "GENMLX_CI", "GENMLX_FAST")}
    shell = Terminal(["-m", "workbench.shell"], known, tmp_path, rows=44)
    try:
        shell.wait(r"^gen\[1\]>")
        shell.type("xs, ys = [1., 2., 3., 4., 5.], [2.1, 3.9, 6.2, 7.8, 10.1]\r")
        shell.wait(r"^gen\[2\]>")
        shell.type(MODEL.replace("\n", "\r") + "\r")
        shell.wait(r"^gen\[3\]>")
        assert re.search(r'^line v1   2 static \+ \("y", i\) dynamic sites   6 laws ok', shell.screen, re.MULTILINE)
        shell.type("%trace line(xs) | given y=ys -s 1\r")
        shell.wait(r"^gen\[4\]>")
        assert re.search(r"^├── slope +-2.274 +f32\[\] +-3.25$", shell.screen, re.MULTILINE)
        shell.type("%infer nuts line(xs) | given y=ys -n 1000 -w 500 -s 1 -o post\r")
        shell.wait(r"^gen\[5\]>", 120)
        found = re.search(r"^slope +(\S+) +(\S+)", shell.screen, re.MULTILINE)
        assert found and abs(float(found[1]) - 1.988) < 0.1 and abs(float(found[2]) - 0.315) < 0.05
        assert "sampling" not in shell.screen
        picture = shell.svg("genmlx-shell")
    finally:
        shell.process.close(force=True)
    assert "nuts" in picture and len(set(re.findall(r"fill: (#\w{6})", picture))) >= 3
    if "GENMLX_PICTURES" in os.environ:
        Path(os.environ["GENMLX_PICTURES"], "shell.svg").write_text(picture)
