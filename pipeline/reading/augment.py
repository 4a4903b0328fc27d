"""What is changed in an image while training, by name. One augmentation is one class.

The recipe lists those that are wanted, in the order in which they are applied; each draws its parameters anew for every
sample and epoch:

    data:
      augment: [mirror, {name: blur, probability: 0.2, sigma: [0.5, 1.5]}]

    @AUGMENTATIONS.add("blur")
    class Blur(Augmentation):
        sigma: Range = (0.3, 1.5)

        def parameters(self, uniform: Uniform, size: Size) -> Parameters:
            return between(self.sigma, uniform(1)[:, 0])

        def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
            return fn.gaussian_blur(pixels, sigma=parameters)
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from pipeline.reading.augmentation import AUGMENTATIONS, Augmentation, Parameters, Size, Uniform

BLACK, GREY = 0, 127  # what comes in from outside the image; about 0 once it is normalised

# As the enumerations of nvidia.dali.types have them, which is not loaded here.
INTERPOLATIONS = {"nearest": 0, "linear": 1, "cubic": 2, "lanczos": 3}
INTERPOLATION_TYPE = 22

Interpolation = Literal["nearest", "linear", "cubic", "lanczos"]


def _rising(value: tuple[Any, Any]) -> tuple[Any, Any]:
    if value[0] > value[1]:
        raise PydanticCustomError("range", "two numbers, the least first")
    return value


# The least and the most of what is drawn, each number alike.
Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Positive = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_rising)]
Factors = Annotated[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_rising)]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_rising)]
Quality = Annotated[int, Field(ge=1, le=100)]


def between(ends: tuple[float, float], uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) stretched over a range."""
    return ends[0] + (ends[1] - ends[0]) * uniform


