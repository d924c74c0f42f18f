"""Write a synthetic twin of a dataset: its layout, sizes, dtypes and quirks, none of its pixels.

    python -m cellseg_jax.data.synthetic --like=livecell --out=DIR [--count=N] [--seed=0]
        [--size=H,W]

--size is for quick tests: it replaces the size in the table, and other sizes of the same dataset
shrink with it. The same seed writes the same pixels. --out is a new or empty folder; it appears
when all is written. Exit codes: 0 done, 2 bad input.

    --like    default count           height x width      as in the original
    bbbc039   20 images               520x696             16 bit, official lists, touching nuclei
                                                      separated by red, an empty mask
    ctc       6 frames per sequence   512x512, 700x1100,  partial gold truth, complete silver
              (3 datasets x 2 of 01   576x720             truth, tracks, own numbers, gaps, 16 bit
              and 02)                                     with an offset, LZW
    dsb2018   40 training images      256x256 and eight   five kinds of image; masks that overlap,
                                      others              in two pieces, with holes, RGBA, 1 bit
    ebhi_seg  9 images per class      224x224             a case in two classes, soft labels,
              (6 classes)                                 repeated names, two without label
    folder    24 images               256x256             images/ and masks/ with instance ids
    isbi2012  30 labelled slices      512x512             multi-page TIFF, membranes 0 in 255
    livecell  32 images               520x704             COCO polygons that overlap, few cells
                                                      annotated, an image listed twice
"""

import sys
import time

from absl import flags

from cellseg_jax import cli
from cellseg_jax.errors import InputError


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    cli.string(values, "like", "the dataset to imitate")
    cli.string(values, "out", "the folder to write to")
    cli.integer(values, "count", "how many, in the unit of the table; 0 is the table's number")
    cli.integer(values, "seed", "of everything")
    cli.string(values, "size", "H,W in pixels, 0 as in the original", default="0")


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One twin; returns the exit code."""
    from cellseg_jax.data.synthetic import twins  # here, so that --help answers sooner

    if overrides or args.config:
        raise InputError("--config: a twin has no config; pass --like, --out, --count, --seed "
                         "and --size")
    if not args.like:
        raise InputError(f"--like: missing; pass --like={'|'.join(twins.TWINS)}")
    cli.require(args, "out")
    try:
        size = tuple(int(part) for part in args.size.split(","))
    except ValueError as error:
        raise InputError(f"--size: got {args.size}; expected H,W in pixels") from error
    started = time.monotonic()
    count = twins.write(args.like, args.out, count=args.count, seed=args.seed,
                        size=(0, 0) if size == (0,) else size)
    print(f"{args.out}: a synthetic twin of {args.like}, {count} "
          f"{twins.TWINS[args.like].counted}, in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
