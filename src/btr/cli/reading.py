"""Options of the commands that read: how answers are searched for and what is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from btr.readers.base import ReadOptions

# The names are those of btr.readers.base.SEARCHES, which is slow to import.
SearchOption = Annotated[
    Literal["greedy", "beam", "extract"],
    typer.Option("--search", help="How a generative reader finds an answer: the likeliest next "
                 "token, beam search, or exactly the likeliest span of the passages."),
]  # fmt: skip
BeamsOption = Annotated[int, typer.Option("--beams", min=1, max=64, help="Of a beam search.")]
IntraOption = Annotated[
    float,
    typer.Option("--intra", min=0, max=0.5, metavar="RATIO",
                 help="Share of a passage's tokens to merge after every joint layer; generative "
                 "readers only (paper: 0.2)."),
]  # fmt: skip
CrossOption = Annotated[
    float,
    typer.Option("--cross", min=0, max=0.5, metavar="RATIO",
                 help="Share of all tokens to merge in the decoder, every few layers; generative "
                 "readers only (paper: 0.2)."),
]  # fmt: skip
EveryOption = Annotated[
    int, typer.Option("--every", min=1, help="Decoder layers between two mergings of --cross.")
]
Int8Option = Annotated[
    bool, typer.Option("--int8", help="Decode with 8-bit weights: faster on a CPU.")
]


def read_options(
    search: Literal["greedy", "beam", "extract"],
    beams: int,
    intra: float,
    cross: float,
    every: int,
    int8: bool,
) -> ReadOptions:
    """The library's options."""
    from btr.readers.base import Merging, ReadOptions

    return ReadOptions(Merging(intra, cross, every), search, beams, int8=int8)
