"""Single images from files of any common kind, brought to one form."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from dd_bench.data.streaming import Pixels
from dd_bench.errors import DataError, DDBenchError

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY_MODES = re.compile(r"1|L|LA|La|I|I;16.*")


def read_image(path: Path, size: int, grey: bool, file: IO[bytes] | None = None) -> Pixels:
    """Returns an image as it is meant to be seen, (C, size, size) uint8: turned as its camera says, the first frame.

    Transparent pixels get white behind them, 16 bits become 8.

    Args:
        path: of the image, or what to call it where ``file`` holds it.
        size: pixels of a side.
        grey: whether it gets one channel, else three.
        file: the image itself.

    Raises:
        DataError: if it is none, is damaged, or has more pixels than any image (PIL's limit, 89 million).
    """
    from PIL import Image, ImageOps

    with opened(path, file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode == "I":
            values = np.asarray(image, np.int64)
            image = Image.fromarray((values // 256).clip(0, 255).astype(np.uint8))
        if "A" in image.mode or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        fitted = ImageOps.fit(image.convert("L" if grey else "RGB"), (size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(fitted, np.uint8)
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def is_grey(image: "Image") -> bool:
    """Says whether an image has no colours; a palette may have some."""
    return bool(_GREY_MODES.fullmatch(image.mode))


@contextmanager
def opened(path: Path, file: IO[bytes] | None = None) -> Iterator["Image"]:
    """Opens an image, and says which it was if anything goes wrong before the block ends."""
    from PIL import Image

    try:
        with Image.open(file or path) as image:
            if image.width * image.height > (limit := Image.MAX_IMAGE_PIXELS or 0):
                raise ValueError(f"{image.width}×{image.height} pixels, over {limit:,}")
            yield image
    except DDBenchError:
        raise
    except Exception as error:  # decoders promise no more: struct.error, IndexError, MemoryError, their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no image that can be read ({reason:.200}); mend it, or take it away") from error
