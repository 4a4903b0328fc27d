"""Images that are nearly the same: saved again, made smaller, brighter or with less contrast.

Each image has a perceptual hash of 256 bits (pHash of 16 x 16 frequencies, by the package `imagehash`), and two images
are near copies if their hashes differ in few bits. Measured on the 400 photographs of 40 people of the AT&T/ORL
database at 112 x 96: of images at half the size, 15% brighter or with 15% less contrast the hash differs by 6 bits at
most, and saved again as JPEG of quality 25 by 12 for all but two; that of two photographs of one person, taken one
after the other, by 14 at least, and those of two people by 60.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.versions import how_to_install
from pipeline.shards.format.manifest import ShardError

FREQUENCIES = 16  # along each side
DIFFERENT_BITS = 12
BANDS = 8  # words of 32 bits
NEIGHBOURS = 32  # that are looked at, of those that have a word in common

HASH = np.dtype(("<u4", (BANDS,)))
_BITS_IN = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def near_hash(image: Image.Image) -> NDArray[np.uint32]:
    """[8] words of the perceptual hash; each has every eighth bit, so that low frequencies are in all of them.

    Raises:
        ShardError: imagehash is not installed.
    """
    bits: NDArray[np.bool_] = load_imagehash().phash(image, FREQUENCIES).hash
    return np.packbits(bits.reshape(-1, BANDS).T).view("<u4")


@cache
def load_imagehash() -> Any:
    """The package; loaded once in each process.

    Raises:
        ShardError: it is not installed.
    """
    try:
        return import_module("imagehash")
    except ImportError as error:
        raise ShardError(f"near copies need imagehash: {how_to_install('near')} ({error})") from error


def near_copies(
    hashes: NDArray[np.uint32], labels: NDArray[np.integer], sizes: NDArray[np.integer]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which samples are near copies.

    Args:
        hashes: [samples, 8] by `near_hash`.
        labels: [samples] identities.
        sizes: [samples] bytes of the images: of near copies within an identity, the largest is kept.

    Returns:
        [samples] those that have a near copy under another identity, and [samples] those of the rest that are near
        copies of one that is kept.
    """
    # Any number of images may have one hash, so distinct hashes are compared: numbered by their largest images.
    largest_first = np.argsort(-sizes.astype(np.int64), kind="stable")
    distinct, first, number = np.unique(hashes[largest_first], axis=0, return_index=True, return_inverse=True)
    by_size = np.argsort(first)
    number_of = np.empty(len(first), np.int64)
    number_of[by_size] = np.arange(len(first))
    number, first = number_of[number.ravel()], first[by_size]
    person, own = labels[largest_first][first], labels[largest_first]
    pairs = _near_pairs(distinct[by_size])
    of_two = np.zeros(len(first), bool)
    of_two[number[own != person[number]]] = True
    is_noise = (person[pairs[:, 0]] != person[pairs[:, 1]]) | of_two[pairs].any(1)
    of_two[pairs[is_noise]] = True
    dropped = of_two.copy()
    for larger, other in pairs[~is_noise].tolist():  # in the order of the larger image
        dropped[other] |= not dropped[larger]
    two, copies = np.zeros((2, len(labels)), bool)
    two[largest_first] = of_two[number]
    copies[largest_first] = dropped[number] | (first[number] != np.arange(len(labels)))
    return two, copies & ~two


def _near_pairs(hashes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """[pairs, 2] ascending numbers of hashes that have a word in common and differ in at most `DIFFERENT_BITS`.

    So all pairs that differ in 7 bits are found, and nine in ten that differ in 12 anyhow. Of very many that have a
    word in common, each is compared with some.
    """
    found = [np.empty((0, 2), np.int64)]
    for band in range(BANDS):
        order = np.argsort(hashes[:, band], kind="stable")
        word = hashes[order, band]
        for step in range(1, NEIGHBOURS + 1):
            equal = np.flatnonzero(word[step:] == word[:-step])
            if not len(equal):
                break
            one, other = order[equal], order[equal + step]
            is_near = _different_bits(hashes[one], hashes[other]) <= DIFFERENT_BITS
            found.append(np.sort(np.stack([one, other], 1)[is_near], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _different_bits(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.int64]:
    """[pairs] the Hamming distance of hashes."""
    difference = np.ascontiguousarray(one ^ other).view(np.uint8)
    return _BITS_IN[difference].sum(axis=-1, dtype=np.int64)
