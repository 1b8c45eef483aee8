"""From bytes to text: UTF-8, UTF-16, GBK and GB18030, Big5, Western code pages, told apart; never a guess that is not said.

Taking the first encoding that decodes is wrong: GB18030 decodes most Big5 files, and GBK most UTF-16 ones, to other
characters without an error. Byte-order marks and UTF-8's own structure decide where they can. Between GB18030 and Big5,
charset-normalizer chooses, from the lines that are not ASCII alone; a count of common characters must agree with it.
Where the two differ, the user is asked.

A table in a Western code page is valid GB18030 as well, but its Chinese characters would stand alone between Latin letters
("Ger鋞"). Then the code pages are tried, the most common first; the one whose accented letters are those of one language, with no
capitals inside words, is taken. Which letters a language has, charset-normalizer knows.
"""

from __future__ import annotations

import codecs
import functools
import itertools
import re
from dataclasses import dataclass

from charset_normalizer import from_bytes
from charset_normalizer.constant import FREQUENCIES

from toolkit.errors import DataError

_BOMS = ((codecs.BOM_UTF8, "utf-8", "UTF-8 with BOM"), (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16 LE with BOM"),
         (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16 BE with BOM"))  # fmt: skip
_NAMES = {"utf-8": "UTF-8", "utf-16-le": "UTF-16 LE", "utf-16-be": "UTF-16 BE", "gb18030": "GB18030", "big5": "Big5"}
# GBK extends GB2312 and GB18030 extends GBK, so all are read as GB18030 and the smallest that suffices is named. Windows
# (cp950) and Hong Kong (HKSCS) have extended Big5.
_FAMILIES = {"gb18030": ("gb18030",), "big5": ("big5", "cp950", "big5hkscs")}
_CHINESE = {"gb18030", "gbk", "gb2312", "hz", "big5", "cp950", "big5hkscs"}
_WESTERN = {"cp1252": "Windows-1252", "mac_roman": "Mac Roman", "cp850": "DOS 850", "cp1250": "Windows-1250",
            "cp1254": "Windows-1254"}  # fmt: skip
_WESTERN_SIGNS = set("“”‘’„‚«»‹›–—…•·°§€£©®™±×²³½¼¾¡¿º ª´`")
_RARE = {"German": "ß", "French": "çêâîôûùïëœæ", "Spanish": "úñüáé", "Portuguese": "âêôúóõà", "Italian": "ìùé", "Danish": "éü",
         "Norwegian": "éòô", "Swedish": "éü", "Dutch": "éèïöüá", "Finnish": "åö", "Polish": "śćńźżę",
         "Czech": "ťďňúůýšžč", "Slovak": "ťďňľĺŕôäúóšž", "Hungarian": "úűüőí", "Turkish": "öâ"}  # fmt: skip
"""Letters that charset-normalizer leaves out, since it keeps a language's 26 most frequent."""
_CAPITAL_WITHIN = re.compile(r"(?<=[^\W\d_A-Z])[À-ÖØ-ÞŠŒŽŸ]|(?<=[A-Z])[À-ÖØ-ÞŠŒŽŸ](?=[^\W\d_A-Z])")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_RUN = re.compile(r"([A-Za-z]?)([^\x00-\x7f]+)([A-Za-z]?)")
_SAMPLE_BYTES = 1 << 16
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_ENOUGH_FOR_TWO_READINGS = 6
_ENOUGH_FOR_ALL_LANGUAGES = 100
"""Below so many characters, charset-normalizer takes one in three Chinese lines for Korean or Japanese (measured)."""


@dataclass(frozen=True)
class Decoded:
    """A file's text, without its byte-order mark."""

    text: str
    encoding: str
    """For people: UTF-8, UTF-8 with BOM, GB2312, GBK, GB18030, Big5, UTF-16 LE, …"""


def decode(raw: bytes, name: str, encoding: str | None = None) -> Decoded:
    """Decode a whole file strictly.

    Args:
        raw: the file's bytes.
        name: the file's name, for messages.
        encoding: what to read it with when it has no byte-order mark and is not UTF-8; None tells it from the bytes.

    Raises:
        DataError: a byte does not decode (naming line and offset), the encoding cannot be told, or a NUL character.
    """
    decoded = _decode(raw, name, encoding)
    nul = decoded.text.find("\0")
    if nul >= 0:
        line = decoded.text.count("\n", 0, nul) + 1
        raise DataError(
            f"{name}:{line}: a NUL byte (read as {decoded.encoding}): this is no text file, or it was cut while being written",
            "Export the table again as CSV in UTF-8.",
        )
    return decoded


def _decode(raw: bytes, name: str, encoding: str | None) -> Decoded:
    for mark, codec, title in _BOMS:
        if raw.startswith(mark):
            return Decoded(_strictly(raw, codec, name, len(mark)), title)
    if (text := _utf8(raw)) is not None:
        return Decoded(text, "UTF-8")
    if encoding is not None:
        codec = codecs.lookup(encoding).name
        return Decoded(_strictly(raw, codec, name), _NAMES.get(codec, encoding))
    if (utf16 := _utf16_without_mark(raw)) is not None:
        return utf16
    return _other(raw, name)


def _utf8(raw: bytes) -> str | None:
    # Chinese text in another encoding is never valid UTF-8 by accident, but UTF-16 of English letters is: its NULs tell.
    if b"\0" in raw:
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return None if _utf16_without_mark(raw) else text
    return _try(raw, "utf-8")


def _try(raw: bytes, codec: str) -> str | None:
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return None


def _strictly(raw: bytes, codec: str, name: str, skip: int = 0) -> str:
    """Decode `raw` after its first `skip` bytes; an error names line, byte and offset in the file."""
    try:
        return raw[skip:].decode(codec)
    except UnicodeDecodeError as error:
        line = raw[skip : skip + error.start].decode(codec, errors="replace").count("\n") + 1
        where = skip + error.start
        title = _NAMES.get(codec, codec)
        raise DataError(
            f"{name}:{line}: byte 0x{raw[where]:02X} at offset {where:,} does not decode as {title}",
            "Mend that line, or save the file as UTF-8; if it is in another encoding, say so: --set data.encoding=…",
        ) from error


def _utf16_without_mark(raw: bytes) -> Decoded | None:
    """Tables hold line ends, which are a NUL and 0x0A in UTF-16; which comes first gives the byte order."""
    if b"\0" not in raw or len(raw) % 2:
        return None
    good = []
    for codec in ("utf-16-le", "utf-16-be"):
        text = _try(raw, codec)
        if text is not None and "\n" in text and "\0" not in text and _share_readable(text) > 0.75:
            good.append(Decoded(text, _NAMES[codec]))
    return good[0] if len(good) == 1 else None


def _other(raw: bytes, name: str) -> Decoded:
    """What is neither UTF-8 nor UTF-16: Western where a Chinese reading makes no words, else Chinese."""
    if _nearly_utf8(raw):
        _strictly(raw, "utf-8", name)
    reading = _not_ascii(raw).decode("gb18030", errors="replace")
    if _makes_no_words(reading) and (western := _western(raw)) is not None:
        return western
    return _chinese(raw, name)


def _makes_no_words(reading: str) -> bool:
    """Whether most characters outside ASCII stand alone beside a Latin letter, as misread accented letters do."""
    runs = _RUN.findall(reading)
    alone = sum(len(run) == 1 and bool(before or after) for before, run, after in runs)
    return len(runs) > 0 and alone > 0.6 * len(runs)


def _western(raw: bytes) -> Decoded | None:
    """The text by the first code page that makes a language's letters of it; None: none does."""
    sample = _not_ascii(raw)
    runs = _HIGH_BYTES.findall(sample)
    if sum(len(run) == 1 for run in runs) < 0.7 * len(runs):  # Chinese characters are two bytes
        return None
    few = len(runs) < _ENOUGH_FOR_TWO_READINGS
    codecs_ = ["cp1252"] if few else list(_WESTERN)
    codec = next((codec for codec in codecs_ if _is_western(_try(sample, codec) or "")), "")
    whole = _try(raw, codec) if codec else None
    return None if whole is None else Decoded(whole, _WESTERN[codec])


def _is_western(text: str) -> bool:
    """Whether nearly all letters outside ASCII are those of one language, and nearly all signs are those of texts."""
    found = _NOT_ASCII.findall(text)
    letters = [character.lower() for character in found if character.isalpha()]
    signs = [character for character in found if not character.isalpha()]
    if sum(map(len, _CAPITAL_WITHIN.findall(text))) > 0.05 * len(letters):
        return False
    if not letters or sum(sign not in _WESTERN_SIGNS for sign in signs) > 0.02 * len(found):
        return False
    languages = ({*known, *_RARE.get(language, "")} for language, known in FREQUENCIES.items())
    best = max(sum(letter in known for letter in letters) for known in languages)
    return best >= 0.95 * len(letters)


def _chinese(raw: bytes, name: str) -> Decoded:
    texts = {family: text for family, codecs_ in _FAMILIES.items() if (text := _first(raw, codecs_)) is not None}
    if not texts:
        _strictly(raw, max(_FAMILIES, key=lambda codec: _share_common(raw.decode(codec, errors="replace"))), name)
    shares = {family: _share_common(text) for family, text in texts.items()}
    commonest = max(shares, key=lambda family: shares[family])
    margin = shares[commonest] - max((s for f, s in shares.items() if f != commonest), default=0.0)
    sample = _not_ascii(raw)
    enough = len(texts) == 1 or _outside_ascii(texts[commonest]) >= _ENOUGH_FOR_TWO_READINGS
    agrees = _library_choice(sample) == commonest
    if (
        not (enough and agrees)
        or margin < 0.15
        or shares[commonest] < 0.75
        or not _is_chinese(sample, texts[commonest])
    ):
        raise _cannot_tell(raw, name, texts)
    return Decoded(texts[commonest], _smallest(raw, commonest))


def _nearly_utf8(raw: bytes) -> bool:
    """UTF-8 with a few bad bytes; Chinese text in another encoding is mostly errors there."""
    text = raw.decode("utf-8", errors="replace")
    return 10 * text.count("\ufffd") < _outside_ascii(text)


def _outside_ascii(text: str) -> int:
    """How many characters; without a list of them, since files are large."""
    return len(text) - len(text.encode("ascii", errors="ignore"))


def _first(raw: bytes, candidates: tuple[str, ...]) -> str | None:
    return next((text for codec in candidates if (text := _try(raw, codec)) is not None), None)


def _not_ascii(raw: bytes) -> bytes:
    """Lines with bytes above 0x7F: in English files with a few Chinese words, the rest only drowns the evidence."""
    sample = b"\n".join(line for line in raw.split(b"\n") if not line.isascii())
    if len(sample) <= _SAMPLE_BYTES:
        return sample
    end = sample.rfind(b"\n", 0, _SAMPLE_BYTES)
    return sample[: end if end > 0 else _SAMPLE_BYTES]


def _library_choice(sample: bytes) -> str | None:
    best = from_bytes(sample, cp_isolation=[codec for family in _FAMILIES.values() for codec in family]).best()
    return next((family for family, found in _FAMILIES.items() if best is not None and best.encoding in found), None)


def _is_chinese(sample: bytes, text: str) -> bool:
    if _outside_ascii(text) < _ENOUGH_FOR_ALL_LANGUAGES:
        return True
    best = from_bytes(sample).best()
    return best is not None and best.encoding in _CHINESE


def _smallest(raw: bytes, family: str) -> str:
    if family == "big5":
        names = {"big5": "Big5", "cp950": "Big5 (cp950)", "big5hkscs": "Big5-HKSCS"}
    else:
        names = {"gb2312": "GB2312", "gbk": "GBK", "gb18030": "GB18030"}
    return next(title for codec, title in names.items() if _try(raw, codec) is not None)


def _cannot_tell(raw: bytes, name: str, texts: dict[str, str]) -> DataError:
    number = next(i for i, line in enumerate(raw.split(b"\n"), 1) if not line.isascii())
    readings = []
    for family, text in texts.items():
        words = re.search(r"[^\x00-\x7f][^\n]{0,15}", text)
        readings.append(f"{_NAMES[family]} would read {words[0].strip() if words else ''!r}")
    return DataError(
        f"{name}:{number}: cannot tell its encoding: {'; '.join(readings)}",
        "Save it as UTF-8, or name its encoding: --set data.encoding=gb18030 (or big5, cp1252, euc_kr, shift_jis, …)",
    )


@functools.lru_cache(maxsize=1)
def _common_characters() -> frozenset[str]:
    """The first levels of GB 2312 (rows 16-55) and Big5 (0xA4-0xC6): their makers put the frequent characters there."""
    common = set("，。？！、；：“”‘’（）《》〈〉【】「」『』…—·～％℃￥　")
    common |= {chr(code) for code in range(0xFF01, 0xFF5F)}
    for codec, leads in (("gb2312", range(0xB0, 0xD8)), ("big5", range(0xA4, 0xC7))):
        for lead in leads:
            for trail in range(0x40, 0xFF):
                common.add(bytes((lead, trail)).decode(codec, errors="ignore")[:1])
    return frozenset(c for c in common if c > "\x7f")


def _share_common(text: str) -> float:
    """The share of common characters among those outside ASCII, the first 20,000 of them; 1.0 where all is ASCII."""
    found = [match[0] for match in itertools.islice(_NOT_ASCII.finditer(text), 20_000)]
    common = _common_characters()
    return sum(c in common for c in found) / len(found) if found else 1.0


def _share_readable(text: str) -> float:
    """The share of ASCII and common characters among the first 20,000."""
    common = _common_characters()
    return sum(c < "\x7f" or c in common for c in text[:20_000]) / min(len(text), 20_000)
