"""Pixels of an encoded image: the one decoder of every stage before training, and the same pixels as DALI's there."""

import functools
import io
import warnings
from importlib import import_module

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cluster.versions import how_to_install
from pipeline.shards.images import SetAsideError, is_heif

# Modes of Pillow whose grey levels have 16 bits; it would cut them to 255, which is white, instead of scaling them.
SIXTEEN_BITS = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
GREY = {"1", "L", "LA", *SIXTEEN_BITS}


def decoded(data: bytes, *, upright: bool = False) -> Image.Image:
    """The image as RGB, or as L if it is grey, within 2 levels of what DALI decodes.

    Args:
        data: of any format that Pillow reads, and HEIC if its reader is installed; only JPEG and PNG get into shards.
        upright: turn a photograph as its EXIF tag says. An aligned crop means its pixels as they are stored.

    Raises:
        SetAsideError: it does not decode, for whatever reason; too many pixels or too long a text among them.
    """
    if is_heif(data):
        register_heif()
    try:
        with warnings.catch_warnings():
            # Large photographs are fine; what Pillow takes for an attack is an error still.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as opened:
                return _plain(ImageOps.exif_transpose(opened) if upright else opened)
    except UnidentifiedImageError as error:  # its message has an address in memory, which no two runs share
        raise SetAsideError("does not decode: of no format that is known here") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, AssertionError and others
        reason = " ".join(str(error).split())  # libheif's has a line break
        raise SetAsideError(f"does not decode: {reason or type(error).__name__}") from error


@functools.cache
def register_heif() -> None:
    """Let Pillow read HEIC, by libheif in the package `pi-heif`."""
    try:
        import_module("pi_heif").register_heif_opener()
    except ImportError as error:
        raise SetAsideError(f"HEIC needs pi-heif: {how_to_install('heic')} ({error})") from error


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in GREY else "RGB")


@functools.cache
def black_image(height: int, width: int) -> bytes:
    """A PNG of this size that any decoder takes."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()
