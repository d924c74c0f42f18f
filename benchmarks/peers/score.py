"""AP and the other instance scores of label images that a peer predicted, by our definitions.

    python -m benchmarks.peers.score --data=DIR --labels=OUT

DIR is the folder of export_split, OUT that of a peer. One row per part and one of both together;
scores come from counts summed over the images, as in a run's test scores; ap50_image is
the mean of the images' own.
"""

import argparse
import csv
import pathlib

import numpy as np
import tifffile

from cellseg_jax import metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--labels", type=pathlib.Path, required=True)
    args = parser.parse_args()
    with open(args.data / "strata.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] != "train"]
    counts = {}
    for row in rows:
        name = f"{row['name']}.tif"
        label = tifffile.imread(args.data / row["part"] / "labels" / name)
        pred = tifffile.imread(args.labels / row["part"] / name)
        counts[row["part"], row["name"]] = metrics.instance_counts(label, pred)
    print("part images cells ap50 ap50_image ap f1 pq n_pred")
    for title, parts in (("val", ["val"]), ("test", ["test"]), ("both", ["val", "test"])):
        chosen = [c for (part, _), c in counts.items() if part in parts]
        total = metrics.summed(chosen)
        scores = metrics.instance_scores(total)
        image = np.mean([metrics.instance_scores(c)["ap50"] for c in chosen])
        print(title, len(chosen), total.n_true, f"{scores['ap50']:.4f}", f"{image:.4f}",
              *(f"{scores[key]:.4f}" for key in ("ap", "f1", "pq")), total.n_pred)


if __name__ == "__main__":
    main()
