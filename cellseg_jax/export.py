"""Write a trained run as a file that runs elsewhere, once it is shown to compute the same.

    python -m cellseg_jax.export --workdir=runs/NAME --format=stablehlo|onnx|bioimageio
        [--out=DIR] [--checkpoint=best|last] [--tile=H,W] [--author='NAME; NAME']
        [--license=CC-BY-4.0] [--config.eval.threshold=0.5 ...]

What is exported maps a normalised float32 image to probabilities, in float32 whatever the run
trained in. Beside it, export.json describes both.

  stablehlo    model.stablehlo for CPU, CUDA and TPU: JAX alone runs it. (N, H, W, C), where N,
               and H and W as far as the network allows, are open.
  onnx         model.onnx, opset 17, (N, C, H, W) with H and W those of --tile.
  bioimageio   a package for bioimage.io: the ONNX weights, normalisation included where its
               format can express it, tensors to test with, a sample, a cover, documentation.

The exported program must agree with the run on 16 images to 1e-4, else nothing is written.
--tile is the run's own input size unless given. --out is RUN/export/FORMAT unless given; an
earlier export there is replaced. Needs `pip install cellseg_jax[export]`. Exit codes: 0 done,
1 the program cannot be exported or differs, 2 bad input.
"""

import os
import pathlib
import sys

from absl import flags

from cellseg_jax import cli, errors

FORMATS = ("stablehlo", "onnx", "bioimageio")


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    cli.string(values, "workdir", "the folder of a trained run")
    cli.string(values, "format", " | ".join(FORMATS))
    cli.string(values, "out", "the folder to write; default RUN/export/FORMAT")
    cli.string(values, "checkpoint", " | ".join(cli.CHECKPOINTS), "best")
    cli.string(values, "tile", "H,W in pixels, where sizes are fixed; default the run's input size")
    cli.string(values, "author", "with bioimageio: who made the model, separated by ';'")
    cli.string(values, "license", "with bioimageio: SPDX name of the licence of the weights",
               "CC-BY-4.0")


def main(args, overrides: list[tuple[str, str]]) -> int:
    """One export; returns the exit code."""
    cli.check_choice(args, "format", FORMATS)
    cli.check_choice(args, "checkpoint", cli.CHECKPOINTS)
    cli.require(args, "workdir")
    cli.refuse_config(args)
    for name in ("author", "license"):
        if args[name].present and (args.format != "bioimageio" or not args[name].value.strip()):
            raise errors.InputError(f"--{name}: got {args[name].value!r} with --format="
                                    f"{args.format}; expected text, with bioimageio, which alone "
                                    "has it")
    from cellseg_jax.interop import exporting
    from cellseg_jax.report import terminal

    out = args.out or pathlib.Path(args.workdir, "export", args.format)
    options = exporting.ExportOptions(
        args.format, out=os.path.abspath(out),
        tile=exporting.parse_tile(args.tile) if args.tile else None,
        authors=tuple(name.strip() for name in args.author.split(";") if name.strip()),
        license=args.license)
    exporting.check_folder(options.out)
    run = exporting.open_run(args.workdir, overrides, args.checkpoint, options)
    try:
        about = exporting.export(run, options)
    except exporting.CannotExport as error:
        errors.print_error(f"--format={args.format}: {error}")
        return 1
    for text in about["notes"]:
        terminal.log(text)
    files = ", ".join(sorted(path.name for path in pathlib.Path(options.out).iterdir()))
    print(f"exported to {out}: {files}; largest difference on {exporting.IMAGES} images "
          f"{about['parity']['largest_difference']:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_command(main, define_flags))
