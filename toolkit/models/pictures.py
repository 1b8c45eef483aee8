"""What a server shows a model of a picture: size, resampling, letterbox, normalisation, and its place among the texts.

llama.cpp resizes a picture by rules of its own, and Ollama asks it for more tokens than it would take. A model that was
trained on what its processor made of the same file would later be shown something else. So pictures are brought to the
server's size here, with the server's pixels, before anything else sees them; neither the processor nor the server then has
anything left to resize.

Sources: llama.cpp's tools/mtmd/clip.cpp (limits and resampling by family) and tools/mtmd/mtmd-image.cpp (`img_tool`:
calc_size_preserved_ratio, resize, resize_pillow), whose resampling is Pillow's, bit by bit;
Ollama's llm/llama_server.go (`qwenVLServerArgs`) and server/prompt.go.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from toolkit.errors import DataError, UsageError
from toolkit.models.json_file import read_object

# numpy and Pillow are imported where they are used: every artifact's facts may carry rules, and a run with nothing to do only
# reads these.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

RULES_FILE = "pictures.json"
OLLAMA_MIN_TOKENS = 1024
"""Ollama 0.34.1 starts llama-server with --image-min-tokens 1024 for the Qwen-VL families (`qwenVLServerArgs`)."""
LLAMA_CPP_TOKENS = (8, 4096)
"""llama.cpp's own limits for these families (clip.cpp, `set_limit_image_tokens`); a GGUF holds none of the processor's."""
QWEN_VL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Ollama's list, in transformers' spelling."""
GEMMA_3 = "gemma3"


class PictureRules(BaseModel):
    """How a server shows a model pictures; `pictures.json` beside an adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dynamic", "fixed"]
    """dynamic: as many tokens as the picture has patches (Qwen-VL). fixed: every picture in one square (Gemma 3)."""
    patch: int
    """Pixels of a merged patch's side, e.g. 28: one token of the language model."""
    merge: int = 2
    """Patches of the vision tower along a merged patch's side."""
    frames: int = 2
    """How often the tower wants a still picture, as if it were a film."""
    min_tokens: int
    max_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_token: str
    """The token that stands for a picture in the template's text; it is repeated, once for each of the picture's tokens."""
    image_token_id: int
    order: Literal["text, image", "image, text"] = "text, image"
    """How the server puts the parts of a turn; Ollama's /api/chat: its text, then its pictures. /api/generate: the other way."""
    fill: tuple[int, int, int] = (0, 0, 0)
    """Colour of the letterbox, RGB."""
    resampling: Literal["bicubic", "bilinear"] = "bicubic"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels that a picture of this size is shown in."""
        if self.kind == "fixed":
            side = self.patch * round(self.max_tokens**0.5)
            return side, side
        return _preserving_ratio(width, height, self.patch, self.min_tokens, self.max_tokens)

    def tokens(self, width: int, height: int) -> int:
        """Tokens that a picture of this size takes."""
        across, down = self.size(width, height)
        return (across // self.patch) * (down // self.patch)

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Frames, and patches of the tower down and across, of a picture of this size; fixed: its tokens down and across."""
        across, down = self.size(width, height)
        merge = 1 if self.kind == "fixed" else self.merge
        return 1, down // self.patch * merge, across // self.patch * merge

    def turned(self) -> PictureRules:
        """The same, with the parts of a turn the other way round."""
        order: Literal["text, image", "image, text"] = "image, text" if self.order == "text, image" else "text, image"
        return self.model_copy(update={"order": order})

    def write(self, folder: Path) -> None:
        """Leave them in a folder."""
        from toolkit.run.artifacts import write_json  # which knows facts, and they know these rules

        write_json(folder / RULES_FILE, self.model_dump(mode="json"))


