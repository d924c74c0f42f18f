"""Segment images with a trained run.

    python -m cellseg_jax.predict --workdir=runs/NAME[,runs/OTHER] --images='DIR or glob' --out=DIR
        [--format=tiff,png] [--scale=0 | --diameter=PIXELS | --pixel_size=UM] [--halo=N|auto]
        [--channels=0,1] [--tta=flips|all] [--tune=ap50] [--checkpoint=best|last]
        [--device=cpu|gpu|cuda:1]
        [--config.eval.threshold=0.5 ...]

Leaves one file per format for every image, and for every plane of a stack. `<image>_label.tif`, at
its own height and width, holds instance ids (0 background), uint16, or uint32 above 65535
instances; class numbers instead if the run's target is classes. `<image>_overlay.png` shows their
outlines over the image. `--format=coco` also joins what lies in a folder in `predict.coco.json`.
Folders below --images are kept below --out. Started again it continues
with the images that are not finished; what predict wrote, into whichever folder, is never read as
an image; nor are masks beside images (x_masks.png, a folder masks/ beside images/), which are
counted.

Images of more than 16 million pixels are read, predicted and decoded in bands, so that memory
depends on their width alone. Several runs predict together: the mean of their probabilities.
`--format=uncertainty` writes the standard deviation of the probability of each pixel over the
runs and views (--tta), the root of its mean over the outputs where there are several.
Exit codes: 0 done, 2 bad input; a bad image is named and the others are still predicted.
"""

import sys

from absl import flags

from cellseg_jax import cli
from cellseg_jax.errors import check_choice
from cellseg_jax.inference.options import IN_MEMORY_PIXELS, PredictOptions, check
from cellseg_jax.inference.outputs import FORMATS


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    cli.string(values, "workdir", "the folder of a trained run; several, with commas, predict "
               "together")
    cli.strings(values, "images", "a file, a folder, searched with all below it, or a quoted glob "
                "such as 'in/*.tif'; may be given several times")
    cli.string(values, "out", "the folder to write to")
    formats = ", ".join(f"{name} ({format_.what}) in IMAGE{format_.suffix}"
                        for name, format_ in FORMATS.items())
    cli.string(values, "format", f"with commas: {formats}", "tiff,png")
    cli.string(values, "checkpoint", " | ".join(cli.CHECKPOINTS), "best")
    cli.number(values, "scale", "0 repeats the training's fit; above 0 tiles the image at that "
               "scale, 1 being its own")
    cli.number(values, "diameter", "of the cells in the images, pixels: the image is rescaled to "
               "cells as large as the training's. Without, runs with data.diameter find it")
    cli.number(values, "pixel_size", "of the images, micrometres, as --diameter; without, runs "
               "with data.pixel_size take that of each file")
    cli.string(values, "halo", "pixels that are cropped from the edges of tiles, or auto: the "
               "network's receptive field. Without, tiles that overlap are blended")
    cli.string(values, "tta", "flips | all: the mean over 4 flips, or 8 flips and turns, of each "
               "tile")
    cli.string(values, "tune", "ap50 | pq | seg ...: threshold, decoding and least size are those "
               "that score best on the run's own validation images, found once and kept in "
               "tuning.json; alone, without --images, only that")
    cli.string(values, "channels", "numbers from 0 or names of the channels of the images, with "
               "commas, in place of those of the training (data.channel_index)")
    cli.define_device_flags(values)


def main(args, overrides: list[tuple[str, str]], in_memory_pixels: int = IN_MEMORY_PIXELS) -> int:
    """All images of one command; returns the exit code.

    Args:
      in_memory_pixels: of the images that are in memory together; larger ones come in bands.
    """
    formats = [name.strip() for name in args.format.split(",")]
    for name in formats:
        check_choice(name, FORMATS, "--format")
    cli.check_choice(args, "checkpoint", cli.CHECKPOINTS)
    options = PredictOptions(args.scale, tta=args.tta, uncertain="uncertainty" in formats,
                             diameter=args.diameter, pixel_size=args.pixel_size)
    check(options, args.halo, len([*filter(None, args.workdir.split(","))]))
    only_tunes = args.tune and not (args.images or args.out)
    cli.require(args, *(("workdir",) if only_tunes else ("workdir", "images", "out")))
    cli.refuse_config(args, instead="pass --workdir alone, and --config.eval.KEY=VALUE to decode "
                      "in another way")
    from cellseg_jax.inference import images_in, segment

    jobs = [] if only_tunes else images_in.find(args.images, args.out)
    runs = segment.open_runs(args.workdir, overrides, options, checkpoint=args.checkpoint,
                             halo=args.halo, metric=args.tune)
    if only_tunes:
        return 0
    segment.read_options(runs.predictor.config, args.channels)
    given = {"--channels": args.channels} if args.channels else {}
    images_in.claim(args.out, runs.made_by | given, jobs, formats)
    bad = segment.segment(
        runs, segment.Work(jobs, args.out, formats, in_memory_pixels, args.channels))
    images_in.give_up(args.out)
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
