"""What the guard before the page refuses, and what `ppsd3 webui` asks for; without Gradio."""

import asyncio
import base64
import json

import pytest

from ppsd3.cli.main import main
from ppsd3.webui.app import MOST_UPLOAD, Guard


async def page(scope, receive, send):
    read = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        read += len(message["body"])
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(read).encode()})


def ask(guard, path="/", body=(b"",), **headers):
    """(status, headers, body) of the answer; None if there is none."""
    sent, parts = [], list(body)

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    named = {"host": "127.0.0.1:7860", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    asyncio.run(guard({"type": "http", "path": path, "headers": raw}, receive, send))
    return (sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]) if sent else None


@pytest.fixture
def local(tmp_path):
    (tmp_path / "out").mkdir()
    return Guard(page, (str(tmp_path / "out"),), None, ("127.0.0.1", "localhost", "[::1]"))


@pytest.mark.parametrize(
    "host, status",
    [("127.0.0.1:7860", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403)],
)
def test_only_this_machine_is_answered(local, host, status):
    assert ask(local, host=host)[0] == status


def test_other_sites_may_not_post(local):
    assert ask(local, origin="http://127.0.0.1:7860")[0] == 200
    assert ask(local, origin="http://evil.example")[0] == 403
    assert ask(local, origin="null")[0] == 403


def test_nothing_may_come_from_elsewhere(local):
    policy = ask(local)[1][b"content-security-policy"].decode()
    assert "default-src 'self'" in policy and "http" not in policy


def test_files_outside_are_not_served(local, tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "out" / "a.png").write_text("x")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "secret")
    at = f"/en/gradio_api/file={tmp_path}"
    assert ask(local, f"{at}/out/a.png")[0] == 200
    for path in (
        f"{at}/secret",
        f"{at}/out/../secret",
        f"{at}/out/link",
        f"{at}/out2/a",
        "/en/gradio_api/file=etc/passwd",
    ):
        assert ask(local, path)[0] == 403, path


def test_events_may_not_name_other_files(local, tmp_path):
    """A mounted Gradio page would copy the file to where it serves it from."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "secret")

    def event(path):
        body = json.dumps({"data": ["a", [{"value": {"path": path, "meta": {"_type": "gradio.FileData"}}}]]}).encode()
        return ask(local, body=[body[:9], body[9:]], content_type="application/json")[0]

    assert event(f"{tmp_path}/out/a.png") == event(None) == 200
    for path in (f"{tmp_path}/secret", f"{tmp_path}/out/../secret", f"{tmp_path}/out/link", "a.png", ["/etc/passwd"], 7,
                 "http://elsewhere.example/a.png", "file:///etc/passwd", f"{tmp_path}/out/\0"):  # fmt: skip
        assert event(path) == 400, path
    assert ask(local, body=[b"[" * 100_000], content_type="application/json")[0] == 400
    assert ask(local, body=[b"path=/etc/passwd"], content_type="text/plain")[0] == 400


def test_the_body_that_was_looked_at_comes_whole(local):
    body = json.dumps({"data": "x" * 5000}).encode()
    assert ask(local, body=[body[:2000], body[2000:]])[2] == str(len(body)).encode()


def test_large_bodies_are_refused_however_they_come(local):
    assert ask(local, content_length=str(2 * MOST_UPLOAD))[0] == 413
    assert ask(local, content_length="x")[0] == 400
    for kind in ("multipart/form-data; boundary=x", "application/json"):
        assert ask(local, body=[b"1" * (1 << 20)] * 30, content_type=kind) is None  # it stops reading
    assert ask(local, body=[b"0" * (1 << 20)] * 2, content_type="multipart/form-data; boundary=x")[0] == 200


def test_a_password_is_asked_for(tmp_path):
    guard = Guard(page, (str(tmp_path),), "geheim 密码", None)

    def known(text, kind="Basic"):
        return ask(guard, authorization=f"{kind} {base64.b64encode(text.encode()).decode()}")[0]

    assert ask(guard)[0] == 401
    assert known("me:geheim 密码") == known(":geheim 密码", "basic") == 200
    assert known("me:geheim") == known("geheim 密码") == known("me:geheim 密码", "Bearer") == 401
    assert ask(guard, authorization="Basic ***")[0] == 401


def test_listening_needs_a_password(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PPSD3_PASSWORD", raising=False)
    assert main(["webui", "--listen", "0.0.0.0"]) == 2
    assert "PPSD3_PASSWORD" in capsys.readouterr().err
    (tmp_path / "empty").write_text("\n")
    assert main(["webui", "--listen", "0.0.0.0", "--password-file", str(tmp_path / "empty")]) == 2
    assert "empty" in capsys.readouterr().err
    assert main(["webui", "--models", str(tmp_path / "none")]) == 2
    assert "--models" in capsys.readouterr().err
