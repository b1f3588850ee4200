"""Object code on disk: found again, and never the wrong one."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from genmlx.native import cache, llvm
from genmlx.native.kernel import compile_function


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GENMLX_CACHE", str(tmp_path))


def files():
    return [os.path.join(cache.folder(), name) for name in os.listdir(cache.folder())]


def compiled(factor=2.0):
    return compile_function(lambda x: [x * factor], mx.zeros(3))


def doubled(kernel):
    return kernel(mx.array([1.0, 2.0, 3.0]))[0].tolist() == [2, 4, 6]


def test_the_second_time_nothing_is_compiled(monkeypatch):
    first = compiled()
    assert not first.cached and doubled(first)
    monkeypatch.setattr(llvm, "_compiled", None)
    second = compiled()
    assert second.cached and doubled(second)


def test_other_code_is_another_entry():
    compiled()
    assert not compiled(3.0).cached
    assert len(files()) == 2


@pytest.mark.parametrize("position", range(7))
def test_another_machine_or_version_is_another_entry(monkeypatch, position):
    """The triple, the CPU, its features; llvmlite, MLX, this project, and its use of LLVM."""
    compiled()
    names = list(llvm._host().names)
    assert len(names) == 7
    names[position] += "x"
    monkeypatch.setattr(llvm._host(), "names", names)
    assert not compiled().cached


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: bytes(32) + content[32:],
        lambda content: content + b"x",
    ],
)
def test_a_damaged_file_is_compiled_anew(damage):
    compiled()
    (path,) = files()
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(damage(content))
    again = compiled()
    assert not again.cached and doubled(again)
    assert compiled().cached
    with open(path, "rb") as file:
        assert file.read() == content


def test_a_file_that_others_may_write_is_not_run():
    compiled()
    (path,) = files()
    os.chmod(path, 0o666)
    assert not compiled().cached


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GENMLX_CACHE", str(blocked))
    for _ in range(2):
        kernel = compiled()
        assert not kernel.cached and doubled(kernel)


def test_writers_of_one_entry_do_not_meet():
    content = [bytes([i]) * 100_000 for i in range(8)]

    def work(i):
        for _ in range(30):
            cache.write("same", content[i])
            found = cache.read("same")
            assert found in content

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(files()) == 1


def test_processes_that_compile_the_same_share_it():
    program = (
        "import mlx.core as mx; from genmlx.native.kernel import compile_function\n"
        "k = compile_function(lambda x: [mx.exp(x)], mx.zeros(5)); print(k(mx.zeros(5))[0].tolist())"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["[1.0, 1.0, 1.0, 1.0, 1.0]"] * 3
    assert len(files()) == 1


def test_old_files_go_when_there_are_many(monkeypatch):
    monkeypatch.setattr(cache, "_LIMIT", 10)
    for i in range(10):
        cache.write(f"entry{i}", b"code")
        os.utime(os.path.join(cache.folder(), f"entry{i}.o"), (i, i))
    cache.write("last", b"code")
    names = sorted(os.path.basename(path) for path in files())
    assert names == ["entry5.o", "entry6.o", "entry7.o", "entry8.o", "entry9.o", "last.o"]


def test_folders(monkeypatch, tmp_path):
    assert cache.folder() == str(tmp_path / "native")
    monkeypatch.delenv("GENMLX_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.folder() == "/caches/genmlx/native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == "/home/someone/.cache/genmlx/native"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.folder() == "/home/someone/Library/Caches/genmlx/native"


def test_constants_are_not_part_of_what_is_kept():
    """Other data of the same form run the same code."""
    rng = np.random.default_rng(0)
    for i, data in enumerate(mx.array(rng.normal(size=(2, 100)).astype(np.float32))):
        mx.eval(data)
        kernel = compile_function(lambda x, data=data: [mx.sum(mx.exp(x * data))], mx.array(0.5))
        assert kernel.cached == bool(i)
        assert kernel(mx.array(0.5))[0].item() == pytest.approx(mx.sum(mx.exp(0.5 * data)).item(), rel=1e-6)
