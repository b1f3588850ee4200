"""The README's Python, as a newcomer would type it."""

import doctest
import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_tour_runs_as_printed():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    tour = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", str(README), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    runner.run(tour, out=report.append)
    assert runner.summarize(verbose=False) == (0, len(tour.examples)) and len(tour.examples) > 10, "".join(report)
