"""Writes the images and labels of each part of a config's split, for all peers to read.

    python -m benchmarks.peers.export_split --config=configs/unet_adam.py --out=DIR \\
        [--channels=gray] [--config.data.strata="('fluorescence',)" ...]

DIR/train, DIR/val and DIR/test hold images/NAME.tif and labels/NAME.tif of equal size, native
pixels: images 8 or 16 bit, labels 16 bit with 0 for the background. DIR/strata.csv has a line per
image, DIR/split.json the split.
"""

import csv
import json
import pathlib
import types

import numpy as np
import tifffile

from cellseg_jax import cli, config, data
from cellseg_jax.data import colours
from cellseg_jax.errors import InputError


def define_flags(values):
    cli.string(values, "out", "the folder to write, which must not exist")
    cli.string(values, "channels", "gray | rgb", "gray")


def split_names(data_config, records, strata) -> dict[str, list[str]]:
    """{part: names} of all records, as a run of this config splits them."""
    arrays = types.SimpleNamespace(  # what a split reads of the decoded dataset
        grid=1, image_names=[r.name for r in records], image_groups=[r.group for r in records],
        image_parts=[r.part for r in records], image_strata=np.array(strata))
    return {part: [records[i].name for i in indices]
            for part, indices in data.split_of(data_config, arrays).items()}


def main(args, overrides) -> int:
    cli.require_config(args)
    cli.require(args, "out")
    cli.check_choice(args, "channels", ("gray", "rgb"))
    out = pathlib.Path(args.out)
    if out.exists():
        raise InputError(f"--out: '{out}' exists; expected a new folder")
    data_config = config.load(args.config, overrides).data
    records = data.records_of(data_config)
    samples = {record.name: record.read() for record in records}
    names = split_names(data_config, records, [samples[r.name].stratum for r in records])
    for part, chosen in names.items():
        for name in chosen:
            image = colours.to_channels(samples[name].image, args.channels).squeeze()
            for kind, pixels in (("images", image), ("labels", samples[name].label)):
                path = out / part / kind / f"{name}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, pixels.astype(np.uint16) if kind == "labels" else pixels)
    (out / "split.json").write_text(json.dumps(names, indent=1))
    with open(out / "strata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("name", "part", "stratum", "height", "width", "cells"))
        for part, chosen in names.items():
            for name in chosen:
                label = samples[name].label
                table.writerow((name, part, samples[name].stratum, *label.shape,
                                np.count_nonzero(np.unique(label))))
    print(f"{out}: " + ", ".join(f"{len(chosen)} {part}" for part, chosen in names.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run_command(main, define_flags))
