"""Every JSON file ends in a value, or in an error of ours that names the file: no limit is Python's own."""

import errno
import os
import threading

import pytest

from ppsd3.utils.errors import CheckpointNotFoundError, ConfigError, InputError
from ppsd3.utils.json_files import parse_json, parse_json_object, read_json, read_small_text

PURPOSE = "the configuration of a test"

# What is in the file, and what the error says beside the file's name and purpose.
BROKEN = {
    "empty": (b"", "is empty"),
    "spaces": (b" \n\n", "is empty"),
    "no JSON": (b"{a: 1}", "not valid JSON"),
    "cut short": (b'{"a": [1, 2', "not valid JSON"),
    "two values": (b'{"a": 1} {"b": 2}', "not valid JSON"),
    "a list": (b"[1, 2]", "holds a list, not a JSON object"),
    "a number": (b"3", "holds a int, not a JSON object"),
    "null": (b"null", "holds a NoneType"),
    "a key twice": (b'{"a": {"deep": 1, "deep": 1}}', "the key 'deep' twice"),
    "a long key twice": (b'{"%s": 1, "%s": 2}' % (b"k" * 10**5, b"k" * 10**5), "twice"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not text in UTF-8 (byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "UTF-16"),
    "half a surrogate pair": (rb'{"a": "\ud800"}', "not Unicode"),
    "half a surrogate pair in a key": (rb'{"\uDFFF": 1}', "not Unicode"),
    "65 levels": (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64 levels"),
    "100,000 levels": (b"[" * 10**5, "deeper than 64 levels"),
    "100,000 levels in a string's place": (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "deeper than 64"),
    "a long number": (b'{"a": ' + b"9" * 10**5 + b"}", "a number of 100000 digits"),
    "a long negative number": (b'{"a": -' + b"9" * 10**5 + b"}", "digits"),
    "control characters": (b'{"a": "\x00\x01"}', "not valid JSON"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "a pickle": (b"PK\x03\x04\xff\xff", "zip archive"),
    "gzip": (b"\x1f\x8b\x08\x00", "gzip"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path, name):
    content, says = BROKEN[name]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json(path, PURPOSE)
    assert says in str(caught.value)
    assert f"{path} ({PURPOSE})" in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    "content, value",
    [
        (b"\xef\xbb\xbf{}", {}),
        ('{"word": "猫"}'.encode(), {"word": "猫"}),
        (rb'{"a": "\ud83d\ude00"}', {"a": "😀"}),
        (rb'{"a": "\\ud800"}', {"a": r"\ud800"}),
        (b'{"a": [Infinity, -Infinity]}', {"a": [float("inf"), -float("inf")]}),
        (b'{"a": 1, "b": {"a": 1}}', {"a": 1, "b": {"a": 1}}),
        (b'{"a": ' + b"9" * 100 + b"}", {"a": int("9" * 100)}),
    ],
)
def test_a_sound_file_is_read(tmp_path, content, value):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert read_json(path, PURPOSE) == value


def test_64_levels_are_read():
    value = parse_json_object('{"a":' * 64 + "1" + "}" * 64, "it")
    for _ in range(64):
        value = value["a"]
    assert value == 1


def test_what_is_no_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="does not exist; it should hold the configuration"):
        read_json(tmp_path / "none.json", PURPOSE)
    with pytest.raises(CheckpointNotFoundError, match="does not exist"):
        read_json(tmp_path / "none" / "none.json", PURPOSE)
    with pytest.raises(CheckpointNotFoundError, match="does not exist"):
        read_json("a\0b", PURPOSE)
    with pytest.raises(ConfigError, match="is a directory"):
        read_json(tmp_path, PURPOSE)
    os.symlink(tmp_path / "nowhere", tmp_path / "link.json")
    with pytest.raises(CheckpointNotFoundError, match="does not exist"):
        read_json(tmp_path / "link.json", PURPOSE)
    with pytest.raises(ConfigError, match="a device or a pipe"):
        read_json("/dev/zero", PURPOSE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    caught = []

    def read():
        try:
            read_json(tmp_path / "config.json", PURPOSE)
        except ConfigError as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert "a device or a pipe" in str(caught)


def test_a_file_without_permission(tmp_path, monkeypatch):
    """The system's refusal is stood in for: root may read everything."""
    path = tmp_path / "config.json"
    path.write_text("{}")

    def refuse(name, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(name))

    monkeypatch.setattr("ppsd3.utils.json_files.open", refuse, raising=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(path, PURPOSE)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="1,099,511,627,776 bytes"):
        read_json(path, PURPOSE)
    with pytest.raises(InputError, match="more than any such file"):
        read_small_text(path, PURPOSE, error=InputError)


def test_the_callers_type_of_error():
    with pytest.raises(InputError, match="the metadata is not valid JSON"):
        parse_json("{", "the metadata", InputError)
