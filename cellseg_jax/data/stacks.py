"""From the planes of a file to its images: which planes are samples, which are channels.

The one place where this is decided, for training, evaluation, prediction and export alike, and for
every format: a reader makes a `Stack` of a file, `images_of` makes images of it by the run's
`ReadOptions`.

The channels of an image are its planes along axis C, each with the samples of its pixels. Only what
the file itself calls alpha (ExtraSamples 1 or 2 of a TIFF, gray + alpha or RGBA of a PNG) is alpha.
Without a choice an image has one channel or three, and maybe alpha: other numbers are refused, as
nobody but the user knows which of them show cells.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cellseg_jax.data.records import some
from cellseg_jax.errors import InputError, pick

PAGES = ("", "slices", "channels")
Z_WORDS = ("", "slices", "max", "mean")  # or a number
SAMPLE_NAMES = ("red", "green", "blue", "alpha")


class ReadOptions(NamedTuple):
    """How files become images: keys of config.data, kept with a run."""

    pages: str = ""  # "" | slices | channels: what pages of a TIFF are, against what it says itself
    z: str = ""  # "" | slices | max | mean | a number: what becomes of planes along Z
    channels: str = "rgba"  # gray | rgb | rgba; with gray, colour tables are not looked up
    channel_index: str = ""  # numbers from 0 or names with commas; "": all

    @classmethod
    def of(cls, data_config) -> "ReadOptions":
        """Of config.data, where a dataset may lack some of the keys."""
        return cls(*(data_config.get(key, default)
                     for key, default in cls._field_defaults.items()))

    def check(self) -> None:
        """InputError for a value that is none of those above."""
        pick(dict.fromkeys(PAGES), self.pages, "config.data.pages")
        if self.z not in Z_WORDS and not self.z.isdecimal():
            raise InputError(f"config.data.z: got {self.z!r}; expected slices, max, mean, or the "
                             "number of a plane, from 0")
        if self.pages and self.z:
            raise InputError(f"config.data.z: got {self.z!r} with data.pages={self.pages!r}; "
                             "expected one of the two")
        chosen = chosen_channels(self.channel_index)
        if "" in chosen or len(set(chosen)) < len(chosen):
            raise InputError(f"config.data.channel_index: got {self.channel_index!r}; expected "
                             "numbers from 0 or names of channels, such as 1 or 0,2 or DAPI,GFP")


AS_IT_IS = ReadOptions()


def chosen_channels(channel_index: str) -> tuple[str, ...]:
    """Numbers and names in config.data.channel_index; () where nothing is chosen."""
    return tuple(name.strip() for name in channel_index.split(",")) if channel_index else ()


class Plane(NamedTuple):
    """A page of a TIFF, a plane of a Zarr array or the pixels of another file."""

    shape: tuple[int, int, int]  # (H, W, samples)
    dtype: np.dtype
    rows: Callable[[int, int], np.ndarray]  # (start, stop) -> (stop - start, W, samples)
    coloured: bool = False  # three samples are red, green and blue
    alpha: bool = False  # the last sample is alpha
    notes: tuple[str, ...] = ()  # what a user should know of the file


class Stack(NamedTuple):
    """All planes of a file that belong together, numbered by its axes."""

    axes: str  # of the planes, a letter each: Z, C, T, or others where the file names none
    lengths: tuple[int, ...]
    planes: list[Plane]  # in the order of the axes, the last one fastest
    names: tuple[str, ...] = ()  # of the channels along C, if they have some
    pixel_size: tuple[float, float] | None = None  # height and width in micrometres

    @property
    def text(self) -> str:
        """Axes and lengths for a message, such as 'axes ZCYX, 5 x 2 x 64 x 64'."""
        axes = f"{self.axes}YX"
        return f"axes {axes}, {' x '.join(map(str, (*self.lengths, *self.planes[0].shape[:2])))}"


class StackAxes(NamedTuple):
    """How the images of a file are numbered."""

    lengths: dict[str, int]  # {"T" or "Z": length}, the last axis fastest
    has_channels: bool = False  # each image has several channels, which are planes in ImageJ
    projected: bool = False  # images are numbered by T alone, though the file may have planes in Z

    @property
    def count(self) -> int:
        """Images in all."""
        return math.prod(self.lengths.values())

    def place(self, number: int) -> dict[str, int]:
        """{axis: index from 0} of an image."""
        index = np.unravel_index(number, tuple(self.lengths.values()))
        return dict(zip(self.lengths, map(int, index), strict=True))

    def number(self, z: int, t: int) -> int | None:
        """The image at z and t, both from 0; None where there is none.

        Of a single axis it is the larger of the two: programs call the same axis Z or T.
        """
        index = {"Z": z, "T": t}
        if len(self.lengths) == 1:
            index = dict.fromkeys(self.lengths, t if self.projected else max(z, t))
        if any(index[axis] >= length for axis, length in self.lengths.items()):
            return None
        return int(np.ravel_multi_index([index[axis] for axis in self.lengths],
                                        tuple(self.lengths.values())))


class Pixels(NamedTuple):
    """One image, of any dtype."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    rows: Callable[[int, int], np.ndarray]
    alpha: bool  # the last channel is alpha
    names: tuple[str, ...]  # of the channels: as in the file, else their numbers
    notes: tuple[str, ...]
    pixel_size: tuple[float, float] | None


