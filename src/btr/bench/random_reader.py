"""A Fusion-in-Decoder reader with random weights, for what does not depend on them.

How many bytes a store of its states needs, how fast a corpus is encoded, how an index behaves: none
of it asks for a trained checkpoint. Words are cut by a packaged model's tokenizer.

Run as ``python -m btr.bench.random_reader --help``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from btr.bench.t5_shapes import SHAPES, random_t5
from btr.errors import one_line_errors
from btr.models import resolve
from btr.readers.base import Mode
from btr.readers.bert_text import load_tokenizer
from btr.readers.t5_checkpoint import T5ReaderConfig, save_checkpoint
from btr.readers.t5_network import SplitT5


def write_random_reader(folder: Path, shape: str, *, scale: str = "rms16") -> None:
    """Write the checkpoints ``btr`` and ``decomposed`` of a reader, with the paper's cut.

    Args:
        folder: Of the reader.
        shape: One of :data:`SHAPES`.
        scale: How a token's scale is stored: "rms16" or "rms8".
    """
    cut = load_tokenizer(Path(resolve("minilm-encoder")))
    cut.eos_token = cut.sep_token
    model = random_t5(SHAPES[shape], torch.bfloat16)
    model.config.eos_token_id = cut.sep_token_id
    split = SHAPES[shape].split_layer
    modes: tuple[Mode, ...] = ("btr", "decomposed")
    for mode in modes:
        config = T5ReaderConfig(mode=mode, split_layer=split, scale=scale)
        network = SplitT5(model, split, binarized=mode == "btr")
        save_checkpoint(folder / mode, network, cut, config)


@one_line_errors
def main() -> int:
    """Write a reader."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", type=Path, help="folder to make")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="base")
    parser.add_argument("--scale", choices=("rms16", "rms8"), default="rms16")
    given = parser.parse_args()
    write_random_reader(given.reader, given.shape, scale=given.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
