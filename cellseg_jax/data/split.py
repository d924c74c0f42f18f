"""Which sample belongs to training, validation and test.

Three ways, all of them pure functions to {"train", "val", "test"}: ascending int32 indices.
`split` draws by fractions, `official` takes the dataset's own parts, `from_file` reads lists of
names. A sample that is in no part is unused. `share` then takes some of the training samples.
"""

import collections
import json
import math
import pathlib

import numpy as np

from cellseg_jax.data.records import some
from cellseg_jax.errors import InputError, nearest

KEY = "config.data.split"
PARTS = ("train", "val", "test")
FILE = "split.json"  # in a run's folder: its split
MIXED = "mixed/"  # how names and groups of samples from other datasets begin; all for training
STREAM = 2**40  # Philox keys (seed, epoch) belong to the shuffles; no epoch is that late
SHARES = STREAM + 1


def split(groups, strata, *, fractions, seed, parts=None) -> dict[str, np.ndarray]:
    """A random split that keeps groups together and gives every stratum its share.

    Groups come in seeded random order, large ones first; each goes where its strata lack most,
    as long as it fits there as a whole; what fits nowhere goes where most is missing in total.
    With groups of one sample, the share of every stratum in every part is exact up to rounding.
    A rest that the fractions leave stays unused.

    Args:
      groups: one name per sample; a sample of its own has its own name.
      strata: one name per sample.
      fractions: of the samples for train, val and test, each in [0, 1], sum at most 1.
      seed: of the random order; equal seeds give equal splits on all machines.
      parts: "train", "val" or "test" of a sample that has its place already, else "". Such a
        sample stays there and does not change where the others go, except that the rest of its
        group follows it.
    """
    fractions = _check(fractions)
    groups, strata = np.asarray(groups), np.asarray(strata)
    place = places(parts, len(groups))
    for part in PARTS:
        place[(place == "") & np.isin(groups, groups[place == part])] = part
    free = np.flatnonzero(place == "")
    if free.size:
        place[free] = draw(groups[free], strata[free], fractions, seed)
    return indices_of(place)


def official(groups, strata, parts, *, fractions, seed, keep=None,
             dataset="the dataset") -> dict[str, np.ndarray]:
    """The dataset's own parts; a missing val or test is cut from train, groups kept together.

    The cut shares the samples of train by the fractions: with (0.8, 0.1, 0.1) and no official
    val, 1/9 of train becomes val. A fraction of 0 leaves a missing part empty. Samples without
    a part are unused.

    Args:
      groups, strata: as in `split`; they decide the cut only.
      parts: "train", "val", "test" or "", one per sample.
      fractions, seed: of the cut.
      keep: (n,) bool, samples that the cut leaves in train, such as those mixed in from another
        dataset.
      dataset: its name, for messages.
    Raises: InputError if no sample has a part, if train is the only part and some have none, or
      if no sample is in train.
    """
    place = places(parts, len(groups))
    missing = [part for part in PARTS[1:] if not (place == part).any()]
    if set(place) == {""} or (len(missing) == 2 and (place == "").any()):
        raise InputError(f"{KEY}: 'official', but {dataset} has no split of its own; expected "
                         "fractions such as (0.8, 0.1, 0.1)")
    if not (place == "train").any():
        raise InputError(f"{KEY}: 'official', but none of the images at hand is in the train part "
                         f"of {dataset}; add them, or expected fractions such as (0.8, 0.1, 0.1)")
    share = _check(fractions)[:3] * [part == "train" or part in missing for part in PARTS]
    if share[1:].any():
        stays = np.zeros(len(place), bool) if keep is None else np.asarray(keep)
        cut = np.flatnonzero((place == "train") & ~stays)
        place[cut] = draw(np.asarray(groups)[cut], np.asarray(strata)[cut],
                           np.append(share / share.sum(), 0.0), seed)
    return indices_of(place)


