"""Code is loaded from directories of the user's own, whatever the environment says."""

import os
import pwd
import stat

import pytest

from ppsd3.utils import user_directories
from ppsd3.utils.user_directories import cache_directory, home_directory, name_hub_caches, private_directory


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user without a home, whom the system does not list; the current directory is somewhere else."""

    def unknown(number):
        raise KeyError(number)

    for variable in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "HF_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    (tmp_path / "here").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(user_directories.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path


def test_without_a_home(nobody):
    assert home_directory() is None
    path = cache_directory()
    assert path == str(nobody / "tmp" / f"ppsd3-{os.geteuid()}") == cache_directory()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700 and os.listdir() == []


def test_the_systems_list_of_users_knows_the_home(nobody, monkeypatch):
    entry = type("entry", (), {"pw_dir": str(nobody / "home")})
    monkeypatch.setattr(pwd, "getpwuid", lambda number: entry)
    for value in (None, "", "."):
        if value is not None:
            monkeypatch.setenv("HOME", value)
        assert cache_directory() == str(nobody / "home" / ".cache" / "ppsd3")


def test_a_relative_cache_is_ignored(nobody, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(nobody / "home"))
    assert cache_directory() == str(nobody / "home" / ".cache" / "ppsd3") and os.listdir() == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(nobody / "cache"))
    assert cache_directory() == str(nobody / "cache" / "ppsd3")


def test_what_waits_there_in_another_users_name_is_refused(nobody, monkeypatch):
    place = nobody / "tmp" / f"ppsd3-{os.geteuid()}"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(OSError, match=r"others may write to .*chmod go-w"):
        cache_directory()
    place.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(OSError, match="another user"):
        private_directory(str(place))
    (nobody / "link").symlink_to(place)
    with pytest.raises(OSError, match="another user"):
        private_directory(str(nobody / "link"))


def test_a_link_of_ones_own_is_followed(tmp_path):
    (tmp_path / "large-disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to("large-disk")
    assert private_directory(str(tmp_path / "cache")) == str(tmp_path / "cache")


def test_the_hubs_caches(nobody, monkeypatch):
    name_hub_caches()
    assert os.environ["HF_HOME"] == str(nobody / "tmp" / f"ppsd3-{os.geteuid()}" / "huggingface")
    assert os.path.isabs(os.environ["MODELSCOPE_CACHE"]) and os.listdir() == []
    monkeypatch.delenv("MODELSCOPE_CACHE")
    monkeypatch.setenv("HF_HOME", "/mine")
    monkeypatch.setenv("HOME", str(nobody))
    name_hub_caches()
    assert os.environ["HF_HOME"] == "/mine" and "MODELSCOPE_CACHE" not in os.environ
