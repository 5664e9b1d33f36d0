"""Files and directories that are old or new: others' files, permissions, links, locks, leftovers, readers."""

import errno
import os
import signal
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppsd3.utils import files, temporary
from ppsd3.utils.errors import CheckpointError, DiskError, InputError
from ppsd3.utils.files import (
    COMMITTED,
    atomic_write,
    read_whole,
    replacing,
    require_space,
    require_writable,
    settled,
    write_new,
)

exchanges = pytest.mark.skipif(files._exchange_names() is None, reason="only Linux exchanges names")
not_root = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions as POSIX has them")


def save(directory, **contents):
    """Saves files, named by ``contents`` with ``_`` for a dot; former ones of the names ``old*`` go."""
    with replacing(directory, lambda path, new: os.path.basename(path).startswith("old")) as new:
        for name, content in contents.items():
            with atomic_write(os.path.join(new, name.replace("_", "."))) as file:
                file.write(content.encode())


def fail_after(write, directory):
    """Saves what ``write(new)`` writes, and fails then."""

    def failing():
        with replacing(directory) as new:
            write(new)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def at_the_same_time(function, arguments):
    """Calls ``function`` with each of ``arguments`` in a thread of its own."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        assert len(list(pool.map(function, arguments))) == len(arguments)


def tree(directory):
    """Relative path -> content of the files in ``directory``."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_text() for path in found}


@pytest.fixture(params=["exchanged", "in place"])
def target(request, tmp_path, monkeypatch):
    """A directory with something in it."""
    directory = tmp_path / "parent" / "saved"
    save(directory, a_txt="1", old_txt="1")
    (directory / "README").write_text("the user's")
    (directory / "sub" / "deep").mkdir(parents=True)
    (directory / "sub" / "deep" / "x").write_text("the user's")
    (directory / "sub" / "old.txt").write_text("1")
    (directory / "link").symlink_to("README")
    if request.param == "in place":
        monkeypatch.setattr(files, "_can_be_exchanged", lambda target: False)
    return directory


def test_other_files_stay(target):
    inode = target.stat().st_ino
    save(target, a_txt="2", b_txt="2")
    found = {"a.txt": "2", "b.txt": "2", "README": "the user's", "sub/deep/x": "the user's", "link": "the user's"}
    assert tree(target) == found and (target / "link").is_symlink()
    assert os.listdir(target.parent) == ["saved"] and not [*target.glob(".*")]
    assert (target.stat().st_ino == inode) == (not files._can_be_exchanged(str(target)))


def test_a_failure_leaves_the_old(target):
    before = tree(target)
    fail_after(lambda new: save(new, a_txt="2"), target)
    assert tree(target) == before and os.listdir(target.parent) == ["saved"]


def test_permissions_and_links_of_what_was_there(target):
    mode = 0o750
    target.chmod(mode)
    os.link(target / "a.txt", target.parent / "backup")
    save(target, a_txt="2")
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert (target.parent / "backup").read_text() == "1"


def test_a_link_to_a_directory_stays_one(target):
    link = target.parent / "link"
    link.symlink_to("saved")
    save(link, a_txt="2")
    assert link.is_symlink() and (target / "a.txt").read_text() == "2"


def test_a_file_where_a_directory_goes_is_not_lost(target):
    with pytest.raises(InputError, match="README is a file"), replacing(target) as new:
        save(os.path.join(new, "README"), a_txt="2")
    assert (target / "README").read_text() == "the user's"


def test_parts_of_a_save_are_part_of_it(target):
    fail_after(lambda new: save(os.path.join(new, "sub"), a_txt="2"), target)
    assert not (target / "sub" / "a.txt").exists()
    with replacing(target) as new:
        save(os.path.join(new, "sub"), a_txt="2")
    assert tree(target)["sub/a.txt"] == "2" and tree(target)["sub/deep/x"] == "the user's"


def test_a_very_long_name(tmp_path):
    directory = tmp_path / ("x" * 255)
    for content in "12":
        save(directory, a_txt=content)
        assert tree(directory) == {"a.txt": content}
        with atomic_write(tmp_path / ("y" * 255)) as file:
            file.write(content.encode())
    assert len(os.listdir(tmp_path)) == 2


