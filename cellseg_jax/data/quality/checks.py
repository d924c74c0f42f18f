"""What training checks of its data by itself: cheap, from the decoded arrays and a split.

`quick` is all of it. Several splits of the same data need `of_samples` and the near-duplicates
once, and `of_split` each.
"""

import collections

import numpy as np

from cellseg_jax.data.quality.duplicates import MAX_IMAGES, THRESHOLD, Pairs, near_duplicates
from cellseg_jax.data.records import Finding, some
from cellseg_jax.data.select import BLANK
from cellseg_jax.data.split import MIXED, PARTS
from cellseg_jax.errors import InputError

ROOT, SPLIT, CLASSES = "config.data.root", "config.data.split", "config.data.num_classes"
LEVELS = ("error", "warning", "note")


def quick(arrays, parts, *, num_classes=None, pairs: Pairs | None = None) -> list[Finding]:
    """All findings on decoded data and its split: errors first, then warnings, then notes.

    Args:
      arrays: data.Arrays, or anything with its image, label, foreground, names, groups, strata.
      parts: {"train", "val", "test"}: indices into the arrays.
      num_classes: of labels that hold classes, with the background; None: labels are instances
        or binary.
      pairs: near_duplicates(arrays.image); None: looked for here among up to MAX_IMAGES images.
    """
    if pairs is None and len(arrays.names) <= MAX_IMAGES:
        pairs = near_duplicates(arrays.image)
    found = of_samples(arrays, num_classes=num_classes) + of_split(arrays, parts, pairs)
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def of_samples(arrays, *, num_classes=None, alpha=False) -> list[Finding]:
    """What single images and masks are like: labels nothing can be learned from are errors.

    Args:
      num_classes: as of quick.
      alpha: whether the last channel is alpha, which says nothing.
    """
    names, foreground = np.asarray(arrays.names), np.asarray(arrays.foreground)
    if not foreground.any():
        return [Finding("error", ROOT, "all masks are empty, there is no cell to learn from; "
                        "expected labels above 0")]
    found = [Finding("note", ROOT, f"foreground covers {_percent(foreground.mean())} of the "
                     f"pixels; per image {_percent(foreground.min())} to "
                     f"{_percent(foreground.max())}, median {_percent(np.median(foreground))}")]
    odd = {"are empty": foreground == 0}
    if num_classes in (None, 2):
        odd["are foreground all over"] = foreground == 1
    for what, chosen in odd.items():
        if chosen.any():  # a few may be the truth; if most are, something went wrong
            found.append(Finding("warning" if chosen.mean() > 0.5 else "note", ROOT,
                                 f"{_of(chosen)} masks {what}: {some(names[chosen])}"))
    colours = slice(-1 if alpha else None)
    constant = np.array([_is_constant(image[..., colours]) and not name.startswith(BLANK)
                         for name, image in zip(names, arrays.image, strict=True)])
    if constant.any():
        found.append(Finding("warning", ROOT, f"{_of(constant)} images have one value everywhere, "
                             f"they show nothing: {some(names[constant])}; export "
                             "them again or remove them"))
    return found + (_classes(arrays, num_classes) if num_classes else [])


def of_ranges(arrays, data_config) -> list[Finding]:
    """A warning of images that a range between percentiles leaves without any contrast.

    Args:
      arrays: data.Arrays.
    """
    if data_config["normalize"] != "percentile":
        return []
    colours = slice(None) if data_config["channel_index"] else slice(3)
    whole, inner = (np.diff(arrays.tables[name][:, colours]) > 0
                    for name in ("minmax", "percentile"))
    lost = (whole & ~inner).any((1, 2))
    if not lost.any():
        return []
    low, high = data_config["percentiles"]
    return [Finding("warning", "config.data.percentiles", f"{_of(lost)} images have one value from "
                    f"percentile {low:g} to {high:g}, and are 0 all over for the network: "
                    f"{some(np.asarray(arrays.image_names)[lost])}; set wider ones, or "
                    "config.data.normalize=minmax")]


def of_split(arrays, parts, pairs: Pairs | None) -> list[Finding]:
    """What makes the scores of a split too good or meaningless: leaks, missing strata.

    Args:
      arrays, parts: as in `quick`.
      pairs: near_duplicates(arrays.image); None: they were not looked for.
    """
    place = np.full(len(arrays.names), "", "<U5")
    for part, indices in parts.items():
        place[indices] = part
    found = _leaks(arrays, place, pairs) + _torn_groups(arrays.groups, place)
    found += _missing_strata(arrays, place)
    unused = place == ""
    if unused.any():
        found.append(Finding("note", SPLIT, f"{_of(unused)} images are in no part and stay unused: "
                             f"{some(np.asarray(arrays.names)[unused])}"))
    return found


