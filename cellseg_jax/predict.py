"""Segment images with a trained run.

    python -m cellseg_jax.predict --workdir=runs/NAME[,runs/OTHER] --images='DIR or glob' --out=DIR
        [--format=tiff,png] [--scale=0] [--halo=N|auto] [--tta=flips|all] [--tune=ap50]
        [--checkpoint=best|last] [--device=cpu|gpu|cuda:1] [--config.eval.threshold=0.5 ...]

Leaves one file per format for every image, and for every plane of a stack. `<image>_label.tif`, at
its own height and width, holds instance ids (0 background), uint16, or uint32 above 65535
instances; class numbers instead if the run's target is classes. `<image>_overlay.png` shows their
outlines over the image. Folders below --images are kept below --out. Started again it goes on
where it was stopped; what predict wrote, into whichever folder, is never read as an image.

Images of more than 16 million pixels are read, predicted and decoded in bands, so that memory
depends on their width alone. Several runs predict together: the mean of their probabilities.
`--format=uncertainty` writes the standard deviation of the probability of each pixel over the
runs and views (--tta), the root of its mean over the outputs where there are several.
Exit codes: 0 done, 2 bad input; a bad image is named and the others go on.
"""

import collections
import contextlib
import functools
import glob
import json
import math
import pathlib
import sys
import time

from absl import flags

from cellseg_jax.cli import define_device_flags, run_command
from cellseg_jax.errors import InputError, pick, print_error

NOTE = "predict.json"  # in a folder of predictions: what made them
CHECKPOINTS = {"best": "best", "last": "last"}
IRRELEVANT = ("every", "batch_size", "panels")  # keys of config.eval that leave labels as they are
WHOLE = 2**24  # pixels up to which images are in memory, several together; larger come in bands
UNCERTAINTY = "_uncertainty.tif"
ROWS_EVERY_S = 10.0  # between two lines on the rows of a large image


def define_flags(values: flags.FlagValues) -> None:
    """The flags of this command."""
    text = lambda name, default, help_: flags.DEFINE_string(name, default, help_,
                                                            flag_values=values)
    text("workdir", "", "the folder of a trained run; several, with commas, predict together")
    flags.DEFINE_multi_string(
        "images", [], "a file, a folder, searched with all below it, or a quoted glob such as "
        "'in/*.tif'; may be given several times", flag_values=values)
    text("out", "", "the folder to write to")
    text("format", "tiff,png", "with commas: tiff (labels), png (outlines over the image), "
         "probability, uncertainty, roi (ImageJ), geojson (QuPath), coco, csv (measurements)")
    text("checkpoint", "best", "best | last")
    flags.DEFINE_float("scale", 0.0, "0 repeats the training's fit; above 0 tiles the image at "
                       "that scale, 1 being its own", flag_values=values)
    text("halo", "", "pixels that are cropped from the edges of tiles, or auto: what the network "
         "sees around a pixel. Without, tiles that overlap are blended")
    text("tta", "", "flips | all: the mean over 4 flips, or 8 flips and turns, of each tile")
    text("tune", "", "ap50 | pq | seg ...: threshold, decoding and least size are those that score "
         "best on the run's own validation images, found once and kept in tuning.json; alone, "
         "without --images, only that")
    define_device_flags(values)