def from_file(path, names, *, parts=None) -> dict[str, np.ndarray]:
    """The split that a file lists by names: what another run used, or a benchmark prescribes.

    Args:
      path: a JSON file {"train": [names], "val": [...], "test": [...]}, as every run leaves it
        in split.json; a folder with train.txt, val.txt and test.txt, one name per line; or the
        folder of a run. val and test may be missing.
      names: of the samples. Those in no list are unused.
      parts: a place, or "", for samples that are in no list, such as those mixed in from
        another dataset.
    """
    path = pathlib.Path(path).expanduser()
    if (path / FILE).is_file():
        path = path / FILE
    lists = _read_folder(path) if path.is_dir() else _read_json(path)
    listed = [name for part in PARTS for name in lists.get(part, ())]
    if not lists.get("train"):
        raise InputError(f"{path}: lists no name for train; expected at least one")
    twice = sorted({name for name, count in collections.Counter(listed).items() if count > 1})
    if twice:
        raise InputError(f"{path}: lists names twice: {some(twice)}; expected every name once")
    index = {name: i for i, name in enumerate(names)}
    unknown = [name for name in listed if name not in index]
    if unknown:
        raise InputError(f"{path}: {len(unknown)} of {len(listed)} names are not in the data: "
                         f"{some(unknown)}{nearest(unknown[0], index)}; expected names of these "
                         "images, such as in the split.json of a run on them")
    place = places(parts, len(names))
    for part, chosen in lists.items():
        place[[index[name] for name in chosen]] = part
    return indices_of(place)


def share(train, groups, strata, *, fraction, seed, keep=None) -> np.ndarray:
    """A share of the training samples: ascending int32 indices, within those of any larger share.

    Groups lie in one seeded order in which every beginning holds each stratum by its share, as
    far as whole groups allow (Bellhouse 1988, systematic sampling). A group is in if at least
    half of it fits, so that groups of one sample give round(fraction * samples).

    Args:
      train: (m,) indices into groups and strata, the training samples.
      groups, strata: as in `split`. A group of several strata counts as the most frequent one.
      fraction: in (0, 1].
      keep: (n,) bool, samples that stay whole and are not counted, such as those mixed in from
        another dataset.
    Raises: InputError if no sample is left, with the smallest fraction that leaves one.
    """
    train = np.asarray(train, np.int32)
    stays = np.zeros(len(train), bool) if keep is None else np.asarray(keep)[train]
    drawn = train[~stays]
    if fraction == 1 or not len(drawn):
        return train
    names, group, sizes = np.unique(np.asarray(groups)[drawn], return_inverse=True,
                                    return_counts=True)
    kinds, stratum = np.unique(np.asarray(strata)[drawn], return_inverse=True)
    counts = np.zeros((len(names), len(kinds)), np.int64)
    np.add.at(counts, (group, stratum), 1)
    stratum = counts.argmax(1)  # of a group

    words = np.random.Philox(key=[seed % 2**64, SHARES]).random_raw(len(names) + len(kinds))
    order = np.argsort(words[: len(names)], kind="stable")
    start = (words[len(names) :] >> np.uint64(11)) * 2.0**-53  # else small strata come together
    place = np.zeros(len(names))
    for kind in range(len(kinds)):
        mine = order[stratum[order] == kind]
        before = np.cumsum(sizes[mine]) - sizes[mine]
        place[mine] = (before + start[kind] * sizes[mine]) / max(sizes[mine].sum(), 1)
    order = order[np.argsort(place[order], kind="stable")]
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    wanted = round(fraction * len(drawn), 6)
    if middle[0] > wanted:
        least = math.ceil(1e4 * middle[0] / len(drawn)) / 1e4
        raise InputError(f"config.data.train_fraction: got {fraction:g}, which leaves none of "
                         f"{len(drawn)} training images in {len(names)} groups; expected at least "
                         f"{least:g}")
    chosen = np.zeros(len(names), bool)
    chosen[order[middle <= wanted]] = True
    return np.sort(np.concatenate([train[stays], drawn[chosen[group]]]))


