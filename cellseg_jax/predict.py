"""Segment images with a trained run.

    python -m cellseg_jax.predict --workdir=runs/NAME --images='DIR or glob' --out=DIR
        [--format=tiff] [--scale=0] [--checkpoint=best|last] [--config.eval.threshold=0.5 ...]

Leaves two files for every image. `<image>_label.tif`, at its own height and width, holds instance
ids (0 background), uint16, or uint32 above 65535 instances; class numbers instead if the run's
target is classes. `<image>_overlay.png` shows their outlines over the image. Folders below
--images are kept below --out. Started again it goes on where it was stopped; what predict wrote,
into whichever folder, is never read as an image. Exit codes: 0 done, 2 bad input; a bad image is
named and the others go on.
"""

import functools
import glob
import io
import json
import math
import pathlib
import sys
import time

from absl import flags

from cellseg_jax.commands import run_command
from cellseg_jax.errors import InputError, pick, tell

FORMATS = {"tiff": "_label.tif", "png": "_overlay.png"}
NOTE = "predict.json"  # in a folder of predictions: what made them
CHECKPOINTS = {"best": "best", "last": "last"}
IRRELEVANT = ("every", "batch_size", "panels")  # keys of config.eval that leave labels as they are


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    text = lambda name, default, help_: flags.DEFINE_string(name, default, help_,
                                                            flag_values=values)
    text("workdir", "", "the folder of a trained run")
    text("images", "", "a folder, searched with all below it, or a quoted glob such as 'in/*.tif'")
    text("out", "", "the folder to write to")
    text("format", "tiff,png", "tiff (labels), png (outlines over the image), or both")
    text("checkpoint", "best", "best | last")
    flags.DEFINE_float("scale", 0.0, "0 repeats the training's fit; above 0 tiles the image at "
                       "that scale, 1 being its own", flag_values=values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """All images of one command; returns the exit code."""
    formats = [part.strip() for part in args.format.split(",")]
    suffixes = [pick(FORMATS, name, "--format") for name in formats]
    pick(CHECKPOINTS, args.checkpoint, "--checkpoint")
    if not (math.isfinite(args.scale) and args.scale >= 0):
        raise InputError(f"--scale: got {args.scale}; expected 0 (as in training) or above")
    for flag in ("workdir", "images", "out"):
        if not getattr(args, flag):
            raise InputError(f"--{flag}: missing; pass --{flag}=DIR")
    if args.config:
        raise InputError("--config: a trained run brings its own; pass --workdir alone, and "
                         "--config.eval.KEY=VALUE to decode in another way")
    out = pathlib.Path(args.out)
    jobs = _jobs(args.images, out)

    from cellseg_jax import config as config_lib
    from cellseg_jax import evaluate, feed, rundir
    from cellseg_jax.report import terminal

    config = rundir.read_config(args.workdir)
    for key, _ in overrides:
        if not key.startswith("eval."):
            raise InputError(f"config.{key}: is fixed by the training; only config.eval.* can "
                             "change")
    config = config_lib.override(config, overrides)
    # A whole resized image is a batch of its own; tiles come in batches of eval.batch_size.
    whole = config.data.fit == "resize" and not args.scale
    predictor = evaluate.make_predictor(args.workdir, config, args.checkpoint, int(whole))
    made_by = {"run": config_lib.identity(config), "checkpoint step": predictor.step,
               "--scale": args.scale, **{f"config.eval.{key}": value for key, value
                                         in config.eval.items() if key not in IRRELEVANT}}
    _claim(out, made_by)

    waiting = [job for job in jobs if not _finished(*job, suffixes)]
    if len(waiting) < len(jobs):
        terminal.note(f"{len(jobs) - len(waiting)} of {len(jobs)} images were finished before")
    bad, started = 0, time.monotonic()
    with terminal.counting("predicting") as progress:
        for done, (path, stem) in enumerate(waiting, 1):
            try:
                _segment(predictor, path, stem, args.scale, formats)
            except InputError as error:
                bad += 1
                tell(error)
            except OSError as error:
                raise InputError(f"--out: cannot write {stem}: {error.strerror}; the images before "
                                 "it are finished, start again to go on") from error
            progress(done, len(waiting))
    peak = feed.peak_rss() / 2**30
    print(f"images predicted: {len(waiting) - bad}, bad: {bad}, in "
          f"{time.monotonic() - started:.1f} s; peak memory {peak:.2f} GiB")
    return 2 if bad else 0


def _jobs(images: str, out: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(image, output path without suffix) of every image, sorted; nothing written is read again."""
    from cellseg_jax.data import records
    from cellseg_jax.report import terminal

    root = pathlib.Path(images).expanduser()
    inside_out = lambda p: out.resolve() in p.resolve().parents
    if root.is_dir():
        hidden = lambda p: any(part.startswith(".") for part in p.relative_to(root).parts)
        found = [p for p in root.rglob("*") if p.is_file() and not hidden(p)]
        paths = [p for p in found if p.suffix.lower() in records.SUFFIXES]
        others = sum(p.name != NOTE and not inside_out(p) for p in set(found) - set(paths))
        if others:
            terminal.note(f"{others} files in {images} are no PNG, TIFF, BMP or JPEG and left out")
    else:
        paths = [pathlib.Path(p) for p in glob.glob(str(root), recursive=True)]
        fixed = next((n for n, part in enumerate(root.parts) if glob.has_magic(part)),
                     len(root.parts) - 1)
        root = pathlib.Path(*root.parts[: min(fixed, len(root.parts) - 1)])
    noted = functools.cache(
        lambda folder: any((f / NOTE).is_file() for f in (folder, *folder.parents)))
    written = lambda p: inside_out(p) or noted(p.resolve().parent)
    ours = lambda p: p.name == NOTE or p.name.endswith(tuple(FORMATS.values())) and written(p)
    paths = sorted(p for p in paths if p.is_file() and not ours(p))
    if not paths:
        raise InputError(f"--images: no image in {images!r}; expected a folder with PNG, TIFF, "
                         "BMP or JPEG files, or a quoted glob such as 'in/*.tif'")
    places = [out / p.relative_to(root) for p in paths]
    stems = [p.with_suffix("") for p in places]
    # a.png and a.tif side by side keep their suffix, or one would overwrite the other
    return [(path, place if stems.count(stem) > 1 else stem)
            for path, place, stem in zip(paths, places, stems, strict=True)]


def _claim(out: pathlib.Path, made_by: dict) -> None:
    """Make `out` and note what fills it; another run's labels there would pass for this one's."""
    from cellseg_jax import rundir

    note = out / NOTE
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = json.loads(note.read_text()) if note.exists() else made_by
        if before == made_by:
            rundir.write_atomic(note, json.dumps(made_by, indent=1))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--out: cannot write to {out} ({reason}); "
                         "choose another folder") from error
    changed = [key for key in made_by if before.get(key) != made_by[key]]
    if changed:
        raise InputError(f"--out: {out} holds predictions made with another {changed[0]} "
                         f"({before.get(changed[0])}, now {made_by[changed[0]]}); choose another "
                         "folder or delete it")


def _finished(path, stem, suffixes) -> bool:
    """Whether every output is there and not older than the image."""
    outputs = [_output(stem, suffix) for suffix in suffixes]
    return all(o.exists() and o.stat().st_mtime >= path.stat().st_mtime for o in outputs)


def _output(stem: pathlib.Path, suffix: str) -> pathlib.Path:
    return stem.with_name(stem.name + suffix)


def _segment(predictor, path, stem, scale, formats) -> None:
    """Read, predict, decode and write one image."""
    import numpy as np
    import tifffile

    from cellseg_jax import rundir
    from cellseg_jax.data import records
    from cellseg_jax.report import panels

    image = records.read_image(path)
    label = np.asarray(predictor.decode(predictor.image_probs(image, scale)))
    label = label.astype(np.uint16 if label.max() < 2**16 else np.uint32)
    stem.parent.mkdir(parents=True, exist_ok=True)
    if "png" in formats:
        panels.write_png(_output(stem, FORMATS["png"]), panels.overlay(image, label))
    if "tiff" in formats:
        data = io.BytesIO()
        tifffile.imwrite(data, label, compression="zlib")
        rundir.write_atomic(_output(stem, FORMATS["tiff"]), data.getvalue())


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
