"""The settings: where they come from, which wins, and what is said of wrong ones."""

import mlx.core as mx
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets import TraitError
from traitlets.config import Config

from magics.settings import GenMagics, read_project


def project(folder, text):
    (folder / "pyproject.toml").write_text(text)
    said = []
    settings = GenMagics()
    read_project(settings, folder, said.append)
    return settings, said


def test_a_project_has_settings(tmp_path):
    text = '[project]\nname = "x"\n[tool.genmlx]\nchains = 8\nlive = "off"\nascii = true\nuntil = "rhat<1.01"\n'
    settings, said = project(tmp_path, text)
    assert (settings.chains, settings.live, settings.ascii, settings.draws) == (8, "off", True, 1000) and said == []
    assert settings.until == "rhat<1.01"


def test_the_nearest_project_with_settings_counts(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.genmlx]\nchains = 3\n")
    (tmp_path / "a" / "pyproject.toml").write_text("[tool.black]\nline-length = 3\n")
    settings = GenMagics()
    read_project(settings, inner)
    assert settings.chains == 3


def test_ipython_s_own_configuration_wins(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.genmlx]\nchains = 3\ndraws = 50\n")
    settings = GenMagics(config=Config({"GenMagics": {"chains": 7}}))
    read_project(settings, tmp_path)
    assert (settings.chains, settings.draws) == (7, 50)


def test_what_is_wrong_is_said_and_the_rest_is_taken(tmp_path):
    text = '[tool.genmlx]\nchain = 8\nlive = "loud"\ndraws = 0\nuntil = "rhat<one"\nmem = "off"\n'
    settings, said = project(tmp_path, text)
    assert settings.mem == "off" and (settings.chains, settings.live, settings.draws) == (4, "auto", 1000)
    assert len(said) == 4 and all(line.startswith(str(tmp_path / "pyproject.toml")) for line in said)
    assert said[0].endswith("[tool.genmlx] has no setting 'chain'; did you mean 'chains'?")
    assert "live = 'loud'" in said[1] and "'mpl'" in said[1]
    assert "draws = 0" in said[2] and "until = 'rhat<one'" in said[3] and "is no condition" in said[3]


def test_a_broken_file_is_said(tmp_path):
    settings, said = project(tmp_path, "[tool.genmlx]\nchains = = 3\n")
    assert settings.chains == 4 and "its [tool.genmlx] was not read" in said[0] and "line 2" in said[0]


def test_sizes_and_conditions_are_checked_when_they_are_set():
    settings = GenMagics()
    with pytest.raises(TraitError, match="'much' is no size: 512MB, 4GB"):
        settings.cache_limit = "much"
    with pytest.raises(TraitError, match="'rhat' is no condition"):
        settings.until = "rhat"


def test_the_cache_limit_is_that_of_mlx():
    before = mx.set_cache_limit(10**9)
    try:
        GenMagics().cache_limit = "5MB"
        assert mx.set_cache_limit(before) == 5_000_000
        GenMagics(config=Config({"GenMagics": {"cache_limit": "7MB"}}))
        assert mx.set_cache_limit(before) == 7_000_000
    finally:
        mx.set_cache_limit(before)


def test_a_session_reads_the_project_where_it_starts(tmp_path, monkeypatch, capsys):
    (tmp_path / "pyproject.toml").write_text("[tool.genmlx]\nchains = 2\ndraws = 7\n")
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.HistoryManager.enabled = False
    ip = InteractiveShell(config=config)
    ip.run_line_magic("load_ext", "genmlx")
    ip.run_cell("@gen\ndef m():\n    return trace('x', normal(0, 1))")
    ip.run_cell("%infer mh m() --dry-run")
    assert capsys.readouterr().out.endswith("mh  m v1  2 chains x 7\n")
    ip.run_line_magic("unload_ext", "genmlx")
