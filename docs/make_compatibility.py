"""Writes docs/compatibility.md and its Chinese version: ``python docs/make_compatibility.py``.

The probes of tests/compat are run, and what comes of them is the page. ``--check`` only says whether it is true.
"""

import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from compat import probes  # noqa: E402

PAGES = {"en": ROOT / "docs/compatibility.md", "zh": ROOT / "docs/zh/compatibility.md"}

TEXTS = {
    "en": {
        "title": "# What of diffusers and ppdiffusers works here",
        "other": "[简体中文](zh/compatibility.md)",
        "made": "<!-- Written by docs/make_compatibility.py: change the code or tests/compat, not this page. -->",
        "introduction": (
            "Calls and keywords of programs for the two libraries, tried after changing the import to `ppsd3`: a test "
            "makes every one of them. What is refused says what to use instead; that message is in the last column. "
            "[Migrating](migrating.md) shows whole programs side by side, [differences](differences.md) explains."
        ),
        "names": (
            '`pipe`, `i2i`, `inpaint`, `control` and `pag` are pipelines; `few` is `{"num_inference_steps": 2}`; names '
            "in capitals are files and directories."
        ),
        "summary": ("library", "calls", "works", "works differently", "refused", "raw errors"),
        "header": ("call", "", "what to know"),
        "works": "works",
        "differs": "differs",
        "refused": "refused",
        "raw error": "raw error",
    },
    "zh": {
        "title": "# diffusers 与 ppdiffusers 的哪些调用在这里可用",
        "other": "[English](../compatibility.md)",
        "made": "<!-- 由 docs/make_compatibility.py 写出：请改代码或 tests/compat，不要改本页。 -->",
        "introduction": (
            "为这两个库写的程序里的调用与参数，把 import 换成 `ppsd3` 之后逐个试过：每一个都由测试执行。"
            "被拒绝的调用会说明该用什么，最后一列就是那条信息。完整程序的对照见[迁移](migrating.md)，原因见[差异](differences.md)。"
        ),
        "names": (
            "`pipe`、`i2i`、`inpaint`、`control`、`pag` 是各种 pipeline；"
            '`few` 是 `{"num_inference_steps": 2}`；大写的名字是文件与目录。'
        ),
        "summary": ("库", "调用", "可用", "行为不同", "拒绝", "原始错误"),
        "header": ("调用", "", "说明"),
        "works": "可用",
        "differs": "不同",
        "refused": "拒绝",
        "raw error": "原始错误",
    },
}


def outcomes():
    """library -> [(section, [(probe, outcome)])], from running every probe."""
    with tempfile.TemporaryDirectory() as directory:
        names = probes.Names(directory)
        return {
            library: [
                (section, [(probe, probes.run(probe, names)) for probe in section.probes]) for section in sections
            ]
            for library, sections in ((library, probes.read(library)) for library in probes.LIBRARIES)
        }


def kind_of(probe, outcome):
    """The word for the second column."""
    return "differs" if outcome.kind == "works" and probe.difference else outcome.kind


def page(found, language):
    """The text of the page in "en" or "zh"."""
    texts, index = TEXTS[language], ("en", "zh").index(language)
    counts = []
    for library, sections in found.items():
        kinds = [kind_of(*row) for _, rows in sections for row in rows]
        numbers = [kinds.count(kind) for kind in ("works", "differs", "refused", "raw error")]
        counts.append([library, str(len(kinds)), *map(str, numbers)])
    parts = [texts["title"], texts["other"], texts["made"], texts["introduction"], _table(texts["summary"], counts)]
    parts.append(texts["names"])
    for library, sections in found.items():
        parts.append(f"## {library}")
        for section, rows in sections:
            lines = []
            for probe, outcome in rows:
                note = probe.difference[index] if kind_of(probe, outcome) == "differs" else outcome.message
                lines.append([f"`{probe.code}`", texts[kind_of(probe, outcome)], note.replace("<", "&lt;")])
            parts += [f"### {section.title[index]}", _table(texts["header"], lines)]
    return "\n\n".join(parts) + "\n"


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    found = outcomes()
    pages = {path: page(found, language) for language, path in PAGES.items()}
    if "--check" in sys.argv:
        wrong = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
        sys.exit(f"{', '.join(wrong)} is not what docs/make_compatibility.py writes." if wrong else 0)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
