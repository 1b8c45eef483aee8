"""Pictures among the tokens of any sequence, as a file of a language model and its projector read them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import DataError
from toolkit.models.pictures import PictureRules
from toolkit.models.seen import Picture
from toolkit.parity.candidate import Candidate
from toolkit.parity.encodings import Encodings
from toolkit.parity.seeing import Placed, Sight

_PLACE = "\u2603"


@dataclass
class Showing:
    """A projector's file, and what it makes of pictures: encoded once, for all language files."""

    mmproj: Path
    rules: PictureRules
    """The server's."""
    encodings: Encodings = field(default_factory=Encodings)

    def sight(self, candidate: Candidate) -> Sight:
        """On a language model. Raises as `Candidate.sight`."""
        return candidate.sight(self.mmproj, self.rules.min_tokens, self.rules.max_tokens, self.encodings)

    @contextlib.contextmanager
    def placed(self, sight: Sight, ids: Sequence[int], pictures: Sequence[Picture]) -> Iterator[list[Placed]]:
        """The pictures of a sequence, each in the place of its tokens.

        Raises:
            DataError: llama.cpp makes more or fewer tokens of a picture than the sequence has.
        """
        found: list[Placed] = []
        with contextlib.ExitStack() as held:
            for picture in pictures:
                prompt = held.enter_context(sight.read(_PLACE, _PLACE, [picture.path.read_bytes()]))
                ((piece, chunk),) = prompt.shown()
                begins = picture.end - piece.picture
                image = self.rules.image_token_id
                if {*ids[max(begins, 0) : picture.end]} != {image} or (begins > 0 and ids[begins - 1] == image):
                    raise DataError(
                        f"{picture.path.name}: llama.cpp makes {piece.picture} tokens of it with {self.mmproj.name}, and "
                        "training made another number",
                        "Convert both files anew from the merged model.",
                    )
                (values,) = sight.encoded(prompt)
                found.append(Placed(begins, picture.end, chunk, values))
            yield found
