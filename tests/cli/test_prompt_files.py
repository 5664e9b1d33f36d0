"""A file with a prompt on each line, whatever wrote it."""

import os
import threading

import pytest

from ppsd3.cli.prompt_files import read_prompts
from ppsd3.utils.errors import InputError


@pytest.mark.parametrize(
    "content",
    [
        "a cat\na dog, at night\n",
        "a cat\r\n\r\n  a dog, at night",
        "\ufeffa cat\ra dog, at night\n\n",
    ],
)
def test_each_line_is_a_prompt(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content.encode())
    assert read_prompts(str(path)) == ["a cat", "a dog, at night"]


def test_a_pipe_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("a cat\n",))
    writer.start()
    assert read_prompts(str(path)) == ["a cat"]
    writer.join()


@pytest.mark.parametrize(
    "content, says",
    [
        (b"\xe9", "cannot be read"),
        ("é".encode("utf-16"), "cannot be read"),
        (b"\n \n", "holds no prompt"),
        (b"a" * ((1 << 24) + 1), "more than 16,777,216 characters"),
    ],
)
def test_what_is_no_such_file(tmp_path, content, says):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"--prompt-file {path} .*{says}"):
        read_prompts(str(path))


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(InputError, match=r"--prompt-file .* cannot be read"):
            read_prompts(str(path))


def test_an_endless_device():
    with pytest.raises(InputError, match="more than"):
        read_prompts("/dev/zero")