@exchanges
def test_files_that_come_during_a_save_are_kept(tmp_path, monkeypatch):
    save(tmp_path / "saved", a_txt="1")
    exchange = files._exchange_names()

    def late(one, other):
        (tmp_path / "saved" / "late").write_text("the user's")
        (tmp_path / "saved" / "sub").mkdir()
        (tmp_path / "saved" / "sub" / "late").write_text("the user's")
        exchange(one, other)

    monkeypatch.setattr(files, "_exchange_names", lambda: late)
    save(tmp_path / "saved", a_txt="2")
    assert tree(tmp_path / "saved") == {"a.txt": "2", "late": "the user's", "sub/late": "the user's"}
    assert os.listdir(tmp_path) == ["saved"]


def test_the_current_directory_keeps_its_place(tmp_path, monkeypatch):
    save(tmp_path / "saved", a_txt="1")
    monkeypatch.chdir(tmp_path / "saved")
    for place in (".", tmp_path / "saved"):
        save(place, a_txt="2")
        assert os.listdir() == ["a.txt"] and (tmp_path / "saved" / "a.txt").read_text() == "2"


@exchanges
def test_what_keeps_its_place(tmp_path, monkeypatch):
    """What others may hold on to, or a new directory could not be like."""
    directory = tmp_path / "saved"
    save(directory, a_txt="1")
    assert files._can_be_exchanged(str(directory))
    directory.chmod(0o2755)
    assert not files._can_be_exchanged(str(directory))
    directory.chmod(0o755)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert not files._can_be_exchanged(str(directory))
    monkeypatch.undo()
    inode = directory.stat().st_ino
    for number in range(files._MOST_OTHERS + 1):
        (directory / f"{number}.png").touch()
    save(directory, a_txt="2")
    assert directory.stat().st_ino == inode and len(os.listdir(directory)) == files._MOST_OTHERS + 2


@exchanges
@pytest.mark.parametrize("where", ["link", "exchange"])
def test_file_systems_that_cannot(tmp_path, monkeypatch, where):
    save(tmp_path / "saved", a_txt="1")
    (tmp_path / "saved" / "README").touch()

    def refuse(*arguments, **options):
        raise OSError(errno.EXDEV, "not here")

    if where == "link":
        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.setattr(files, "_exchange_names", lambda: refuse)
    save(tmp_path / "saved", a_txt="2")
    assert tree(tmp_path / "saved") == {"a.txt": "2", "README": ""} and os.listdir(tmp_path) == ["saved"]


def interrupted(directory, monkeypatch):
    """Saves to ``directory``, and stops when that is committed."""

    def stop(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "_can_be_exchanged", lambda target: False)
        patch.setattr(files, "_move", stop)
        with pytest.raises(KeyboardInterrupt):
            save(directory, a_txt="2", b_txt="2")


def test_the_next_reader_completes_a_save(tmp_path, monkeypatch):
    save(tmp_path / "saved" / "sub", a_txt="1", old_txt="1")
    interrupted(tmp_path / "saved" / "sub", monkeypatch)
    assert tree(tmp_path)["saved/sub/a.txt"] == "1"
    assert settled(str(tmp_path / "saved" / "sub")) == str(tmp_path / "saved" / "sub")
    assert tree(tmp_path) == {"saved/sub/a.txt": "2", "saved/sub/b.txt": "2"}


def test_a_save_into_the_parent_is_completed_too(tmp_path, monkeypatch):
    save(tmp_path / "saved" / "sub", a_txt="1")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_can_be_exchanged", lambda target: False)
        patch.setattr(files, "_complete", lambda target: None)
        with replacing(tmp_path / "saved") as new:
            save(os.path.join(new, "sub"), a_txt="2")
    assert read_whole(str(tmp_path / "saved" / "sub"), os.listdir) == ["a.txt"]
    assert tree(tmp_path) == {"saved/sub/a.txt": "2"}