def images_of(stack: Stack, options: ReadOptions, as_mask: bool = False) -> list[Pixels]:
    """The images of a stack, in the order of its axes.

    Args:
      as_mask: of a mask, which has one channel, or red, green and blue; a projection of the image
        (data.z) is none of the mask.
    Raises: InputError for a plane or channel that is not there, or where channels must be chosen.
    """
    if len(stack.planes) == 1 and not options.channel_index and options.z in ("", "slices"):
        return [_single(stack, as_mask)]  # as below, but soon done: most files are so
    groups, _ = _groups(stack, options, as_mask)
    return [_pixels(stack, group, options, as_mask) for group in groups]


def axes_of(stacks: list[Stack], options: ReadOptions) -> StackAxes:
    """How the images that `images_of` makes of the stacks of a file are numbered.

    By T and Z as the file names them; by Z where it names others or holds several stacks.
    """
    found = [_groups(stack, options, False) for stack in stacks]
    count = sum(len(groups) for groups, _ in found)
    lengths = {axis: length for axis, length in found[0][1].items() if length > 1}
    if not lengths or not lengths.keys() <= {"T", "Z"} or math.prod(lengths.values()) != count:
        lengths = {"Z": count}
    has_channels = dict(zip(stacks[0].axes, stacks[0].lengths, strict=True)).get("C", 1) > 1
    return StackAxes(lengths, has_channels, options.z not in ("", "slices"))


def _groups(stack, options, as_mask) -> tuple[np.ndarray, dict[str, int]]:
    """((images, z, c) numbers of planes, {axis: length} that the images are numbered by).

    Planes z of an image are projected, c are its channels.
    """
    numbers, axes = np.arange(len(stack.planes)).reshape(stack.lengths), stack.axes
    if options.pages == "channels" and not as_mask:
        numbers, axes = numbers.reshape(-1), "C"
    channel = axes.find("C") if options.pages != "slices" else -1
    numbers = numbers[..., None] if channel < 0 else np.moveaxis(numbers, channel, -1)
    axes = axes if channel < 0 else axes[:channel] + axes[channel + 1 :]
    depth = _depth(axes, stack, options)
    if options.z in ("", "slices") or (as_mask and (depth < 0 or not options.z.isdecimal())):
        lengths = dict(zip(axes, numbers.shape[:-1], strict=True))
        return numbers.reshape(-1, 1, numbers.shape[-1]), lengths
    numbers = numbers[..., None, :] if depth < 0 else np.moveaxis(numbers, depth, -2)
    axes = axes if depth < 0 else axes[:depth] + axes[depth + 1 :]
    lengths = dict(zip(axes, numbers.shape[:-2], strict=True))
    numbers = numbers.reshape(-1, *numbers.shape[-2:])
    if not options.z.isdecimal():
        return numbers, lengths
    if int(options.z) >= numbers.shape[1]:
        raise InputError(f"has no plane {options.z} along Z ({stack.text}); config.data.z is from "
                         f"0 to {numbers.shape[1] - 1} here")
    return numbers[:, int(options.z), None], lengths


def _depth(axes, stack, options) -> int:
    """Which of the axes is Z: the one of that name, else the only one that is not time; or -1."""
    if options.z in ("", "slices") or "Z" in axes:
        return axes.find("Z")
    unnamed = [n for n, axis in enumerate(axes) if axis != "T"]
    if len(unnamed) > 1:
        raise InputError(f"has {stack.text}, none of them Z; config.data.z={options.z} needs one")
    return unnamed[0] if unnamed else -1


def _single(stack, as_mask) -> Pixels:
    """The image of the only plane, with all its channels."""
    [plane] = stack.planes
    names = _names(stack, plane, 1)
    _check_channels(stack, names, plane.alpha, plane.coloured, as_mask)
    return Pixels(plane.shape, plane.dtype, plane.rows, plane.alpha, names, plane.notes,
                  stack.pixel_size)


