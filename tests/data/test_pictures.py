"""Files that are called pictures: what is made of them, and which are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image

from toolkit.data.images import Album, Refused, Shelf, opened, read, size_upright, upright
from toolkit.data.images.checking import LONGEST_SIDE, OTHER_KIND, SEVERAL, SLIMMEST, SMALL


def packed(image: Image.Image, kind: str, **options: object) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return image.convert(mode)


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG that says how large it is, and ends."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


PHOTO = packed(Image.effect_noise((200, 120), 60).convert("RGB"), "JPEG")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_the_usual_kinds_are_read(kind: str) -> None:
    image, repairs = upright(packed(halves(), kind))
    assert (image.mode, image.size, repairs) == ("RGB", (40, 24), ())
    red, blue = image.getpixel((4, 12)), image.getpixel((36, 12))
    assert isinstance(red, tuple) and isinstance(blue, tuple)
    assert red[0] > 240 and red[2] < 15 and blue[0] < 15 and blue[2] > 240


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_gray_and_palettes_become_rgb_and_nothing_is_said(mode: str) -> None:
    given = halves(mode)
    image, repairs = upright(packed(given, "PNG"))
    assert repairs == () and image.tobytes() == given.convert("RGB").tobytes()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, repairs = upright(packed(halves(), "PNG", exif=exif))
    assert repairs == ("pictures turned upright, as their EXIF says",)
    assert image.size == ((24, 40) if orientation > 4 else (40, 24))
    corner = {2: "blue", 3: "blue", 4: "red", 5: "red", 6: "red", 7: "blue", 8: "blue"}[orientation]
    assert image.getpixel((0, 0)) == {"red": (255, 0, 0), "blue": (0, 0, 255)}[corner]


def test_what_is_transparent_is_laid_on_white() -> None:
    image = halves("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    made, repairs = upright(packed(image, "PNG"))
    assert repairs == ("pictures with transparent parts laid on white",)
    assert (made.getpixel((0, 0)), made.getpixel((1, 0)), made.getpixel((2, 0))) == (
        (255, 255, 255),
        (127, 127, 127),
        (255, 0, 0),
    )
    palette = halves("P")
    assert upright(packed(palette, "PNG", transparency=palette.getpixel((0, 0)))).image.getpixel((0, 0)) == (255,) * 3
    assert upright(packed(halves("RGBA"), "PNG")).repairs == ()


def test_sixteen_bits_keep_their_upper_half() -> None:
    wide = numpy.arange(64 * 64, dtype=numpy.uint16).reshape(64, 64) * 16
    image, repairs = upright(packed(Image.fromarray(wide), "PNG"))
    assert repairs == ("pictures of 16 bits a colour reduced to 8",)
    assert (numpy.asarray(image)[:, :, 0] == wide >> 8).all()


def test_printing_colours_are_made_rgb_and_it_is_said() -> None:
    image, repairs = upright(packed(halves("CMYK"), "JPEG", quality=100, subsampling=0))
    assert repairs == ("pictures of printing colours (CMYK) made RGB",)
    assert image.getpixel((4, 12)) == pytest.approx((255, 0, 0), abs=8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_reduced(kind: str) -> None:
    image, repairs = upright(packed(halves(size=(4200, 2100)), kind))
    assert image.size == (LONGEST_SIDE, LONGEST_SIDE // 2)
    assert repairs == ("pictures reduced to 2,048 pixels on the longer side",)


@pytest.mark.parametrize("size", [(40, 24), (4200, 2100), (2049, 31), (2048, 2048), (3001, 2999)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_its_size_is_known_from_its_header(size: tuple[int, int], orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = packed(halves(size=size), kind, exif=exif)
    (path := tmp_path / "photo").write_bytes(raw)
    with opened(raw) as stream, opened(path) as file:
        found, made = size_upright(stream), upright(raw).image.size
        assert found == size_upright(file)
    assert all(abs(one - other) <= (max(size) > LONGEST_SIDE) for one, other in zip(found, made)), (found, made)


def test_a_header_tells_of_files_that_are_refused(tmp_path: Path) -> None:
    for raw in (b"", b"<svg/>", b"Dear Sir", png(4, 400), png(60_000, 60_000)):
        (path := tmp_path / "photo").write_bytes(raw)
        with pytest.raises(Refused) as whole:
            upright(raw)
        with pytest.raises(Refused) as header, opened(path) as stream:
            size_upright(stream)
        assert header.value.reason == whole.value.reason


def test_a_profile_is_not_written_with_the_picture(tmp_path: Path) -> None:
    name = Album(tmp_path).add(packed(halves(), "PNG", icc_profile=b"x" * 200)).name
    with Image.open(tmp_path / name) as written:
        assert written.info == {} and written.mode == "RGB"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "a picture's file that is empty"),
        (b"Dear Sir or Madam", "a file that is no picture"),
        (PHOTO[:-400], "a picture that is cut off or damaged"),
        (PHOTO[:900], "a picture that is cut off or damaged"),
        (packed(halves(size=(300, 300)), "PNG")[:-60], "a picture that is cut off or damaged"),
        (png(60_000, 60_000), "a picture of more than 100 million pixels"),
        (png(12_000, 9_000), "a picture of more than 100 million pixels"),
        (png(4, 400), SMALL),
        (packed(halves(size=(8 * SLIMMEST + 8, 8)), "PNG"), SMALL),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", f"{OTHER_KIND}: EPS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), f"{OTHER_KIND}: EPS"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', f"{OTHER_KIND}: SVG"),
        (b"<svg/>", f"{OTHER_KIND}: SVG"),
        (b"\0\0\0\x18ftypheic", f"{OTHER_KIND}: HEIC"),
        (b"%PDF-1.7", f"{OTHER_KIND}: PDF"),
        (b"<!doctype html><title>404</title>", f"{OTHER_KIND}: HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", f"{OTHER_KIND}: Git LFS pointer"),
        (packed(Image.new("F", (20, 20)), "TIFF"), "a picture of measurements, not of colours"),
        (packed(halves(), "GIF", save_all=True, append_images=[halves().rotate(180)]), SEVERAL),
        (packed(halves(), "PNG", save_all=True, append_images=[halves().rotate(180)]), SEVERAL),
        (packed(halves(), "WEBP", save_all=True, append_images=[halves().rotate(180)]), SEVERAL),
        (packed(halves(), "TIFF", save_all=True, append_images=[halves()]), SEVERAL),
    ],
)  # fmt: skip
def test_what_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(Refused) as raised:
        upright(raw)
    assert raised.value.reason == reason


def test_a_telephones_photo_with_a_preview_behind_it_is_a_photo() -> None:
    both = packed(halves(), "MPO", save_all=True, append_images=[halves(size=(20, 12))])
    assert upright(both).image.size == (40, 24)


def test_the_same_picture_has_one_name_whatever_its_file(tmp_path: Path) -> None:
    album = Album(tmp_path)
    first, other = album.add(packed(halves(), "PNG")), album.add(packed(halves(), "BMP"))
    turned = album.add(packed(halves().rotate(180), "PNG"))
    assert first.name == other.name != turned.name
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        name.removeprefix("images/") for name in (first.name, turned.name)
    )
    album.keep_only([first.name])
    assert [f"images/{path.name}" for path in (tmp_path / "images").iterdir()] == [first.name]


def test_a_name_leads_to_a_file_in_the_data_folder_or_nowhere(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "tables").mkdir(parents=True)
    (data / "photos").mkdir()
    for path in (data / "photos" / "a.png", data / "tables" / "b.png", tmp_path / "secret.png"):
        path.write_bytes(packed(halves(), "PNG"))
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    shelf = Shelf((data / "tables", data))
    for name in (
        "photos/a.png", "b.png", "../photos/a.png", "photos\\a.png", f"file://{data}/photos/a.png", str(data / "photos" / "a.png")
    ):  # fmt: skip
        assert read(shelf.find(name)) == packed(halves(), "PNG"), name
    outside, missing = "a picture outside the data folder", "a picture's file that is not there"
    web, none = (
        "a picture at a web address, which is never fetched",
        "a picture that is neither a file's name nor bytes",
    )
    inline = "a picture's data: address that is no picture in base64"
    for name, reason in {
        "../secret.png": outside, "../../secret.png": outside, str(tmp_path / "secret.png"): outside, "link.png": outside,
        "/etc/passwd": outside, "C:\\photos\\a.png": missing, "photos/none.png": missing, "photos": missing, "a\0.png": missing,
        "x" * 5000 + ".png": missing, "https://example.com/a.png": web, "HTTP://x/a.png": web, "ftp://x/a.png": web,
        "s3://x/a.png": web, "javascript:alert(1)": web, "": none, "data:text/html;base64,PGI+": inline,
        "data:image/png;base64,!!!": inline,
    }.items():  # fmt: skip
        with pytest.raises(Refused) as raised:
            shelf.find(name)
        assert raised.value.reason == reason, name
