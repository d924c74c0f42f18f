"""Which runs of a study may be compared with each other, and what a reader needs to know of them.

Runs of other code count and are named; runs of other data do not count.
"""

import collections

import numpy as np

from cellseg_jax import config as config_lib
from cellseg_jax.config.derived import UNTRAINED
from cellseg_jax.runs import provenance
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies.study import metrics_named

# Keys that decide which images there are, beside the options of the dataset.
DATA_KEYS = ("data.name", "data.only_size", "data.mix", "data.blank_images")
# Keys that decide of which pixels scores at data.size are.
SEEN_KEYS = ("data.size", "data.fit", "data.diameter", "data.pixel_size")
ORIGINAL = "original size"  # dice_mean[original size]: of the whole images, the same for all rows
SHOWN = 6  # runs that a note names


def _each(found):
    return [one for runs in found.values() for one in runs]


def _mark(found, wrong, mark) -> dict:
    """`found` with a mark on the counted runs for which `wrong(one)` holds."""
    marked = lambda one: (one._replace(run=one.run._replace(mark=mark))
                          if one.run.counts and wrong(one) else one)
    return {name: [marked(one) for one in runs] for name, runs in found.items()}


def names_of(runs) -> str:
    """The first SHOWN names of runs, as 'a/0, a/1, b/0 and 12 more'."""
    names = [f"{run.row}/{run.repeat}" for run in runs]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def mark_code(found, notes) -> dict:
    """Runs of other code than this, or than most, are marked and named; they count."""
    made_by = lambda one: {one.run.code, one.test.get("code_hash", one.run.code)}
    codes = collections.Counter(c for one in _each(found) if one.run.counts for c in made_by(one))
    if not codes:
        return found
    this = provenance.code_hash()
    usual = this if this in codes else codes.most_common(1)[0][0]
    if this not in codes:
        notes.append(f"no run was made by this code ({this[:8]}), but by {usual[:8]}; run the "
                     "study again into another --workdir for results of this code")
    found = _mark(found, lambda one: made_by(one) != {usual}, "other code")
    marked = [one.run for one in _each(found) if one.run.mark == "other code"]
    if marked:
        notes.append(f"{names_of(marked)} made by other code than "
                     f"{'this' if usual == this else 'most'} ({usual[:8]}): counted, but a "
                     "difference may come from the code")
    return found


def mark_data(found, study, notes) -> dict:
    """Runs that should share data with others and do not are marked and named; no longer count."""
    shared = config_lib.default().data
    def source(one):
        return repr([(k, v) for k, v in one.config.items() if k in DATA_KEYS or (
            k.startswith("data.") and k.removeprefix("data.") not in shared)])
    prints = collections.defaultdict(collections.Counter)
    baseline_first = sorted(found, key=lambda name: name != study.baseline)  # it wins a tie
    for one in (one for name in baseline_first for one in found[name] if one.run.counts):
        prints[source(one)][one.run.fingerprint] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in prints.items()}
    found = _mark(found, lambda one: one.run.fingerprint != usual[source(one)], "other data")
    marked = [one.run for one in _each(found) if one.run.mark == "other data"]
    if marked:
        notes.append(f"{names_of(marked)} left out: made with other data (by fingerprint) than "
                     "most runs of the same dataset")
    return found


def one_meaning(found, study, notes) -> dict:
    """Without scores of a class by its number where it is another thing than in the baseline.

    Class 0 is the cell in a run of foreground and the background in one of contours.
    """
    known = [one.run for one in _each(found) if one.run.counts]
    for metric in sorted(metrics_named(study)):
        number = metric.partition("[")[2].rstrip("]")
        meaning = lambda run, n=number: run.outputs[int(n)] if int(n) < len(run.outputs) else "none"
        if not number.isdecimal() or any(number in one.test.get("per_stratum", {})
                                         for one in _each(found)):
            continue
        base = next((meaning(run) for run in known if run.row == study.baseline), None)
        others = [run for run in known if base and meaning(run) != base]
        for run in others:
            run.scores.pop(metric, None)
        if others:
            name = metric.partition("[")[0]
            notes.append(f"{metric} is of {base!r} in {study.baseline} and of "
                         f"{meaning(others[0])!r} in {names_of(others)}, left out there; name what "
                         f"you mean: {name}[{base}]")
    return found


def basis(runs, metric) -> tuple | None:
    """Of which pixels and classes a score of a row's Found is; None: of objects, or not known.

    Rows of another basis are not compared in it: halved images have easier outlines, and a mean of
    classes is lower than the score of all of them together.
    """
    one = next((one for one in runs if one.run.counts), None)
    name, _, part = metric.partition("[")
    if one is None or name not in one.test.get("metrics", {}):
        return None
    seen = () if part == f"{ORIGINAL}]" else tuple(repr(one.config[key]) for key in SEEN_KEYS)
    return seen, "" if part.rstrip("]") in one.run.outputs else _classes(one)


def compare(found, rows, metric) -> bool:
    """Whether a score of rows is of one basis; a row without runs fits any."""
    return len({basis(found[row], metric) for row in rows} - {None}) <= 1


def _classes(one) -> str:
    """What the pixel scores of a run are of."""
    return (f"the mean of {one.config['data.num_classes'] - 1} classes"
            if one.config["data.target"] == "classes" else "the foreground as a whole")