def read_rules(folder: Path) -> PictureRules | None:
    """The rules that `PictureRules.write` left; None: none.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / RULES_FILE
    if not path.is_file():
        return None
    try:
        return PictureRules.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} does not hold rules for pictures: {error}", "Train again.") from error


def sees_pictures(folder: Path) -> bool:
    """Whether a model has a part that sees.

    Raises:
        DataError: its config.json cannot be read.
    """
    return isinstance(_config(folder).get("vision_config"), dict)


def _config(folder: Path) -> dict[str, Any]:
    return read_object(folder / "config.json", "Get the file again.")


def rules_of(base_folder: Path) -> PictureRules | None:
    """How Ollama will show a base pictures; None: it is a text model.

    Raises:
        UsageError: a family whose pictures the server prepares in a way that is not known here.
        DataError: the base has no preprocessor_config.json, or it lacks what is needed.
    """
    if not sees_pictures(base_folder):
        return None
    config = _config(base_folder)
    vision, family = config["vision_config"], str(config.get("model_type"))
    if family not in (*QWEN_VL, GEMMA_3):
        raise UsageError(
            f"pictures of a {family} model: how llama.cpp prepares them is not known here",
            f"Choose a base of one of these families: {', '.join((*QWEN_VL, GEMMA_3))}.",
        )
    processor = _processor(base_folder)
    try:
        mean, std = processor["image_mean"], processor["image_std"]
        if family == GEMMA_3:
            return _fixed(base_folder, config, vision, mean, std)
        token, merge = int(config["image_token_id"]), int(processor["merge_size"])
        return PictureRules(
            kind="dynamic", patch=int(processor["patch_size"]) * merge, merge=merge,
            frames=int(processor["temporal_patch_size"]), min_tokens=OLLAMA_MIN_TOKENS, max_tokens=LLAMA_CPP_TOKENS[1],
            mean=mean, std=std, image_token=_token_text(base_folder, token), image_token_id=token,
        )  # fmt: skip
    except KeyError as error:
        raise DataError(
            f"{base_folder} does not say how its pictures are prepared: {error.args[0]} is missing",
            "Get the base again.",
        ) from error


def _fixed(base_folder: Path, config: dict[str, Any], vision: dict[str, Any], mean: Any, std: Any) -> PictureRules:
    side, tokens = int(vision["image_size"]), int(config["mm_tokens_per_image"])
    across = round(tokens**0.5)
    token = int(config.get("image_token_id", config.get("image_token_index", -1)))
    return PictureRules(
        kind="fixed", patch=side // across, merge=side // int(vision["patch_size"]) // across, frames=1, min_tokens=tokens,
        max_tokens=tokens, mean=mean, std=std, image_token=_token_text(base_folder, token), image_token_id=token,
        resampling="bilinear",
    )  # fmt: skip


def _processor(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = read_object(folder / name, "Get the file again.")
            inner = found.get("image_processor", found)
            if isinstance(inner, dict) and "image_mean" in inner:
                return inner
    raise DataError(
        f"{folder} has no preprocessor_config.json that says how its pictures are prepared",
        "Put the file of the model there.",
    )


def _token_text(folder: Path, token: int) -> str:
    path = folder / "tokenizer.json"
    if path.is_file():
        told = path.stat()
        text = _token_of(path, (told.st_mtime_ns, told.st_size), token)
    else:
        from toolkit.models.tokenizer import load_tokenizer

        text = load_tokenizer(folder).convert_ids_to_tokens(token)
    if not text:
        raise DataError(
            f"{folder}: the tokenizer has no token {token}, which config.json has stand for pictures",
            "The folder's files belong to different models: get the base again.",
        )
    return str(text)


@functools.lru_cache(maxsize=16)
def _token_of(path: Path, stamp: tuple[int, int], token: int) -> str | None:  # noqa: ARG001 - tells files apart
    """Plans ask several times, and a large vocabulary takes half a second to read.

    Args:
        stamp: when it was changed, and its size: another one is read again.
    """
    from tokenizers import Tokenizer

    found: str | None = Tokenizer.from_file(str(path)).id_to_token(token)
    return found


def _preserving_ratio(width: int, height: int, patch: int, min_tokens: int, max_tokens: int) -> tuple[int, int]:
    """llama.cpp's `calc_size_preserved_ratio`, which counts in float32 and rounds halves away from zero."""
    import numpy as np

    single = np.float32
    fewest, most = min_tokens * patch * patch, max_tokens * patch * patch

    def near(length: int) -> int:
        return max(patch, int(np.floor(single(length) / single(patch) + single(0.5))) * patch)

    def below(length: np.float32) -> int:
        return max(patch, int(np.floor(length / single(patch))) * patch)

    def above(length: np.float32) -> int:
        return int(np.ceil(length / single(patch))) * patch

    across, down = near(width), near(height)
    if across * down > most:
        shrink = np.sqrt(single(height) * single(width) / single(most))
        return below(single(width) / shrink), below(single(height) / shrink)
    if across * down < fewest:
        grow = np.sqrt(single(fewest) / (single(height) * single(width)))
        return above(single(width) * grow), above(single(height) * grow)
    return across, down


