"""Modelfiles: parse, render, and what neither can carry."""

from __future__ import annotations

import string
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Server
from toolkit.errors import UsageError
from toolkit.ollama.syntax import PARAMETERS, Message, Modelfile, parse, read_modelfile, render, render_for_people

EXAMPLE = '''\
# comment: not read
from ./model.gguf
PARAMETER num_ctx 4096
parameter temperature 0.25
PARAMETER stop "<|im_end|>"
PARAMETER stop """
say "when"
"""
System """You are "kind".
You are brief."""
MESSAGE user Is it "raining"?
MESSAGE assistant "  two spaces  "
LICENSE Apache-2.0
LICENSE "MIT"
REQUIRES 0.30.0
'''


def test_parse_reads_every_instruction_of_the_example() -> None:
    assert parse(EXAMPLE) == Modelfile(
        models=("./model.gguf",),
        parameters=(("num_ctx", 4096), ("temperature", 0.25), ("stop", "<|im_end|>"), ("stop", '\nsay "when"\n')),
        system='You are "kind".\nYou are brief.',
        requires="0.30.0",
        licenses=("Apache-2.0", "MIT"),
        messages=(Message("user", 'Is it "raining"?'), Message("assistant", "  two spaces  ")),
    )


def test_render_of_the_example_is_readable_and_parses_to_the_same() -> None:
    text = render(parse(EXAMPLE))
    assert text == (
        'FROM ./model.gguf\nSYSTEM """You are "kind".\nYou are brief."""\nREQUIRES 0.30.0\nPARAMETER num_ctx 4096\n'
        'PARAMETER temperature 0.25\nPARAMETER stop "<|im_end|>"\nPARAMETER stop """\nsay "when"\n"""\n'
        'MESSAGE user Is it "raining"?\nMESSAGE assistant "  two spaces  "\nLICENSE Apache-2.0\nLICENSE MIT\n'
    )
    assert parse(text) == parse(EXAMPLE)


def test_the_last_system_wins_and_windows_line_ends_are_read() -> None:
    found = parse("FROM a\r\nSYSTEM one\r\n\r\nSYSTEM two\r\nPARAMETER use_mmap true\r\n")
    assert found == Modelfile(models=("a",), system="two", parameters=(("use_mmap", True),))


printable = st.text(
    st.sampled_from(string.printable.replace("\x0b", "").replace("\x0c", "") + "äß好🙂“”#"), max_size=40
)
hostile = st.text(st.sampled_from('"""" \n\r\t#ab'), max_size=14)
values = st.one_of(printable, hostile)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
parameters = st.one_of(
    st.tuples(st.sampled_from([n for n, t in PARAMETERS.items() if t is int]), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.sampled_from([n for n, t in PARAMETERS.items() if t is float]), numbers),
    st.tuples(st.just("use_mmap"), st.booleans()),
    st.tuples(st.just("stop"), values),
)
modelfiles = st.builds(
    Modelfile,
    models=st.lists(values.filter(bool), min_size=1, max_size=2).map(tuple),
    parameters=st.lists(parameters, max_size=5).map(tuple),
    template=st.none() | values,
    system=st.none() | values,
    requires=st.sampled_from([None, "0.34.1", "v0.30.0-rc1"]),
    licenses=st.lists(values, max_size=2).map(tuple),
    messages=st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), values), max_size=3).map(
        tuple
    ),
)


@settings(max_examples=600, deadline=None)
@given(modelfiles)
def test_parse_of_render_is_the_identity_where_render_does_not_refuse(modelfile: Modelfile) -> None:
    try:
        text = render(modelfile)
    except UsageError as refused:
        assert "a Modelfile cannot hold this text" in refused.message
        return
    assert parse(text) == modelfile
    assert render(parse(text)) == text


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('FROMSYETgpar \n\t"#x1.'), max_size=60))
def test_any_text_parses_or_is_refused_and_what_parses_renders_back(text: str) -> None:
    try:
        found = parse(text, partial=True)
    except UsageError as error:
        assert error.message.startswith("Modelfile:")
        return
    assert parse(render(found), partial=True) == found


