"""References: where the content of a deferred column lies, one row of numbers for each sample.

A reference is a row of int64: the sample's id, a digest of its shard, then what the kind of
shard needs to find the content. It is a position, so it survives a restart and a detour through
a snapshot or a DataLoader worker; the digest travels with it, so whoever follows it later, in
whatever process, notices that the shard has become another.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["DIGEST", "ID", "PLACE", "check_references", "digest_of", "refer"]

ID, DIGEST, PLACE = 0, 1, 2
"""Columns of a reference; those from PLACE on differ by kind of shard."""


def digest_of(fingerprint: str) -> int:
    """Shorten a shard's fingerprint to the 63 bits that a reference carries.

    >>> digest_of("f" * 32) == 2**63 - 1
    True
    """
    return int(fingerprint[:16], 16) >> 1


def refer(ids: Tensor, digest: int, *places: Tensor) -> Tensor:
    """Make references to n samples of one shard, int64, shape (n, 2 + number of places).

    Args:
        ids: of the samples, int64, shape (n,).
        digest: of their shard; see `digest_of`.
        places: int64, shape (n,) each.

    >>> refer(torch.tensor([7, 8]), 5, torch.tensor([512, 1536]))
    tensor([[   7,    5,  512],
            [   8,    5, 1536]])
    """
    return torch.stack([ids, torch.full_like(ids, digest), *places], dim=1)


def check_references(
    references: Mapping[str, Tensor], deferred: tuple[str, ...], width: int
) -> None:
    """Check what is given to `fetch`, before anything is opened.

    Raises:
        TypeError: it is no mapping of tensors.
        ValueError: a column is not deferred, or has the shape or type of something else.
    """
    if not isinstance(references, Mapping):
        raise TypeError(
            "fetch expects a mapping of columns to references, such as "
            f"{{'jpg': batch['jpg'][chosen]}}, got {type(references).__name__}"
        )
    for name, rows in references.items():
        if name not in deferred:
            raise ValueError(f"columns to fetch must be among deferred {deferred}, got {name!r}")
        if not isinstance(rows, Tensor):
            raise TypeError(
                f"references of {name!r} must be a tensor, as the batches have them, "
                f"got {type(rows).__name__}"
            )
        if rows.dtype != torch.int64 or rows.shape[1:] != (width,):
            raise ValueError(
                f"references of {name!r} must be int64 of shape (n, {width}), as the batches "
                f"have them, got {rows.dtype} of shape {tuple(rows.shape)}"
            )