def main(args, overrides: list[tuple[str, str]]) -> int:
    """All images of one command; returns the exit code."""
    from cellseg_jax.inference import outputs

    known = {name: format_.suffix for name, format_ in outputs.FORMATS.items()}
    known["uncertainty"] = UNCERTAINTY
    formats = {name.strip(): pick(known, name.strip(), "--format")
               for name in args.format.split(",")}
    pick(CHECKPOINTS, args.checkpoint, "--checkpoint")
    if not (math.isfinite(args.scale) and args.scale >= 0):
        raise InputError(f"--scale: got {args.scale}; expected 0 (as in training) or above")
    if args.halo not in ("", "auto") and not args.halo.isdecimal():
        raise InputError(f"--halo: got {args.halo!r}; expected pixels or auto")
    only_tunes = args.tune and not (args.images or args.out)
    for flag in ("workdir",) if only_tunes else ("workdir", "images", "out"):
        if not getattr(args, flag):
            raise InputError(f"--{flag}: missing; pass --{flag}=DIR")
    if args.config:
        raise InputError("--config: a trained run brings its own; pass --workdir alone, and "
                         "--config.eval.KEY=VALUE to decode in another way")
    out = pathlib.Path(args.out)
    jobs = [] if only_tunes else _jobs(args.images, out, known)

    from cellseg_jax.report import terminal
    from cellseg_jax.step.memory import peak_rss

    run, how, made_by = _run(args, overrides, "uncertainty" in formats)
    if only_tunes:
        return 0
    _claim(out, made_by | {f"config.eval.{key}": value for key, value in run.config.eval.items()
                           if key not in IRRELEVANT})

    pages = run.config.data.get("pages", "")
    planes = [plane for job in jobs for plane in _planes(*job, pages)]
    waiting = [plane for plane in planes if not _finished(plane, formats.values())]
    if len(waiting) < len(planes):
        terminal.log(f"{len(planes) - len(waiting)} of {len(planes)} images were finished before")
    bad, started = 0, time.monotonic()
    try:
        with terminal.counting("predicting") as progress:
            for done, failed in _segment_all(run, how, waiting, formats, pages):
                bad += failed
                progress(done, len(waiting))
    except OSError as error:
        raise InputError(f"--out: cannot write {error.filename or out}: {error.strerror}; the "
                         "images before it are finished, start again to go on") from error
    peak = peak_rss() / 2**30
    print(f"images predicted: {len(waiting) - bad}, bad: {bad}, in "
          f"{time.monotonic() - started:.1f} s; peak memory {peak:.2f} GiB")
    return 2 if bad else 0


def _run(args, overrides, uncertain):
    """(Predictor or Ensemble, predictor.How, what made the labels) of the flags."""
    from cellseg_jax import config as config_lib
    from cellseg_jax.inference import tune
    from cellseg_jax.inference.bands import VIEWS, PredictOptions
    from cellseg_jax.inference.ensemble import Ensemble
    from cellseg_jax.inference.predictor import Predictor
    from cellseg_jax.report import terminal
    from cellseg_jax.runs.folder import read_config

    workdirs = [args.workdir] if pathlib.Path(args.workdir).exists() else args.workdir.split(",")
    for key, _ in overrides:
        if not key.startswith("eval."):
            raise InputError(f"config.{key}: is fixed by the training; only config.eval.* can "
                             "change")
    pick(VIEWS, args.tta, "--tta")
    if uncertain and len(workdirs) == 1 and not args.tta:
        raise InputError("--format=uncertainty: a single prediction has no spread; pass several "
                         "runs (--workdir=a,b,c), or --tta=flips")
    if args.tune and len(workdirs) > 1:
        raise InputError("--tune: tunes one run; for several pass --config.eval.threshold=... and "
                         "the other values yourself")
    members = []
    for workdir in workdirs:
        config = config_lib.override(read_config(workdir), overrides)
        members.append(Predictor(workdir, config, args.checkpoint))
    if args.tune:
        tuning = tune.tune(members[0], args.tune, fixed=[key for key, _ in overrides])
        terminal.log(tune.told(tuning))
        members[0].config = tune.apply(members[0].config, tuning)
    elif len(workdirs) == 1 and (pathlib.Path(args.workdir) / tune.TUNING_FILE).exists():
        terminal.log(f"{tune.TUNING_FILE} of the run is not used; pass --tune=METRIC to use it")
    halo = 0
    if args.halo == "auto":
        halo = max(member.network.reach() for member in members)
        terminal.log(f"--halo=auto: {halo} pixels")
    elif args.halo:
        halo = int(args.halo)
    how = PredictOptions(args.scale, halo, args.tta, uncertain)
    for member in members:
        member.check(how)
    identities = ", ".join(config_lib.identity(member.config) for member in members)
    steps = [member.step for member in members]
    made_by = {"run": identities, "checkpoint step": steps if len(steps) > 1 else steps[0],
               "--scale": args.scale, "--halo": halo, "--tta": args.tta}
    return members[0] if len(members) == 1 else Ensemble(members), how, made_by