def draw(groups, strata, fractions, seed, parts=(*PARTS, ""), stream=STREAM) -> np.ndarray:
    """The part of every sample: (n,) str. See `split`.

    Args:
      fractions: of the samples for each part.
      parts: their names; "" is the unused rest, which may stay empty.
      stream: of Philox, another one for another purpose.
    """
    names, group = np.unique(groups, return_inverse=True)
    kinds, stratum = np.unique(strata, return_inverse=True)
    counts = np.zeros((len(names), len(kinds)), np.int64)
    np.add.at(counts, (group, stratum), 1)
    sizes = counts.sum(1)

    # Raw Philox words are the one numpy stream that is promised never to change.
    words = np.random.Philox(key=[seed % 2**64, stream]).random_raw(len(names))
    waiting = np.lexsort((words, -sizes)).tolist()
    part = np.zeros(len(names), np.int64)
    lacks = fractions[:, None] * counts.sum(0)  # (parts, strata), what is still to be filled
    empty = {p for p, name in enumerate(parts) if name and fractions[p] > 0}
    deferred, left = [], len(waiting)
    for last_round in (False, True):
        for g in deferred if last_round else waiting:
            lack = np.round(lacks @ counts[g] / sizes[g], 9)  # rounded: sums like 0.1 + 0.2
            if left <= len(empty):  # the last groups go where there is none yet
                choice = max(empty, key=lambda p: lack[p])
            elif last_round:
                total = np.round(lacks.sum(1), 9)
                choice = max(range(len(lack)), key=lambda p: (lack[p] > 0, total[p], lack[p]))
            else:
                choice = int(np.argmax(lack))
                if lack[choice] < sizes[g]:
                    deferred.append(g)
                    continue
            part[g] = choice
            lacks[choice] -= counts[g]
            empty.discard(choice)
            left -= 1
    if empty:
        missing = ", ".join(parts[p] for p in sorted(empty))
        raise InputError(f"{KEY}: {missing} would be empty with {len(groups)} images in "
                         f"{len(names)} groups; add images or set that fraction to 0")
    return np.array(parts)[part[group]]


def _check(fractions) -> np.ndarray:
    """(4,) float64: train, val, test and the unused rest."""
    got = f"{KEY}: got {tuple(fractions)}"
    if len(fractions) != len(PARTS):
        raise InputError(f"{got}; expected three fractions for train, val and test")
    if min(fractions) < 0:
        raise InputError(f"{got}; expected no negative fraction")
    rest = round(1 - sum(fractions), 9)
    if rest < 0:
        raise InputError(f"{got} with sum {sum(fractions):g}; expected a sum of at most 1")
    return np.array([*fractions, rest], np.float64)


def places(parts, n: int) -> np.ndarray:
    """(n,) str, a copy of `parts`; None: no sample has a place yet."""
    place = np.array([""] * n if parts is None else list(parts), dtype="<U16")
    if len(place) != n or not set(place) <= {*PARTS, ""}:
        raise ValueError(f"parts: got {sorted(set(place))} for {len(place)} samples; expected "
                         f"{PARTS} or '' for {n}")
    return place


def indices_of(place) -> dict[str, np.ndarray]:
    """{part: ascending int32 indices} of the part of every sample."""
    return {part: np.flatnonzero(place == part).astype(np.int32) for part in PARTS}


def _read_json(path: pathlib.Path) -> dict[str, list[str]]:
    if not path.exists():
        hint = nearest(path, ["official"])
        raise InputError(f"{KEY}: no file or folder '{path}'{hint}; expected three fractions, "
                         "'official', or the split.json of a run")
    form = 'expected {"train": [names], "val": [names], "test": [names]}'
    try:
        lists = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is no JSON ({error}); {form}") from error
    if not isinstance(lists, dict):
        raise InputError(f"{path}: holds a {type(lists).__name__}; {form}")
    for key, chosen in lists.items():
        if key not in PARTS:
            raise InputError(f"{path}: has the key {key!r}{nearest(key, PARTS)}; {form}")
        if not isinstance(chosen, list) or not all(isinstance(name, str) for name in chosen):
            raise InputError(f"{path}: {key!r} is no list of names; {form}")
    return lists


def _read_folder(path: pathlib.Path) -> dict[str, list[str]]:
    files = {part: path / f"{part}.txt" for part in PARTS}
    if not files["train"].is_file():
        raise InputError(f"{KEY}: folder '{path}' has neither split.json nor train.txt; expected "
                         "one of them")
    return {part: [line.strip() for line in _text(file).splitlines() if line.strip()]
            for part, file in files.items() if file.is_file()}


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error
