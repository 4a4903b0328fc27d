"""One noisy image in every encoding that face sets come in, and what Pillow makes of it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}
SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


# `ramps(24, 20)` by pillow-heif 1.8.1, quality 80, chroma 4:4:4: what reads HEIC here does not write it.
HEIC = base64.b85decode(
    b"0000SW^{RQXk}@500000ZE0pPXk}@5ZE0a<0004gZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=IV*mgE07O6l"
    b"0RRC200001q5uH^00000007wl001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002~X>f9I0002qX>en20001Y"
    b"Xm(>m0R#vD005pi000009`FGC|M>U-01pFT0096OKmiN^|NjIC00093o;Uyi0{{RXx&lC90096hLID8;2mk;B0G>Di00RI39*_hOAhO+6(_GvH"
    b"G#C&700RM#000935P)I;0RRX@0l{+^Fc^>k000wXZ)|dIV{CW;0RRmE27mwn02FC+aAg1h0000006+i$06+i$04QT@VQ>Hd02BZK0096102lxO"
    b"00IC1|I`2g00RI2|JVQk00IC201$9#cxeCt0009B2nYZG02pa-ZD9Za00000009621%Uzs1%v<q0O4(9VRQfh0M#e~uLSZQv{Nu~VP3AqWR4pC"
    b"q3GYhee8AB5$71%<9*4@?}k28E{(E&>O9r`MQYjb%DmC(Z|l82KCqahSup>8I{bTIvsOWkumuSpRJ<gAhJ}zXvSv)y<))+?Z_p|6=`UilF!h?N"
    b"Q<BqFmicjfMq&O{*t*++H@k^W*VKE%AYWSSQdgfq`flln2YM;TATycf7W8_;Bo>ed!U$sNr&=FCY$IWIY(wjiuS<`8E!9Y?$Mz*ohk{A8jA*+7"
    b"<wO8qD!uatOAsRm@R)=vgSId"
)


def ramps(height: int, width: int) -> NDArray[np.uint8]:
    """Red grows from left to right, green downwards, blue towards the lower right corner."""
    y, x = np.mgrid[:height, :width]
    levels = (x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (height + width - 2))
    return np.stack(levels, -1).astype(np.uint8)


def noisy(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    """Coloured shapes under strong noise: flat chroma would look alike however it is upsampled."""
    generator = np.random.default_rng(seed)
    shapes = generator.integers(0, 256, (height // 8, width // 8, CHANNELS[mode]))
    # np.resize would repeat, PIL has no CMYK or RGBA filter worth trusting: blocks of 8 do
    pixels = shapes.repeat(8, axis=0).repeat(8, axis=1)
    pixels = np.pad(pixels, ((0, height % 8), (0, width % 8), (0, 0)), mode="edge")
    pixels = (pixels + generator.integers(-40, 41, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def encoded(image: Image.Image, **options: Any) -> NDArray[np.uint8]:
    """The image in the format and with the options that Pillow's `save` is given."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def encodings(height: int, width: int) -> dict[str, NDArray[np.uint8]]:
    """Kind -> the image, encoded."""
    found = {}
    for mode in ("RGB", "L", "CMYK"):
        image = noisy(mode, height, width)
        for quality in (60, 95):
            for progressive in (False, True):
                kinds = SUBSAMPLING.items() if mode == "RGB" else [("", 0)]
                for name, subsampling in kinds:
                    words = f"JPEG {mode} {name} {quality}{' progressive' if progressive else ''}"
                    options = {"quality": quality, "progressive": progressive, "subsampling": subsampling}
                    found[words] = encoded(image, format="JPEG", **options)
    for mode in ("RGB", "RGBA", "L"):
        found[f"PNG {mode}"] = encoded(noisy(mode, height, width), format="PNG")
    found["PNG palette"] = encoded(noisy("RGB", height, width).quantize(64), format="PNG")
    return found


def pillow(image: NDArray[np.uint8]) -> torch.Tensor:
    """What Pillow decodes, normalised as the network takes it: [3, H, W] float64."""
    pixels = np.asarray(Image.open(io.BytesIO(image.tobytes())).convert("RGB"), dtype=np.float64)
    return torch.from_numpy((pixels - 127.5) / 128).permute(2, 0, 1)