def whole_between(least: Any, most: Any, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers from `least` to `most`, both included, each as often as the others."""
    return least + np.floor(uniform * (most - least + 1)).astype(np.int64)


@AUGMENTATIONS.add("mirror")
class Mirror(Augmentation):
    """Flip left to right."""

    probability: float = Field(0.5, ge=0, le=1)
    """Share of the samples that are flipped; which ones differs in each epoch."""

    @property
    def parts_batch(self) -> bool:
        """No: to part a batch and join it costs more than the flip, and the operator takes a flag."""
        return False

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Whether to flip, [B]."""
        return uniform(1)[:, 0] >= 1 - self.probability

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Flip the images whose parameter is 1."""
        return fn.flip(pixels, horizontal=parameters)


@AUGMENTATIONS.add("crop")
class Crop(Augmentation):
    """Pad with black and cut out a window of the image's size: a shift by whole pixels."""

    padding: int = Field(4, ge=1)
    """Pixels on each side, the most that the image moves."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Top, left, bottom and right of the window, [B, 4]; negative ones lie in the padding."""
        start = whole_between(-self.padding, self.padding, uniform(2))
        return np.concatenate([start, start + size], axis=1)

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Cut the window out."""
        corners = {"start": parameters[0:2], "end": parameters[2:4], "axes": [0, 1]}
        return fn.slice(pixels, **corners, out_of_bounds_policy="pad", fill_values=BLACK)


@AUGMENTATIONS.add("affine")
class Affine(Augmentation):
    """Scale and rotate about the centre, as an alignment errs; black comes in. Bilinear."""

    scale: Positive = (0.9, 1.1)
    """Factor; above 1 the face is larger."""
    degrees: Range = (-10.0, 10.0)
    """Angle; above 0 it turns clockwise."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Where each pixel comes from, [B, 6]: the rows of the 2 × 3 matrix that maps (x, y, 1) to a place before."""
        drawn = uniform(2)
        scale, angle = between(self.scale, drawn[:, 0]), np.deg2rad(between(self.degrees, drawn[:, 1]))
        cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
        y, x = size[0] / 2, size[1] / 2
        return np.stack(
            [cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y],
            axis=1,
        )

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Look each pixel up."""
        matrix = fn.reshape(parameters, shape=[2, 3])
        return fn.warp_affine(pixels, matrix=matrix, inverse_map=True, fill_value=BLACK)


@AUGMENTATIONS.add("window")
class Window(Augmentation):
    """Keep a window and black all else: the crop of AdaFace's augmenter, its window as torchvision draws it.

    Of ten windows of random area and shape the first that fits is kept; if none fits, one in the middle, as large as
    its shape allows (``RandomResizedCrop.get_params``).
    """

    area: Shares = (0.2, 1.0)
    """Of the window, as a share of the image's."""
    aspect: Positive = (3 / 4, 4 / 3)
    """Width by height of the window; its logarithm is drawn."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """What is erased, [B, 16]: top and left of four rectangles, then their heights and widths, as floats."""
        height, width = size
        drawn = uniform(22)
        area = between(self.area, drawn[:, :10]) * height * width
        aspect = np.exp(between((np.log(self.aspect[0]), np.log(self.aspect[1])), drawn[:, 10:20]))
        heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
        first = (np.arange(len(drawn)), fits.argmax(axis=1))
        shape = np.clip(width / height, *self.aspect)
        middle = (np.rint(min(height, width / shape)), np.rint(min(width, height * shape)))
        some = fits.any(axis=1)
        h = np.where(some, heights[first], middle[0])
        w = np.where(some, widths[first], middle[1])
        top = np.where(some, whole_between(0, height - h, drawn[:, 20]), (height - h) // 2)
        left = np.where(some, whole_between(0, width - w, drawn[:, 21]), (width - w) // 2)
        zero = np.zeros_like(h)
        # Above, below, left, right.
        corners = [zero, zero, top + h, zero, zero, zero, zero, left + w]
        sides = [
            top,
            zero + width,
            height - top - h,
            zero + width,
            zero + height,
            left,
            zero + height,
            width - left - w,
        ]
        return np.stack(corners + sides, axis=1)

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Erase what lies around the window."""
        return fn.erase(pixels, anchor=parameters[0:8], shape=parameters[8:16], axes=[0, 1], fill_value=BLACK)


@AUGMENTATIONS.add("cutout")
class Cutout(Augmentation):
    """Erase a rectangle whose centre lies anywhere in the image (DeVries & Taylor, arXiv:1708.04552), to grey."""

    side: Shares = (0.1, 0.4)
    """Height and width of the rectangle, as a share of the image's; what lies outside is not there to be erased."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Top, left, height and width of what is erased, [B, 4], whole numbers as floats."""
        drawn = uniform(3)
        sides = np.rint(between(self.side, drawn[:, :1]) * size)
        start = np.rint(drawn[:, 1:] * size - sides / 2)
        first, last = np.maximum(start, 0), np.minimum(start + sides, size)
        return np.concatenate([first, last - first], axis=1)

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Erase it."""
        return fn.erase(pixels, anchor=parameters[0:2], shape=parameters[2:4], axes=[0, 1], fill_value=GREY)


@AUGMENTATIONS.add("low_resolution")
class LowResolution(Augmentation):
    """Make the image smaller, and as large as before."""

    scale: Shares = (0.2, 1.0)
    """Height and width in between, as a share of the image's."""
    filters: tuple[Interpolation, ...] = Field(("linear",), min_length=1)
    """Interpolations, of which one is drawn for the way down and one for the way up."""
    antialias: bool = True
    """Smooth on the way down, as a camera does; OpenCV does not."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Height and width in between, those of the image, and the two interpolations, [B, 6] integers."""
        drawn = uniform(3)
        small = np.maximum(np.floor(between(self.scale, drawn[:, :1]) * size), 1).astype(np.int64)
        codes = np.array([INTERPOLATIONS[name] for name in self.filters])
        filters = codes[whole_between(0, len(codes) - 1, drawn[:, 1:])]
        return np.concatenate([small, np.broadcast_to(size, small.shape), filters], axis=1)

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Resize twice."""
        down, up = (fn.cast(parameters[column], dtype=INTERPOLATION_TYPE) for column in (4, 5))
        sizes = parameters * 1.0  # as floats, which resize wants; the types of interpolations come from integers only
        small = fn.resize(pixels, size=sizes[0:2], interp_type=down, antialias=self.antialias)
        return fn.resize(small, size=sizes[2:4], interp_type=up, antialias=self.antialias)


@AUGMENTATIONS.add("jpeg")
class Jpeg(Augmentation):
    """Quantise as JPEG does, chroma at half the resolution."""

    quality: Annotated[tuple[Quality, Quality], AfterValidator(_rising)] = (30, 95)
    """As libjpeg's, both ends included."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """The quality, [B]."""
        return whole_between(*self.quality, uniform(1)[:, 0])

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Encode and decode."""
        return fn.jpeg_compression_distortion(pixels, quality=parameters)


@AUGMENTATIONS.add("blur")
class Blur(Augmentation):
    """Smooth with a Gaussian, cut off beyond 3σ; the image is reflected at its border."""

    sigma: Positive = (0.3, 1.5)
    """Standard deviation in pixels."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """The standard deviation, [B]."""
        return between(self.sigma, uniform(1)[:, 0])

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Smooth."""
        return fn.gaussian_blur(pixels, sigma=parameters)


@AUGMENTATIONS.add("grey")
class Grey(Augmentation):
    """Take the colours away: Y = 0.299 R + 0.587 G + 0.114 B."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """The saturation that is left, [B]."""
        return np.zeros(len(uniform(1)))

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Take them away."""
        return fn.saturation(pixels, saturation=parameters)


@AUGMENTATIONS.add("colour")
class Colour(Augmentation):
    """Other colours, contrast about the middle level, and brightness, applied in this order as one matrix."""

    brightness: Factors = (1.0, 1.0)
    """Factor of all levels."""
    contrast: Factors = (1.0, 1.0)
    """Factor of a level's distance from 127.5."""
    saturation: Factors = (1.0, 1.0)
    """Factor of a colour's distance from grey."""
    hue: Range = (0.0, 0.0)
    """Degrees by which colours turn."""

    def parameters(self, uniform: Uniform, size: Size) -> Parameters:
        """Brightness, contrast, saturation and hue, [B, 4]."""
        ends = (self.brightness, self.contrast, self.saturation, self.hue)
        return np.stack([between(pair, drawn) for pair, drawn in zip(ends, uniform(4).T, strict=True)], axis=1)

    def apply(self, fn: Any, pixels: Any, parameters: Any) -> Any:
        """Multiply by the matrix."""
        names = ("brightness", "contrast", "saturation", "hue")
        return fn.color_twist(pixels, **{name: parameters[column] for column, name in enumerate(names)})
