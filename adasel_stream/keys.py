"""Turn instance ids into 64-bit keys, and the keys of integer ids back into ids.

A key's top 10 bits name one of 1,024 virtual shards, the next 32 its bucket within a table.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Ids", "ids_of_keys", "instance_ids", "keys_of_ids", "keys_of_strings"]

Ids: TypeAlias = npt.NDArray[np.int64] | list[str]
"""Stable names of instances, one a row: int64, shape (b,), or b strings."""

_SHIFT: Final = 33
_FACTORS: Final = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD_VALUES: Final = 1 << 64
# longer strings take a slower road, so that one odd id cannot stretch the loop over all rows
_LONGEST_BYTES: Final = 256


def keys_of_ids(ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.uint64]:
    """Mix integer ids into keys; different ids have different keys.

    Args:
        ids: shape (b,), any int64 values; left unchanged.
        seed: in [0, 2**64); it decides which ids share a bucket.

    Returns:
        Keys, shape (b,), any 64-bit value, 0 included.

    Source: the 64-bit finaliser of MurmurHash3 (Appleby), which is one to one.

    >>> import numpy as np
    >>> keys = keys_of_ids(np.array([-1, 0, 1]), seed=7)
    >>> ids_of_keys(keys, seed=7).tolist()
    [-1, 0, 1]
    """
    return _mix(ids.view(np.uint64) ^ _salt(seed))


def ids_of_keys(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.int64]:
    """Recover exactly the integer ids that `keys_of_ids` mixed under the same seed.

    Args:
        keys: shape (b,); left unchanged.
        seed: the seed that the keys were made with.

    Returns:
        Ids, shape (b,), int64.

    >>> import numpy as np
    >>> ids_of_keys(keys_of_ids(np.array([42]), seed=0), seed=0).tolist()
    [42]
    """
    # a shift by more than half the word undoes itself
    bits = keys ^ (keys >> np.uint64(_SHIFT))
    for factor in reversed(_FACTORS):
        bits *= np.uint64(pow(factor, -1, _WORD_VALUES))
        bits ^= bits >> np.uint64(_SHIFT)
    return (bits ^ _salt(seed)).view(np.int64)


def instance_ids(names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Turn strings into the integer ids that stand for them everywhere, shape (b,), int64.

    An id is a 64-bit hash: the string cannot be had back from it.

    Raises:
        TypeError: if an item is no string.

    >>> (instance_ids(["a", "b"]) == instance_ids(["a", "c"])).tolist()
    [True, False]
    """
    return keys_of_strings(names, 0).view(np.int64)


def keys_of_strings(ids: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """Hash strings into keys, equal in every process and on every machine.

    Strings are read as UTF-8, eight bytes of every row at a time; those over 256 bytes go through
    BLAKE2b one by one. Two different strings share a key with a chance of about 2**-64.

    Args:
        ids: b strings of any length and content, the empty string included.
        seed: in [0, 2**64).

    Returns:
        Keys, shape (b,).

    Raises:
        TypeError: if an item is not a string.

    >>> first, second = keys_of_strings(["sample-1", "sample-2"], seed=0)
    >>> bool(first == second), bool(first == keys_of_strings(["sample-1"], seed=0)[0])
    (False, True)
    """
    lengths, text = _utf8(ids)
    starts = np.cumsum(lengths) - lengths
    # every byte begins one little-endian word; the padding keeps the last word inside
    words = np.ndarray((len(text) + 1,), np.dtype("<u8"), text + bytes(8), strides=(1,))
    keys = _mix(lengths.view(np.uint64) ^ _salt(seed))
    for row in np.flatnonzero(lengths > _LONGEST_BYTES).tolist():
        keys[row] = _digest(text[starts[row] : starts[row] + lengths[row]], seed)
        lengths[row] = 0
    for offset in range(0, int(lengths.max(initial=0)), 8):
        rows = np.flatnonzero(lengths > offset)
        # shifting up drops the bytes that belong to the next string
        surplus_bits = 8 * np.maximum(8 + offset - lengths[rows], 0)
        chunk = words[starts[rows] + offset] << surplus_bits.view(np.uint64)
        keys[rows] = _mix(keys[rows] ^ chunk)
    return keys


def _utf8(ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], bytes]:
    """Return the length in bytes of each string, and all strings joined."""
    joined = "".join(ids)
    if joined.isascii():
        return np.fromiter(map(len, ids), np.int64, len(ids)), joined.encode("ascii")
    # file names may hold half a surrogate pair, which strict UTF-8 refuses
    encoded = [text.encode("utf-8", "surrogatepass") for text in ids]
    return np.fromiter(map(len, encoded), np.int64, len(ids)), b"".join(encoded)


def _digest(text: bytes, seed: int) -> int:
    """Hash one long string to 64 bits."""
    digest = hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def _salt(seed: int) -> np.uint64:
    """Spread a seed over 64 bits, so that neighbouring seeds have nothing in common."""
    bits = (seed + _GOLDEN) % _WORD_VALUES
    for factor in _FACTORS:
        bits = (bits ^ bits >> _SHIFT) * factor % _WORD_VALUES
    return np.uint64(bits ^ bits >> _SHIFT)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix words one to one, in place."""
    shifted = bits >> np.uint64(_SHIFT)
    for factor in _FACTORS:
        bits ^= shifted
        bits *= np.uint64(factor)
        np.right_shift(bits, np.uint64(_SHIFT), out=shifted)
    bits ^= shifted
    return bits