def _jobs(images: list[str], out, known) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(image, output path without suffix) of every image, sorted; nothing written is read again."""
    found = {}
    for text in images:
        found |= dict(_found(text, out, known))
    stems = [place.with_suffix("") for place in found.values()]
    if len(set(found.values())) < len(found):
        raise InputError(f"--images: two of {', '.join(images)} have images of the same name; "
                         "expected one folder above them, or one command for each")
    # a.png and a.tif side by side keep their suffix, or one would overwrite the other
    twice = {stem for stem, count in collections.Counter(stems).items() if count > 1}
    return sorted((path, place if stem in twice else stem)
                  for (path, place), stem in zip(found.items(), stems, strict=True))


def _found(text: str, out: pathlib.Path, known) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(image, place below out) of one --images."""
    from cellseg_jax.data import lazy
    from cellseg_jax.report import terminal

    root = pathlib.Path(text).expanduser()
    inside_out = lambda p: out.resolve() in p.resolve().parents
    if root.is_dir() and not lazy.is_image(root):
        found = list(_below(root))
        paths = [p for p in found if lazy.is_image(p)]
        others = sum(p.name != NOTE and not inside_out(p) and not p.name.endswith(
            tuple(known.values())) for p in set(found) - set(paths))
        if others:
            terminal.log(f"{others} files in {text} are no PNG, TIFF, BMP, JPEG or OME-Zarr and "
                          "left out")
    else:
        paths = [root] if root.exists() else [
            pathlib.Path(p) for p in glob.glob(str(root), recursive=True)]
        paths = [p for p in paths if p.is_file() or lazy.is_image(p)]
        fixed = next((n for n, part in enumerate(root.parts) if glob.has_magic(part)),
                     len(root.parts) - 1)
        if root.exists():
            fixed = len(root.parts) - 1
        root = pathlib.Path(*root.parts[: min(fixed, len(root.parts) - 1)])
    noted = functools.cache(
        lambda folder: any((f / NOTE).is_file() for f in (folder, *folder.parents)))
    written = lambda p: inside_out(p) or noted(p.resolve().parent)
    ours = lambda p: p.name == NOTE or p.name.endswith(tuple(known.values())) and written(p)
    paths = [p for p in paths if not ours(p)]
    if not paths:
        raise InputError(f"--images: no image in {text!r}; expected a file, a folder with PNG, "
                         "TIFF, BMP, JPEG or OME-Zarr images, or a quoted glob such as 'in/*.tif'")
    return [(p, out / p.relative_to(root)) for p in paths]


def _below(folder: pathlib.Path):
    """Files and OME-Zarr images in a folder and those below it, without hidden ones."""
    from cellseg_jax.data import lazy

    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not lazy.is_image(path):
            yield from _below(path)
        else:
            yield path


def _planes(path, stem, pages) -> list[tuple[pathlib.Path, int, pathlib.Path]]:
    """(file, number of the plane, output path without suffix) of every image of a file."""
    from cellseg_jax.data import lazy

    if path.is_file() and path.suffix.lower() not in (".tif", ".tiff"):
        return [(path, 0, stem)]
    try:
        names = [image.name for image in lazy.open_images(path, pages)]
    except InputError:  # is told when its turn comes
        return [(path, 0, stem)]
    if len(names) == 1:
        return [(path, 0, stem)]
    return [(path, n, stem.with_name(f"{stem.name}_{n:04d}")) for n in range(len(names))]


def _claim(out: pathlib.Path, made_by: dict) -> None:
    """Make `out` and note what fills it; another run's labels there would pass for this one's."""
    from cellseg_jax.files import write_atomic

    note = out / NOTE
    try:
        out.mkdir(parents=True, exist_ok=True)
        before = json.loads(note.read_text()) if note.exists() else made_by
        if before == made_by:
            write_atomic(note, json.dumps(made_by, indent=1))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--out: cannot write to {out} ({reason}); "
                         "choose another folder") from error
    changed = [key for key in made_by if before.get(key) != made_by[key]]
    if changed:
        raise InputError(f"--out: {out} holds predictions made with another {changed[0]} "
                         f"({before.get(changed[0])}, now {made_by[changed[0]]}); choose another "
                         "folder or delete it")