def as_served(image: Image.Image, rules: PictureRules) -> Image.Image:
    """The pixels that llama.cpp arrives at before it normalises them: 8 bits, RGB, of the size of `PictureRules.size`.

    Args:
        image: upright, RGB.
    """
    import numpy as np
    from PIL import Image

    size = rules.size(*image.size)
    if image.mode != "RGB":
        raise ValueError(f"a picture in mode {image.mode}, not RGB")
    if image.size == size:
        return image
    # As llama.cpp does, in float32: another rounding moves the border of the letterbox by a pixel.
    scale = min(np.float32(want) / np.float32(have) for want, have in zip(size, image.size))
    inner = tuple(min(int(np.ceil(np.float32(have) * scale)), want) for want, have in zip(size, image.size))
    filtered = Image.Resampling[rules.resampling.upper()]
    # In two steps: asked for both sides at once, Pillow takes the height first where a picture is tall, and rounds otherwise.
    resized = image.resize((inner[0], image.height), filtered).resize((inner[0], inner[1]), filtered)
    shown = Image.new("RGB", size, rules.fill)
    shown.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return shown


def in_served_order(parts: Sequence[dict[str, Any]], rules: PictureRules) -> list[dict[str, Any]]:
    """The parts of a turn as the server writes them: its texts as one, and its pictures.

    `/api/chat` takes one text and a list of pictures, so that a text behind a picture comes before it.
    """
    texts = [str(part["text"]) for part in parts if part["type"] == "text"]
    pictures = [part for part in parts if part["type"] == "image"]
    text = [{"type": "text", "text": "".join(texts)}] if texts else []
    return [*text, *pictures] if rules.order == "text, image" else [*pictures, *text]


def pixels_of(image: Image.Image, rules: PictureRules) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """What the model is given of a picture.

    Args:
        image: upright, RGB, of any size; it is shown as `as_served`.

    Returns:
        (pixel values, grid). dynamic: [patches, channels · frames · side · side], and (1, patches down, patches across), as
        transformers' Qwen2VLImageProcessor has it. fixed: [3, height, width], and (1, tokens down, tokens across).
    """
    import numpy as np

    shown = as_served(image, rules)
    mean, std = (np.array(of_channels, np.float32) for of_channels in (rules.mean, rules.std))
    values = (np.asarray(shown, dtype=np.float32) / 255 - mean) / std
    return as_given(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32), rules)


def as_given(planes: NDArray[np.float32], rules: PictureRules) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Normalised pixels [3, height, width] in the order in which the model is given them; see `pixels_of`."""
    _, height, width = planes.shape
    if rules.kind == "fixed":
        return planes, rules.grid(width, height)
    return _patches(planes, rules), rules.grid(width, height)


def _patches(planes: NDArray[np.float32], rules: PictureRules) -> NDArray[np.float32]:
    """[3, height, width] as rows of patches; those of a merged patch follow each other."""
    import numpy as np

    merge, side = rules.merge, rules.patch // rules.merge
    _, height, width = planes.shape
    split = planes.reshape(3, height // rules.patch, merge, side, width // rules.patch, merge, side)
    # rows and columns of merged patches, rows and columns within, channel, pixels
    ordered = split.transpose(1, 4, 2, 5, 0, 3, 6)
    count = height * width // side**2
    framed = np.broadcast_to(ordered[..., None, :, :], (*ordered.shape[:5], rules.frames, side, side))
    return framed.reshape(count, 3 * rules.frames * side * side)


def open_picture(path: Path) -> Image.Image:
    """A picture that the prepare stage left, RGB.

    Raises:
        DataError: it is missing or damaged.
    """
    with _opened(path) as image:
        rgb: Image.Image = image.convert("RGB")
        return rgb


def size_of_picture(path: Path) -> tuple[int, int]:
    """Width and height of a picture that the prepare stage left: its header is read alone, since whoever shows it decodes it.

    Raises:
        DataError: it is missing, or does not begin as a picture.
    """
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError) as error:  # the latter is Pillow's of a damaged PNG
        raise DataError(f"{path} cannot be read as a picture: {error}", "Prepare the rows again.") from error
