"""What is told and shown: one line, nothing that moves a terminal's cursor."""

import os
import subprocess
import sys

import pytest

from gptjax.errors import BadInput, exit_code_of, nearest, printable


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


@pytest.mark.parametrize("place", ["stream", "end"])
@pytest.mark.parametrize(("full", "code", "words"), [(True, 2, "the disk is full"), (False, 1, "")])
def test_output_that_nobody_takes(place, full, code, words):
    lines = 100_000 if place == "stream" else 1
    command = [
        sys.executable,
        "-c",
        "import sys; from gptjax.errors import exit_code_of\n"
        f"sys.exit(exit_code_of(lambda: [print('line') for _ in range({lines})] and 0))",
    ]
    reader, writer = os.pipe()
    os.close(reader)
    if full:
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == code and words in done.stderr
    assert done.stderr.count("\n") == bool(words), done.stderr


def test_exit_codes(capsys):
    def fails(error):
        raise error

    assert exit_code_of(lambda: 75) == 75
    assert exit_code_of(lambda: fails(BadInput("no"))) == 2
    assert exit_code_of(lambda: fails(KeyboardInterrupt())) == 130
    assert exit_code_of(lambda: fails(SystemExit(0))) == 0
    assert capsys.readouterr().err == "error: no\ninterrupted\n"
    with pytest.raises(FileNotFoundError):  # no matter of the output
        exit_code_of(lambda: os.stat("/no/where"))