@pytest.mark.parametrize(
    ("character", "name"),
    [("\u200d", "U+200D"), ("\u00a0", "U+00A0"), ("\u3000", "U+3000"), ("\x07", "U+0007"), ("\u202e", "U+202E")],
)
def test_text_that_ollamas_parser_would_change_is_refused_by_name(character: str, name: str) -> None:
    modelfile = Modelfile(models=("m",), system=f"family: 👩{character}👧")
    with pytest.raises(UsageError, match="SYSTEM: a Modelfile cannot hold this text: Ollama's parser drops") as caught:
        render(modelfile)
    assert name in caught.value.message
    assert "API" in caught.value.hint
    assert (
        render_for_people(modelfile)
        .splitlines()[1]
        .startswith(f"# SYSTEM is left out here: a Modelfile cannot hold it ({name}"[:20])
    )
    assert parse(render_for_people(modelfile)).system is None


def test_three_quotes_at_a_line_end_are_refused_and_elsewhere_carried() -> None:
    with pytest.raises(UsageError, match="closes every quote"):
        render(Modelfile(models=("m",), system='code:\n"""\nx = 1\n"""\nend'))
    inside = Modelfile(models=("m",), system='one """two""" three\nfour')
    assert parse(render(inside)) == inside


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\nPARAMTER num_ctx 1\n", "M:2: unknown instruction PARAMTER (did you mean PARAMETER?)"),
        ("FROM a\nPARAMETER num_ctxx 1\n", "M:2: unknown PARAMETER num_ctxx (did you mean num_ctx?)"),
        ("FROM a\n\n\nPARAMETER num_ctx many\n", "M:4: PARAMETER num_ctx must be a whole number, not 'many'"),
        ("FROM a\nPARAMETER temperature nan\n", "M:2: PARAMETER temperature must be a number, not 'nan'"),
        ("FROM a\nPARAMETER use_mmap yes\n", "M:2: PARAMETER use_mmap must be true or false, not 'yes'"),
        ("FROM a\nPARAMETER mirostat 1\n", "M:2: PARAMETER mirostat: Ollama 0.34 ignores it"),
        ("FROM a\nPARAMETER typical_p 1\n", "M:2: PARAMETER typical_p: Ollama 0.34 refuses it"),
        ("FROM a\nMESSAGE tool hello\n", "M:2: MESSAGE 'tool': the role must be one of system, user, assistant"),
        ("FROM a\nSYSTEM\n", "M:2: SYSTEM has no value"),
        ('FROM a\r\nSYSTEM """one\r\ntwo\r\n', "M:2: the quote that SYSTEM opens is never closed"),
        ("FROM a\nREQUIRES soon\n", "M:2: REQUIRES 'soon' is no version"),
        ("SYSTEM hello\n", "M: no FROM line"),
        ("FROM \nSYSTEM x", "M:1: FROM names no file"),
    ],
)
def test_faults_name_file_line_and_value(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "M")
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == 2


def test_files_are_read_as_ollama_reads_them_and_faults_name_them(tmp_path: Path) -> None:
    path = tmp_path / "medical"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("SYSTEM 你好\n", encoding=encoding)
        assert read_modelfile(path, partial=True).system == "你好"
    path.write_bytes("SYSTEM 你好\n".encode("gbk"))
    with pytest.raises(UsageError, match="medical is not UTF-8"):
        read_modelfile(path, partial=True)
    with pytest.raises(UsageError, match="nothere cannot be read"):
        read_modelfile(tmp_path / "nothere")


@pytest.mark.ollama
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=values, message=values.filter(bool), stop=values.filter(bool))
def test_ollamas_own_parser_reads_what_we_render(
    system: str, message: str, stop: str, ollama_server: Server, smollm2_gguf: Path, tmp_path: Path
) -> None:
    # FROM a name: only layers are written, no weights. The base is made once, from the smallest real file.
    if "base:latest" not in ollama_server.client.models():
        digest = ollama_server.client.upload(smollm2_gguf)
        ollama_server.client.create("base", {"files": {"model.gguf": digest}})
    wanted = Modelfile(
        models=("base",), system=system or None, messages=(Message("user", message),), parameters=(("stop", stop),)
    )
    try:
        text = render(wanted)
    except UsageError:
        return
    path = tmp_path / "Modelfile"
    path.write_text(text, encoding="utf-8", newline="")
    command = [str(ollama_server.binary), "create", "parsed", "-f", str(path)]
    done = subprocess.run(
        command, env={"OLLAMA_HOST": ollama_server.address, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = ollama_server.client.show("parsed")
    assert shown.get("system", "") == system
    assert shown["messages"] == [{"role": "user", "content": message}]