def test_who_may_not_write_reads_it_completed(tmp_path, monkeypatch):
    save(tmp_path / "saved", a_txt="1", old_txt="1", c_txt="1")
    interrupted(tmp_path / "saved", monkeypatch)
    before = tree(tmp_path)

    def refuse(target):
        raise PermissionError(errno.EROFS, "read-only")

    monkeypatch.setattr(files, "_complete", refuse)

    def read(directory):
        return {name: content(directory, name) for name in os.listdir(directory)}

    assert read_whole(str(tmp_path / "saved"), read) == {"a.txt": "2", "b.txt": "2", "c.txt": "1"}
    assert tree(tmp_path) == before


def test_a_strangers_directory_reaches_nothing_outside(tmp_path):
    """What claims to be a committed save may not write or remove through links."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keep").write_text("mine")
    bad = tmp_path / "downloaded"
    committed = bad / COMMITTED
    (committed / "way").mkdir(parents=True)
    (committed / "way" / "written").write_text("x")
    (committed / files._GONE / "other").mkdir(parents=True)
    (committed / files._GONE / "other" / "keep").touch()
    for name in ("way", "other"):
        (bad / name).symlink_to("../outside")
    settled(str(bad))
    assert tree(tmp_path / "outside") == {"keep": "mine"} and not committed.exists()


@pytest.mark.parametrize("link", [COMMITTED, os.path.join(COMMITTED, files._GONE)])
def test_a_strangers_links_in_place_of_a_save(tmp_path, link):
    (tmp_path / "outside" / files._GONE).mkdir(parents=True)
    (tmp_path / "outside" / files._GONE / "a.txt").write_text("mine")
    save(tmp_path / "downloaded", a_txt="1")
    place = tmp_path / "downloaded" / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "outside" / (files._GONE if link != COMMITTED else ""))
    settled(str(tmp_path / "downloaded"))
    assert tree(tmp_path / "outside") == {os.path.join(files._GONE, "a.txt"): "mine"}
    assert (tmp_path / "downloaded" / "a.txt").read_text() == "1"


@pytest.mark.parametrize("at_once", [2, 4])
def test_without_locks_saves_in_place_are_not_mixed(tmp_path, monkeypatch, at_once):
    """As on disks that have none, or when readers hold one for long."""
    monkeypatch.setattr(files, "_can_be_exchanged", lambda target: False)
    monkeypatch.setattr(temporary, "LONGEST_WAIT", 0)
    save(tmp_path / "saved", a_txt="0", README="0")

    def write(number):
        for _ in range(10):
            save(tmp_path / "saved", **{f"{letter}_json": str(number) for letter in "abcde"})

    at_the_same_time(write, range(at_once))
    settled(str(tmp_path / "saved"))
    found = tree(tmp_path / "saved")
    assert found["README"] == "0" and not [*(tmp_path / "saved").glob(".*")]


@not_root
def test_others_cannot_commit_in_a_shared_directory(tmp_path, monkeypatch):
    """In one such as /tmp, a save that waits to be completed has to be its owner's or one's own."""
    tmp_path.chmod(0o1777)
    (tmp_path / COMMITTED / "model").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    assert files.is_interrupted(str(tmp_path))
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: os.stat_result((*real(path)[:4], 12345, *real(path)[5:])))
    assert not files.is_interrupted(str(tmp_path))


def test_a_reader_reads_again_after_a_save(tmp_path, monkeypatch):
    save(tmp_path / "saved", a_json="1", b_json="1")
    monkeypatch.setattr(temporary, "LONGEST_WAIT", 0.01)
    reads = []

    def read(directory):
        reads.append(content(directory, "a.json"))
        if len(reads) == 1:
            save(tmp_path / "saved", a_json="2", b_json="2")
        return reads[-1], content(directory, "b.json")

    assert read_whole(str(tmp_path / "saved"), read) == ("2", "2") and len(reads) == 2


def test_an_error_of_a_mixture_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(temporary, "LONGEST_WAIT", 0.01)
    save(tmp_path / "saved", a_json="1")
    reads = []

    def read(directory):
        reads.append(1)
        if len(reads) == 1:
            save(tmp_path / "saved", a_json="2")
            raise CheckpointError("a mixture")
        if len(reads) == 2:
            return "read"

    assert read_whole(str(tmp_path / "saved"), read) == "read"
    with pytest.raises(CheckpointError, match="is damaged"):
        read_whole(str(tmp_path / "saved"), damaged)


def content(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def damaged(directory):
    raise CheckpointError(f"{directory} is damaged")


def test_two_writers_at_once(target):
    """Both end, the last one wins, and nothing is mixed or left."""
    contents = [{f"{letter}_json": str(number) for letter in "abcde"} for number in range(4)]

    def write(content):
        for _ in range(5):
            save(target, **content)

    at_the_same_time(write, contents)
    found = tree(target)
    assert len({found[f"{letter}.json"] for letter in "abcde"}) == 1 and found["README"] == "the user's"
    assert os.listdir(target.parent) == ["saved"] and not [*target.glob(".*")]


def test_what_the_living_write_is_no_leftover(tmp_path):
    other = os.fork()
    if not other:
        temporary.make_directory(str(tmp_path))
        temporary.make_file(str(tmp_path))
        while True:
            signal.pause()
    while len(os.listdir(tmp_path)) < 2:
        time.sleep(0.01)
    time.sleep(0.05)
    try:
        assert temporary.find_leftovers(str(tmp_path)) == temporary.remove_leftovers(str(tmp_path)) == []
        save(tmp_path / "saved", a_txt="1")
        assert len(os.listdir(tmp_path)) == 3
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert len(temporary.find_leftovers(str(tmp_path))) == 2
    with atomic_write(tmp_path / "file"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "saved"]


def test_a_file_keeps_its_permissions_and_a_new_one_has_the_usual(tmp_path):
    before = os.umask(0o027)
    try:
        for path, mode in ((tmp_path / "new", 0o640), (tmp_path / "old", 0o600)):
            if path.name == "old":
                path.touch(0o600)
            with atomic_write(path) as file:
                file.write(b"x")
            assert stat.S_IMODE(path.stat().st_mode) == mode
        save(tmp_path / "saved", a_txt="1")
        assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == 0o750
    finally:
        os.umask(before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    thread.start()
    with atomic_write(tmp_path / "pipe") as file:
        file.write(b"through")
    thread.join()
    assert read == [b"through"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with atomic_write(os.devnull) as file:
        file.write(b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_names_that_are_taken_are_kept(tmp_path):
    names = [write_new(tmp_path / "x.png", content) for content in (b"1", b"2", b"3")]
    assert [os.path.basename(name) for name in names] == ["x.png", "x-2.png", "x-3.png"]
    assert tree(tmp_path) == {"x.png": "1", "x-2.png": "2", "x-3.png": "3"}


def test_a_disk_without_room(tmp_path, monkeypatch):
    with pytest.raises(DiskError, match=r"saved cannot be saved: it needs 1000000000.00 GB.*free"):
        require_space(str(tmp_path), 10**18, tmp_path / "saved")
    with pytest.raises(DiskError, match="saved"), replacing(tmp_path / "saved", needed=10**18):
        raise AssertionError
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        with pytest.raises(DiskError, match=r"x could not be written .*GB free"), atomic_write(tmp_path / "x"):
            raise OSError(number, "broken")
        with pytest.raises(OSError, match="could not be written"), replacing(tmp_path / "saved"):
            raise OSError(number, "broken")
    assert os.listdir(tmp_path) == []


def test_what_can_be_seen_before_the_work(tmp_path, monkeypatch):
    require_writable(tmp_path / "x", "--output")
    require_writable(os.devnull, "--output")
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match=r"--output: .* is a directory"):
        require_writable(tmp_path, "--output")
    with pytest.raises(InputError, match=r"--output: the directory .*missing does not exist"):
        require_writable(tmp_path / "missing" / "x", "--output")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("usage", (), {"free": 0})())
    with pytest.raises(DiskError, match=r"--output: the disk of .* is full"):
        require_writable(tmp_path / "x", "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="--output: no permission"):
        require_writable(tmp_path / "x", "--output")


def test_what_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file"):
        save(tmp_path / "file", a_txt="1")
    with pytest.raises(OSError, match="missing"), atomic_write(tmp_path / "missing" / "x"):
        pass
