"""What is told and shown: one line, nothing that moves a terminal's cursor."""

import pytest

from gptjax.errors import BadInput, nearest, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f():\n\treturn 'é\u00a0🙂 👩\u200d🔬'", "def f():\n\treturn 'é\u00a0🙂 👩\u200d🔬'"),
        ("\x1b[2J a\b\0\r\x7f\x9b", r"\x1b[2J a\x08\x00\r\x7f\x9b"),
        ("\u202etxt.exe \ud800 \u2028", r"\u202etxt.exe \ud800 \u2028"),
        ("", ""),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_a_message_is_one_line_without_controls():
    assert str(BadInput("no\x1b[31m such\n  \udcff file")) == r"no\x1b[31m such \udcff file"


def test_nearest():
    assert nearest("Rotery", ["learned", "rotary", "none"]) == ["rotary"]
    assert nearest("q", ["learned"]) == []