def _pixels(stack, group, options, as_mask) -> Pixels:
    planes = [stack.planes[n] for n in group.reshape(-1)]
    first, (depth, count) = planes[0], group.shape
    if any((plane.shape, plane.dtype) != (first.shape, first.dtype) for plane in planes):
        raise InputError(f"its planes differ: {sorted({(p.shape, str(p.dtype)) for p in planes})}; "
                         "expected one size and type")
    samples = first.shape[-1]
    names = _names(stack, first, count)
    chosen = () if as_mask else chosen_channels(options.channel_index)
    alpha = first.alpha and count == 1 and not chosen
    places = _places(chosen, names, stack) if chosen else list(range(count * samples))
    if not chosen:
        _check_channels(stack, names, alpha, first.coloured and count == 1, as_mask)
    project = {"max": np.maximum, "mean": np.add}.get(options.z if depth > 1 else "")

    def band(channel, start, stop):
        out = planes[channel].rows(start, stop)
        if project is None:
            return out
        out = out.astype(np.float64) if project is np.add else out
        for plane in planes[channel + count :: count]:
            out = project(out, plane.rows(start, stop))
        if project is np.add:
            out = out / depth
            out = (out if first.dtype.kind == "f" else np.rint(out)).astype(first.dtype)
        return out

    def rows(start, stop):
        needed = dict.fromkeys(place // samples for place in places)
        bands = {channel: band(channel, start, stop) for channel in needed}
        if len(places) == samples * len(bands) and places == sorted(places):
            whole = list(bands.values())
            return np.concatenate(whole, -1) if len(whole) > 1 else whole[0]
        return np.stack([bands[p // samples][..., p % samples] for p in places], -1)

    return Pixels((*first.shape[:2], len(places)), first.dtype, rows, alpha,
                  tuple(names[p] for p in places), first.notes + _number_notes(chosen, names),
                  stack.pixel_size)


def _names(stack, plane, count) -> tuple[str, ...]:
    """Of all channels: as in the file, red, green, blue and alpha, or numbers."""
    samples = plane.shape[-1]
    if count == 1 and plane.coloured and samples - plane.alpha == 3:
        return SAMPLE_NAMES[:samples]
    if len(stack.names) == count * samples:
        return stack.names
    return tuple(map(str, range(count * samples)))


def _places(chosen, names, stack) -> list[int]:
    """Which channels config.data.channel_index means: by number, else by name.

    So 1 is the second channel of all files, whatever their channels are called.
    """
    places, lower = [], [name.lower() for name in names]
    for one in chosen:
        if _is_number(one, names):
            places.append(int(one))
        elif lower.count(one.lower()) == 1:
            places.append(lower.index(one.lower()))
        else:
            raise InputError(f"has no channel {one!r} ({stack.text}); its channels are "
                             f"{_listed(names)}; choose with config.data.channel_index "
                             "(predict: --channels)")
    if len(set(places)) < len(places):
        raise InputError(f"{' and '.join(chosen)} of config.data.channel_index name a channel "
                         f"twice; its channels are {_listed(names)}")
    return places


def _is_number(one, names) -> bool:
    return one.isdecimal() and int(one) < len(names)


def _number_notes(chosen, names) -> tuple[str, ...]:
    """A note on each number that is the name of another channel too."""
    return tuple(f"channel {one} is taken by its number, from 0, and is called "
                 f"{names[int(one)]!r}; the one called {one!r} is number {names.index(one)}"
                 for one in chosen
                 if _is_number(one, names) and one in names and names[int(one)] != one)


def _listed(names) -> str:
    return some([f"{n} {name}" if name != str(n) else name for n, name in enumerate(names)], 9)


def _check_channels(stack, names, alpha, coloured, as_mask) -> None:
    """InputError where nobody but the user knows which of the channels are meant."""
    count = len(names) - alpha
    if count == 1 or (count == 3 and (coloured or not as_mask)):
        return
    found = f"has {len(names)} channels ({stack.text}): {_listed(names)}"
    if as_mask:
        raise InputError(f"mask {found}; expected one plane of ids: save the plane of the objects "
                         "to segment as its own file")
    which = "; expected gray or RGB beside alpha" if alpha else ", none of them alpha"
    raise InputError(f"{found}{which}; choose one or several with config.data.channel_index=0 or "
                     "0,1 (predict: --channels). If they are slices, save them as such (ImageJ: "
                     "Image > Properties)")


def check_single(stacks: list[Stack], images: list[Pixels]) -> None:
    """InputError where a file has several images and nobody chose what to do with them."""
    if len(images) == 1:
        return
    if len(stacks) > 1:
        raise InputError(f"has {len(images)} pages, which are {len(stacks)} images of their own "
                         f"({'; '.join(stack.text for stack in stacks[:3])}); export the one that "
                         "is meant, or with data.name=folder set config.data.z=slices (each is a "
                         "sample, and the mask has a plane for each)")
    [stack] = stacks
    depth = any(axis not in "CT" for axis in stack.axes)
    project = ", max, mean or a number (one image of the planes along Z)" if depth else ""
    named = set(stack.axes) & set("ZCT")
    channels = "" if named else "; or config.data.pages=channels if they are channels"
    raise InputError(f"has {math.prod(stack.lengths)} pages ({stack.text}); expected one image: "
                     "with data.name=folder set config.data.z=slices (every plane is a sample, and "
                     f"the mask has a plane for each){project}{channels}")