def _finished(plane, suffixes) -> bool:
    """Whether every output is there and not older than the image."""
    path, _, stem = plane
    files = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    return all(f.exists() and f.stat().st_mtime >= path.stat().st_mtime for f in files)


def _segment_all(run, how, waiting, formats, pages):
    """Yields (images done, how many of the last ones failed); small images go together."""
    from cellseg_jax.data import lazy

    opened = functools.lru_cache(1)(lambda path: lazy.open_images(path, pages))
    group, pixels, done = [], 0, 0
    for left, (path, number, stem) in zip(range(len(waiting) - 1, -1, -1), waiting):
        failed = 0
        try:
            image = opened(path)[number]
            area = image.shape[0] * image.shape[1]
            if area > WHOLE:
                _segment_bands(run, how, image, stem, formats)
                done += 1
            else:
                group.append((lazy.from_array(image.read(), image.name, image.pixel_size), stem))
                pixels += area
        except InputError as error:
            print_error(error)
            done, failed = done + 1, 1
        if group and (not left or len(group) >= run.config.eval.batch_size or pixels > WHOLE):
            _segment(run, how, group, formats)
            done, group, pixels = done + len(group), [], 0
        yield done, failed


def _segment(run, how, group, formats) -> None:
    """Predict, decode and write images that are in memory: [(data.images.Image, stem)]."""
    all_probs = run.probs([image.read() for image, _ in group], how)
    for (image, stem), probs in zip(group, all_probs, strict=True):
        probs, variance = (probs[..., :-1], probs[..., -1]) if how.uncertain else (probs, None)
        stem.parent.mkdir(parents=True, exist_ok=True)
        _write(run, run.decode(probs), image, stem, formats, probs, variance)


def _segment_bands(run, how, image, stem, formats) -> None:
    """The same of one image that is read, predicted, decoded and written in bands."""
    import numpy as np

    from cellseg_jax.inference import stitch
    from cellseg_jax.inference.outputs.tiff import BandedTiff
    from cellseg_jax.report import terminal

    config, size = run.config, image.shape[:2]
    stem.parent.mkdir(parents=True, exist_ok=True)

    def kept(bands):  # written as they pass, since nobody holds them all
        row = said = 0
        for band in bands:
            probs, variance = (band[..., :-1], band[..., -1]) if how.uncertain else (band, None)
            for name, value in (("probability", probs), ("uncertainty", variance)):
                if name in formats:
                    if name not in writers:
                        writers[name] = stack.enter_context(BandedTiff(
                            stem.with_name(stem.name + formats[name]), (*size, *value.shape[2:]),
                            np.float32, image.pixel_size))
                    writers[name].write_rows(value if name == "probability" else np.sqrt(value))
            yield probs
            row += len(band)
            if row == size[0] or time.monotonic() - said > ROWS_EVERY_S:
                said = time.monotonic()
                terminal.log(f"{image.name}: row {row} of {size[0]}")

    writers = {}
    with contextlib.ExitStack() as stack:
        bands = kept(run.bands(image, how))
        if config.data.target == "classes":
            label, row = stitch.on_disk(size, stem.parent), 0
            for probs in bands:
                label[row : row + len(probs)] = run.decode(probs)
                row += len(probs)
        else:
            label = stitch.stitched(
                bands, size, lambda probs: run.decode(probs, min_size=0), stem.parent,
                touching=config.eval.decode == "components" and config.data.target != "contour",
                min_size=config.eval.min_size)
        for _ in bands:  # rows that only the last pixels of the margins reach
            pass
    _write(run, label, image, stem, [name for name in formats if name not in writers])


def _write(run, label, image, stem, formats, probs=None, variance=None) -> None:
    import numpy as np

    from cellseg_jax.inference import outputs

    data = run.config.data
    classes = tuple(f"class {n}" for n in range(1, data.num_classes))
    for name in formats:
        if name == "uncertainty":
            outputs.FORMATS["probability"].write(
                stem.with_name(stem.name + UNCERTAINTY), None, image, np.sqrt(variance))
        else:
            outputs.write(name, stem, label, image, probability=probs,
                          classes=classes if data.target == "classes" else ())


if __name__ == "__main__":
    sys.exit(run_command(main, define_flags))
