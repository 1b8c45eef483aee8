"""Encodings told apart, on short, mixed and misleading files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toolkit.data.encodings import Decoded, decode
from toolkit.errors import DataError

SIMPLIFIED = (
    "ask,answer\n发烧了怎么办？,多喝水，注意休息；如果三天后还不退烧，请去看医生。\n"
    "头痛是什么原因引起的？,常见原因有睡眠不足和紧张。\n"
)
TRADITIONAL = (
    "ask,answer\n發燒了怎麼辦？,多喝水，注意休息；如果三天後還不退燒，請去看醫生。\n"
    "頭痛是什麼原因引起的？,常見原因有睡眠不足和緊張。\n"
)
ENGLISH = "ask,answer\nWhat helps against a cold?,Rest and drink enough. See a doctor if the fever lasts.\n" * 40
REAL = Path(__file__).parents[2] / "../shared/data/medical/internal_medicine_5000-6000.gbk.csv"


def naive(raw: bytes) -> str:
    """What many scripts do: the first encoding that decodes wins."""
    for codec in ("utf-8-sig", "gbk", "gb18030", "big5", "utf-16"):
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            pass
    return ""


@pytest.mark.parametrize(
    ("text", "codec", "title"),
    [
        (SIMPLIFIED, "utf-8", "UTF-8"),
        (SIMPLIFIED, "utf-8-sig", "UTF-8 with BOM"),
        (SIMPLIFIED, "gb2312", "GB2312"),
        (SIMPLIFIED + "朱镕基,喆\n", "gbk", "GBK"),
        (SIMPLIFIED + "𠮷野家,€ 😀\n", "gb18030", "GB18030"),
        (TRADITIONAL, "gbk", "GBK"),
        (TRADITIONAL, "big5", "Big5"),
        (TRADITIONAL + "10 €,\n", "cp950", "Big5 (cp950)"),
        (TRADITIONAL + "佢哋嘅嘢,\n", "big5hkscs", "Big5-HKSCS"),
        (SIMPLIFIED, "utf-16-le", "UTF-16 LE"),
        (TRADITIONAL, "utf-16-be", "UTF-16 BE"),
        (ENGLISH, "utf-16-le", "UTF-16 LE"),
        (ENGLISH, "utf-16-be", "UTF-16 BE"),
        (ENGLISH, "ascii", "UTF-8"),
        (ENGLISH + SIMPLIFIED, "gb18030", "GB2312"),
        (ENGLISH + TRADITIONAL, "big5", "Big5"),
        (ENGLISH * 40 + "Fever,发烧了要多喝水\n", "gb18030", "GB2312"),
        ("ask\n头痛是什么原因？\n", "gb18030", "GB2312"),
        ("ask\n頭痛是什麼原因？\n", "big5", "Big5"),
    ],
)
def test_reads_each_encoding(text: str, codec: str, title: str) -> None:
    decoded = decode(text.encode(codec), "x.csv")
    assert decoded.text == text
    assert decoded.encoding == title


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_reads_utf16_by_its_mark(codec: str) -> None:
    decoded = decode(("\ufeff" + SIMPLIFIED).encode(codec), "x.csv")
    assert decoded.text == SIMPLIFIED
    assert decoded.encoding == f"UTF-16 {codec[-2:].upper()} with BOM"


@pytest.mark.parametrize(
    ("text", "codec", "misread"),
    [
        (TRADITIONAL, "big5", "祇縉"),  # Big5 bytes that are valid GB18030
        ("ask\n頭痛是什麼原因？\n", "big5", "繷礹琌"),
        (SIMPLIFIED, "utf-16-be", ""),
        ("ask\nWhat is a fever?\n", "utf-16-le", "W\0h\0a\0t"),  # valid UTF-8, as NULs are
    ],
)
def test_first_that_decodes_is_wrong_where_we_are_right(text: str, codec: str, misread: str) -> None:
    raw = text.encode(codec)
    assert naive(raw) != text
    assert misread in naive(raw)
    assert decode(raw, "x.csv").text == text


def test_gbk_takes_utf16_without_an_error() -> None:
    raw = "咳嗽怎么治\n".encode("utf-16-le")
    assert naive(raw) == raw.decode("gbk") != "咳嗽怎么治\n"
    assert decode(raw, "x.csv").text == "咳嗽怎么治\n"


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("질문,답\n머리가 아프면 어떻게 합니까,물을 마시고 쉬세요\n", "euc_kr"),
        ("질문,답\n머리가 아프면 어떻게 합니까,물을 마시고 쉬세요\n" * 30, "euc_kr"),
        ("質問,答え\n頭が痛いときはどうすればいいですか,水を飲んで休んでください。\n", "euc_jp"),
        ("質問,答え\n頭が痛いときはどうすればいいですか,水を飲んで休んでください。\n" * 30, "shift_jis"),
        ("q,a\nУ меня болит голова,Пейте воду\n", "cp1251"),
    ],
)
def test_other_encodings_are_refused_unless_named(text: str, codec: str) -> None:
    raw = text.encode(codec)
    with pytest.raises(DataError, match=r"x\.csv:\d+: ") as caught:
        decode(raw, "x.csv")
    assert "data.encoding" in caught.value.hint
    assert decode(raw, "x.csv", codec).text == text


@pytest.mark.parametrize(
    ("text", "codec", "title"),
    [
        ("q,a\nWas heißt Fieber?,Über 38 °C spricht man von Fieber. Ärzte prüfen dann.\n", "latin-1", "Windows-1252"),
        ("Frage;Antwort\nWie setze ich Gerät 7 zurück?;Drücken Sie „Reset“ für 5 s – größer heißt schöner, 5 €.\n",
         "cp1252", "Windows-1252"),
        ("q;r\nÇa marche où ?;Réinitialisez l’appareil près de la fenêtre, puis vérifiez l’état du cœur.\n",
         "cp1252", "Windows-1252"),
        ("p;r\n¿Cómo reinicio el teléfono?;Mantenga pulsado el botón durante diez segundos; así se encenderá la señal.\n",
         "cp1252", "Windows-1252"),
        ("q;a\nWhat is a café?;It’s a place – “nice” – for coffee.\n", "cp1252", "Windows-1252"),
        ("f;s\nHur återställer jag enheten?;Håll knappen intryckt tills lampan lyser grönt och vänta några sekunder.\n",
         "mac_roman", "Mac Roman"),
        ("p;o\nJak zresetować urządzenie?;Przytrzymaj przycisk, aż zaświeci się zielona lampka, i poczekaj chwilę.\n",
         "cp1250", "Windows-1250"),
        ("p;o\nJak mohu resetovat zařízení?;Podržte tlačítko, dokud se nerozsvítí zelené světlo, a chvíli počkejte.\n",
         "cp1250", "Windows-1250"),
        ("s;c\nCihazı nasıl sıfırlarım?;Yeşil ışık yanana kadar düğmeyi basılı tutun ve birkaç saniye bekleyin.\n",
         "cp1254", "Windows-1254"),
    ],
)  # fmt: skip
def test_western_tables_are_told_by_their_letters(text: str, codec: str, title: str) -> None:
    assert decode(text.encode(codec), "x.csv") == Decoded(text, title)


_ENGLISH = st.sampled_from(["", "Fever", "CT ", "vitamin B", "iPhone", "ask", ","])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["gb18030", "big5"]),
    st.lists(
        st.tuples(_ENGLISH, st.sampled_from(["我", "在", "是", "好", "不", "吃", "高", "了"]), _ENGLISH),
        min_size=1,
        max_size=6,
    ),
)
def test_single_chinese_characters_between_english_are_never_western(
    codec: str, lines: list[tuple[str, str, str]]
) -> None:
    text = "ask\n" + "".join("".join(line) + "\n" for line in lines)
    try:
        assert decode(text.encode(codec), "x.csv").text == text
    except DataError as error:
        assert "data.encoding" in error.hint


def test_two_characters_are_too_few_and_both_readings_are_shown() -> None:
    raw = "ask,answer\nWhat is 肺炎?,An infection.\n".encode("gb18030")
    with pytest.raises(DataError) as caught:
        decode(raw, "x.csv")
    assert caught.value.message.startswith("x.csv:2: cannot tell its encoding: GB18030 would read '肺炎?")
    assert "Big5 would read '" in caught.value.message
    assert "肺炎" in decode(raw, "x.csv", "gb18030").text


def test_mark_and_utf8_win_over_the_recipe() -> None:
    assert decode(SIMPLIFIED.encode("utf-8"), "x.csv", "gbk").text == SIMPLIFIED
    assert decode(SIMPLIFIED.encode("utf-8-sig"), "x.csv", "gbk").text == SIMPLIFIED


@pytest.mark.parametrize(("codec", "title"), [("gb18030", "GB18030"), ("utf-8", "UTF-8"), ("big5", "Big5")])
def test_a_bad_byte_is_named(codec: str, title: str) -> None:
    text = TRADITIONAL * 5
    raw = bytearray(text.encode(codec))
    offset = raw.index(b"\n", 200) + 1
    raw[offset:offset] = b"\xff"
    line = raw[:offset].count(b"\n") + 1
    with pytest.raises(DataError) as caught:
        decode(bytes(raw), "x.csv")
    assert caught.value.message == f"x.csv:{line}: byte 0xFF at offset {offset:,} does not decode as {title}"
    assert caught.value.exit_code == 3


def test_a_bad_byte_after_a_mark_is_named() -> None:
    raw = "ask,answer\na,b\n".encode("utf-8-sig") + b"\xe4\xb8,\n"
    with pytest.raises(DataError, match=r"x\.csv:3: byte 0xE4 at offset 18 does not decode as utf-8|as UTF-8"):
        decode(raw, "x.csv")


@pytest.mark.parametrize("codec", ["utf-8", "gb18030"])
def test_nul_is_named(codec: str) -> None:
    raw = SIMPLIFIED.encode(codec) + "a\0b,c\n".encode(codec)
    with pytest.raises(DataError, match=r"x\.csv:4: a NUL byte"):
        decode(raw, "x.csv")


# Rows as people write them: a few words of the first levels, with any ASCII besides.
_WORDS = [
    "高血压",
    "糖尿病",
    "可以",
    "吃药",
    "请问",
    "医生",
    "怎么办",
    "休息",
    "注意",
    "饮食",
    "睡眠",
    "头痛",
    "感冒",
    "多喝水",
]
_SENTENCES = st.lists(st.sampled_from(_WORDS), min_size=4, max_size=12).map("".join)
_ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(_SENTENCES, _ASCII), min_size=1, max_size=6),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16-le", "utf-16-be", "utf-16"]),
)
def test_what_was_written_is_read_or_refused(rows: list[tuple[str, str]], codec: str) -> None:
    text = "ask,answer\n" + "".join(f"{one} {other}\n" for one, other in rows)
    try:
        found = decode(text.encode(codec), "x.csv").text
    except DataError as error:  # the same few words over and over: Big5 reads them as well
        assert codec == "gb18030" and "cannot tell its encoding" in error.message
    else:
        assert found == text


_LEVEL_ONE = {"gb2312": (range(0xB0, 0xD7), range(0xA1, 0xFF)), "big5": (range(0xA4, 0xC6), range(0xA1, 0xFE))}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["gb2312", "big5"]), st.data())
def test_read_right_or_refused(codec: str, data: st.DataObject) -> None:
    """Random frequent characters, which are no language: what is not certain is an error, never other characters.

    Left out: a few GBK characters, alone in a file, that are also valid UTF-8 (é in UTF-8 and 茅 in GBK are the same bytes).
    """
    leads, trails = _LEVEL_ONE[codec]
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(leads), st.sampled_from(trails)), min_size=1, max_size=60))
    raw = b"ask,answer\n" + b"".join(bytes(pair) for pair in pairs) + b",x\n"
    assume(b"\xef\xbf\xbd" in raw.decode("utf-8", errors="replace").encode())
    try:
        assert decode(raw, "x.csv").text == raw.decode(codec)
    except DataError as error:
        assert "data.encoding" in error.hint


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="gb18030", exclude_characters="\0"), max_size=40))
def test_utf8_is_never_read_as_anything_else(text: str) -> None:
    assert decode(text.encode("utf-8"), "x.csv").text == text.removeprefix("\ufeff")


def test_the_real_file() -> None:
    if not REAL.is_file():
        pytest.skip(f"{REAL} is not here")
    raw = REAL.read_bytes()
    decoded = decode(raw, REAL.name)
    assert decoded.encoding == "GBK"
    assert decoded.text == raw.decode("gbk")