def raise_errors(findings) -> None:
    """InputError for the first finding that is an error, if any."""
    for finding in findings:
        if finding.level == "error":
            raise InputError(f"{finding.where}: {finding.what}")


def _classes(arrays, num_classes) -> list[Finding]:
    pixels = np.zeros(num_classes + 1, np.int64)  # of every class, and of values beyond them
    beyond = np.zeros(len(arrays.names), bool)
    for i, label in enumerate(arrays.label):
        counts = np.bincount(np.minimum(label[label >= 0], num_classes),
                             minlength=num_classes + 1)
        pixels += counts
        beyond[i] = counts[-1] > 0
    shares = ", ".join(_percent(share) for share in pixels[:-1] / pixels.sum())
    found = [Finding("note", CLASSES, f"the classes 0 .. {num_classes - 1} cover {shares} of the "
                     "pixels")]
    missing = np.flatnonzero(pixels[:-1] == 0).tolist()
    if missing:
        highest = int(np.flatnonzero(pixels).max(initial=0))
        expected = (f"{highest + 1}, which is 1 + the highest class" if highest < missing[0] else
                    "classes that are numbered 0, 1, 2, ... without gaps: renumber the masks")
        found.append(Finding("error", CLASSES, f"got {num_classes}, but the classes {missing} "
                             f"occur in no mask; expected {expected}"))
    if beyond.any():
        found.append(Finding("error", CLASSES, f"got {num_classes}, but {_of(beyond)} masks have "
                             f"values above {num_classes - 1}: "
                             f"{some(np.asarray(arrays.names)[beyond])}"))
    return found


def _is_constant(image) -> bool:
    first = image[0, 0]
    return bool((image[::16, ::16] == first).all() and (image == first).all())


def _leaks(arrays, place, pairs) -> list[Finding]:
    if pairs is None:
        return [Finding("note", SPLIT, f"near-duplicates were not looked for among {len(place)} "
                        "images")]
    found = []
    if pairs.common >= THRESHOLD and len(set(place) - {""}) > 1:
        found.append(Finding("warning", SPLIT, "leak: all images look alike (correlation "
                             f"{pairs.common:.2f} with what they have in common); if they are "
                             "frames of one scene, a split by frames makes scores too good"))
    across = [p for p in pairs if len({place[p.first], place[p.second]} - {""}) == 2]
    within = sum(place[p.first] == place[p.second] != "" for p in pairs)
    if across:
        named = some((f"{arrays.names[p.first]} ({place[p.first]}) and {arrays.names[p.second]} "
                      f"({place[p.second]}) {p.similarity:.2f}" for p in across), limit=3)
        found.append(Finding("warning", SPLIT, f"leak: {_many(len(across), 'near-duplicate pair')} "
                             f"across the parts, with their correlation (1.00: a copy): {named}; "
                             "scores will be too good: give such images one group, or remove one "
                             "of each"))
    if within:
        found.append(Finding("note", SPLIT, f"{_many(within, 'near-duplicate pair')} within one "
                             "part"))
    return found


def _torn_groups(groups, place) -> list[Finding]:
    parts_of = collections.defaultdict(set)
    for group, part in zip(groups, place.tolist(), strict=True):
        parts_of[group].add(part)
    torn = {group: [part for part in PARTS if part in chosen]
            for group, chosen in parts_of.items() if len(chosen - {""}) > 1}
    if not torn:
        return []
    named = some(f"{group} ({', '.join(chosen)})" for group, chosen in sorted(torn.items()))
    return [Finding("warning", SPLIT, f"leak: {_many(len(torn), 'group')} of images of one case in "
                    f"several parts: {named}; scores will be too good: keep a group in one part")]


def _missing_strata(arrays, place) -> list[Finding]:
    images, groups = collections.Counter(), collections.defaultdict(set)
    present = collections.defaultdict(set)
    for group, stratum, part in zip(arrays.groups, arrays.strata, place.tolist(), strict=True):
        if group.startswith(MIXED):
            continue  # only ever for training
        images[stratum] += 1
        groups[stratum].add(group)
        present[part].add(stratum)
    found = []
    used = set().union(*(present[part] for part in PARTS if part in present))  # of data.strata
    for part in PARTS:
        missing = sorted(used - present[part]) if part in present else []
        if missing:
            named = some(f"{stratum!r} ({_many(images[stratum], 'image')} in "
                         f"{_many(len(groups[stratum]), 'group')})" for stratum in missing)
            found.append(Finding("warning", SPLIT, f"{part} has no image of {named}: "
                                 + ("nothing is learned of it" if part == "train"
                                    else "it is not scored")
                                 + "; add images or change the fractions"))
    return found


def _of(chosen) -> str:
    return f"{np.count_nonzero(chosen)} of {len(chosen)}"


def _percent(share) -> str:
    return f"{100 * share:.3g}%"


def _many(count, noun) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
