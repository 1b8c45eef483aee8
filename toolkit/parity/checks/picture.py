"""Is the model shown the picture that it was trained on: its size, its patches, its pixel values? Compared before any model.

llama.cpp decodes the golden picture's file, resizes it by its own rules and the limits of the server, and normalises it as the
projector's file says. What it then gives to the vision part is laid beside what the training gave to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.parity.certificate import Check, Measure, lower_is_better

EQUAL = 1e-3
"""Of normalised values; one step of 8 bits is at least 0.0039 / 0.5. Right pictures were measured at 0.0 to 1e-6."""


@dataclass(frozen=True)
class ShownPicture:
    """A golden picture, as it was shown in training and as llama.cpp shows it."""

    image: str
    wanted: tuple[int, int]
    """Patches across and down, in training."""
    found: tuple[int, int]
    difference: float | None
    """Largest of the normalised values; None: there are more or fewer."""
    share: float
    """Of the values, how many differ."""
    turned: bool
    """Its file says that it is to be turned, which no server follows."""

    @property
    def right(self) -> bool:
        return self.wanted == self.found and self.difference is not None and self.difference <= EQUAL

    def told(self) -> str:
        """What is wrong with it."""
        turned = "; its EXIF says that it is turned, which servers do not follow" if self.turned else ""
        if self.wanted != self.found:
            (across, down), (wide, high) = self.wanted, self.found
            return f"{self.image} is shown as {wide} x {high} patches, and was trained on as {across} x {down}{turned}"
        if self.difference is None:
            return f"{self.image} has more or fewer pixels than in training{turned}"
        if self.share > 0.99:
            return f"{self.image}: all its pixels are other ones, by up to {self.difference:.3g}: normalised otherwise{turned}"
        return f"{self.image}: {self.share:.0%} of its pixels are other ones, by up to {self.difference:.3g}{turned}"


def picture_check(pictures: list[ShownPicture], misplaced: list[str], order: str) -> Check:
    """Judge the golden pictures.

    Args:
        misplaced: prompts whose parts the server would put otherwise.
        order: the server's, in words.
    """
    sizes = [picture for picture in pictures if picture.wanted != picture.found]
    wrong = [picture for picture in pictures if not picture.right]
    alike = [picture.difference for picture in pictures if picture.difference is not None]
    measures = [
        lower_is_better("pictures of another size", len(sizes), 0, 0),
        lower_is_better("pictures with other pixels", len(wrong) - len(sizes), 0, 0),
        lower_is_better("prompts in another order than the server's", len(misplaced), 0, 0),
        Measure(name="largest difference of a pixel", value=max(alike, default=0.0), limit=EQUAL, floor=0.0),
    ]
    rows = [{"image": p.image, "wanted": p.wanted, "found": p.found, "says": p.told()} for p in wrong]
    good = f"{len(pictures)} of {len(pictures)} pictures are shown as in training: the same patches, the same pixels"
    said = [f"{len(wrong)} of {len(pictures)} pictures are shown otherwise; {wrong[0].told()}"] if wrong else []
    if misplaced:
        said.append(
            f"{misplaced[0]} has its picture elsewhere than the server puts it ({order}), as {len(misplaced)} prompts have"
        )
    return Check.of("picture", measures, "; ".join(said) or good, {"different": rows[:20]})