def notes(study, found) -> list[str]:
    """What a reader needs to know beside the numbers of {row: [runs.Found of each repeat]}."""
    lines = []
    _note_machines(found, lines)
    _note_unknown_metrics(study, found, lines)
    _note_other_pixels(study, found, lines)
    _note_other_classes(study, found, lines)
    _note_equal_repeats(study, found, lines)
    _note_other_images(study, found, lines)
    return lines


def _note_machines(found, notes) -> None:
    """Runs on different devices or in programs of different size: their seconds do not compare."""
    runs = [one for one in _each(found) if one.run.counts and one.environment]
    devices = {", ".join(sorted(set(one.environment.get("devices", ())))) for one in runs}
    together = {one.environment.get("program", {}).get("members", 1) for one in runs
                if one.run.step}
    if len(devices) > 1:
        notes.append(f"runs were made on different devices ({'; '.join(sorted(devices))}): their "
                     "times do not compare")
    if len(together) > 1:
        notes.append(f"{min(together)} to {max(together)} runs trained together in one program: "
                     "seconds are shares and compare roughly")


def _note_unknown_metrics(study, found, notes) -> None:
    known = {k for one in _each(found) for k in one.run.scores}
    unknown = [m for m in study.metrics if known and m not in known and m not in RESOURCES]
    if unknown:
        shown = sorted(k for k in known if "[" not in k)
        notes.append(f"no run has {', '.join(unknown)}; there are {', '.join(shown)}, and of "
                     "strata such as 'dice_mean[NAME]'")


def _note_other_pixels(study, found, notes) -> None:
    """Rows that see images at another size: the same column is of other pixels, often easier ones.

    Their scores at the original size, where there are such, stand beside.
    """
    counted = {name: [one for one in runs if one.run.counts] for name, runs in found.items()}
    first = {name: runs[0] for name, runs in counted.items() if runs}
    base = first.get(study.baseline)
    columns = [m for m in study.metrics if base and m.partition("[")[0] in base.test["metrics"]
               and not m.endswith(f"[{ORIGINAL}]")]
    seen = lambda one: {key: one.config[key] for key in SEEN_KEYS}
    for names in _unlike(first, base, seen) if columns else ():
        how = [f"{key} {value}, not {seen(base)[key]}"
               for key, value in seen(first[names[0]]).items() if value != seen(base)[key]]
        text = (f"{', '.join(columns)} of {_some(names)} are of images with {'; '.join(how)} as in "
                f"{study.baseline}: they do not compare, and have no verdict")
        original = [f"{value:.3f} in {name}" for name in (*names[:SHOWN], study.baseline)
                    if (value := _at_original_size(counted[name], columns[0])) is not None]
        notes.append(text + (
            f". At the original size {columns[0]} is {', '.join(original)}; METRICS or a claim of "
            f"'{columns[0].partition('[')[0]}[{ORIGINAL}]' has it judged" if original else ""))


def _note_other_classes(study, found, notes) -> None:
    """A mean over classes beside the foreground as a whole, or over another number of classes."""
    first = {name: one for name, runs in found.items() for one in runs[::-1] if one.run.counts}
    base = first.get(study.baseline)
    for names in _unlike(first, base, _classes) if base else ():
        notes.append(f"pixel scores such as dice_mean are {_classes(first[names[0]])} in "
                     f"{_some(names)} and {_classes(base)} in {study.baseline}: they do not "
                     "compare, and have no verdict")


def _unlike(first, base, of) -> list[list[str]]:
    """Names of {row: Found} for which `of` is not what it is for the baseline, by what it is."""
    groups = collections.defaultdict(list)
    for name, one in first.items():
        if of(one) != of(base):
            groups[repr(of(one))].append(name)
    return list(groups.values())


def _some(names) -> str:
    """The first SHOWN names of rows, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _at_original_size(runs, metric) -> float | None:
    """The mean of a metric over runs, None where one of them has it at data.size alone."""
    values = [one.test.get("metrics_original_size", {}).get(metric) for one in runs]
    return None if None in values else float(np.mean(values))


def _note_equal_repeats(study, found, notes) -> None:
    """Repeats that agree to the last digit although a network drew random numbers."""
    headline = study.metrics[0]
    for name, runs in found.items():
        scores = np.array([one.run.scores[headline] for one in runs
                           if one.run.counts and headline in one.run.scores])
        scores = scores[np.isfinite(scores)]
        learned = any(one.config and one.config["model.name"] not in UNTRAINED
                      for one in runs)
        if len(scores) > 1 and learned and np.ptp(scores) == 0:
            notes.append(f"all repeats of {name} have the same {headline}, {scores[0]:.4f}: it "
                         "collapsed, or what a repeat varies has no effect")


def _note_other_images(study, found, notes) -> None:
    """A repeat of two rows should be tested on the same images."""
    images = lambda one: one.run.counts and frozenset(one.split.get("test", ()))
    base = [images(one) for one in found[study.baseline]]
    other = [one.run for runs in found.values() for one, b in zip(runs, base, strict=True)
             if images(one) and b and images(one) != b]
    if other:
        notes.append(f"{names_of(other)} tested on other images than the same repeat of "
                     f"{study.baseline}: their differences are of images too")
