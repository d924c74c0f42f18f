"""Pictures of predictions: image | truth | prediction | error, and outlines over an image.

Drawn with Numpy and Pillow: a picture takes milliseconds. All colours are from the palette of Okabe
and Ito (2008), which people with any common colour blindness can tell apart.
"""

import functools
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cellseg_jax.files import atomic_file

# Instances; vermilion and sky blue are kept for errors alone.
PALETTE = np.array([(230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178)],
                   np.uint8)
MISSED, SPURIOUS, CORRECT = (213, 94, 0), (86, 180, 233), (190, 190, 190)
WRONG_CLASS = (240, 240, 240)  # no colour of a class
UNKNOWN = (96, 96, 96)  # not annotated
INK, PAPER, GAP = (32, 32, 32), (255, 255, 255), 8
DARK = 0.25  # mean of the stretched image below which it is brightened
MIN_TILE, MAX_TILE, MIN_CELL = 192, 512, 96  # pixels: longer side of a tile, width of its cell


def panel(image, truth, pred, caption="", *, classes=()) -> np.ndarray:
    """Four tiles side by side: image | truth | prediction | error, over a caption and a legend.

    An instance of the prediction has the colour of the true instance it covers most, unless an
    instance that touches it has that colour already.

    Args:
      image: (H, W, C) uint8 or uint16, shown stretched from its minimum to its maximum.
      truth: (H, W) integers: instance ids, a mask, or classes; 0 is background. Pixels of -1,
        which are not annotated, are grey in truth and error.
      pred: as truth.
      classes: names of the classes 1, 2, ..., where labels are classes: the legend names the
        colours of those that are there, and a confused class is an error.
    Returns: (h, w, 3) uint8.
    """
    image, truth, pred = _fit(stretch(image), truth, pred)
    dimmed, unknown, truth = _dimmed(image), truth < 0, np.maximum(truth, 0)
    if classes:
        true_colours, pred_colours = _class_colours(truth), _class_colours(pred)
    else:
        true_colours = _colours(truth)
        pred_colours = _colours(pred, prefer=(truth, true_colours))
    tiles = {
        "image": image,
        "truth": _greyed(_fill(dimmed, truth, true_colours), unknown),
        "prediction": _fill(dimmed, pred, pred_colours),
        "error": _greyed(_errors(dimmed, truth, pred, bool(classes)), unknown),
    }
    there = np.union1d(truth, pred)
    legend = [(name, tuple(_class_colours(np.array(n)).tolist()))
              for n, name in enumerate(classes, 1) if n in there]
    legend += [("missed", MISSED), ("spurious", SPURIOUS), ("correct", CORRECT)]
    legend += [("other class", WRONG_CLASS)] if classes else []
    legend += [("not annotated", UNKNOWN)] if unknown.any() else []
    return _page(tiles, caption, legend)


def outline(label) -> np.ndarray:
    """(H, W) bool: pixels of an object with another id above, below, left or right of them."""
    label = np.asarray(label)
    return borders(label) & (label != 0)


def borders(label) -> np.ndarray:
    """(H, W) bool: pixels of objects or background with another id beside them."""
    edge = np.zeros(label.shape, bool)
    down, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def overlay(image, label, like=None) -> np.ndarray:
    """(H, W, 3) uint8: the image at its own size, every instance of (H, W) `label` outlined.

    Args:
      like: see `stretch`.
    """
    label = np.maximum(label, 0)
    out = stretch(image, like)
    edge = _thick_outline(label, 1 + max(label.shape) // 700)
    colours, label = _colours_of_ids(label)
    out[edge] = colours[label[edge]]
    return out


def contact_sheet(tiles, columns: int) -> np.ndarray:
    """(h, w, 3) uint8: (h_i, w_i, 3) tiles in rows of `columns`, each centred in its cell."""
    rows = -(-len(tiles) // columns)
    height, width = (max(t.shape[axis] for t in tiles) + GAP for axis in (0, 1))
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), PAPER, np.uint8)
    for n, tile in enumerate(tiles):
        y = GAP + n // columns * height + (height - GAP - tile.shape[0]) // 2
        x = GAP + n % columns * width + (width - GAP - tile.shape[1]) // 2
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def write_png(path, array) -> None:
    """Write a picture atomically."""
    with atomic_file(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def tiles(path) -> list[Image.Image]:
    """Image, truth and prediction out of a picture that `panel` drew."""
    with Image.open(path) as whole:
        whole = whole.convert("RGB")
    cell, line = (whole.width - GAP) // 4, _line_height(whole.width)
    return [whole.crop((GAP + n * cell, GAP + line, (n + 1) * cell, whole.height - GAP - line))
            for n in range(3)]


def stretch(image, like=None) -> np.ndarray:
    """(H, W, 3) uint8 of (H, W, C): its colours without alpha, minimum to black, maximum to white.

    Two channels, or more than four, are stains: each is stretched by itself, the first is shown
    magenta and the second green, or three of them red, green and blue.

    Mostly dark images are shown brighter (square root), or faint nuclei beside one bright spot
    could not be seen.

    Args:
      like: another image (h, w, C) in the same unit, whose minimum, maximum and brightening are
        taken, so that the two can be compared.
    """
    image = np.asarray(image)
    like = image if like is None else np.asarray(like)
    if image.shape[-1] == 2 or image.shape[-1] > 4:
        stains = [stretch(image[..., [c]], like[..., [c]])[..., 0]
                  for c in range(min(3, image.shape[-1]))]
        return np.stack([*stains, stains[0]][:3], -1)
    channels = slice(3 if image.shape[-1] > 2 else 1)
    low, high = float(like[..., channels].min()), float(like[..., channels].max())

    def shown(colour):
        return np.clip((colour[..., channels].astype(np.float32) - low) / max(high - low, 1), 0, 1)

    scaled = shown(image)
    scaled = np.sqrt(scaled) if shown(like).mean() < DARK else scaled
    return np.repeat(np.rint(scaled * 255).astype(np.uint8), 3 // scaled.shape[-1], -1)


def _fit(image, *labels):
    """The same arrays at the size of a tile: small ones by a whole factor, large ones reduced."""
    longer = max(image.shape[:2])
    if longer > MAX_TILE:
        size = [max(1, round(n * MAX_TILE / longer)) for n in image.shape[:2]]
        image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX))
        pick = np.ix_(*((2 * np.arange(n) + 1) * m // (2 * n)
                        for n, m in zip(size, labels[0].shape, strict=True)))
        return image, *(np.asarray(x)[pick] for x in labels)
    factor = max(1, -(-MIN_TILE // longer))
    return tuple(np.asarray(x).repeat(factor, 0).repeat(factor, 1) for x in (image, *labels))


def _greyed(tile, unknown):
    """The tile, (H, W, 3), grey where nothing is annotated."""
    return np.where(unknown[..., None], np.asarray(UNKNOWN, tile.dtype), tile)


def _dimmed(image):
    """A dark grey version, on which colours stand out."""
    grey = image.mean(-1, keepdims=True)
    return np.repeat(grey * 0.45, 3, -1)


def _class_colours(label) -> np.ndarray:
    """(H, W, 3) uint8: a colour per class, the same in all pictures."""
    return PALETTE[(label - 1) % len(PALETTE)]


def _colours(label, prefer=None) -> np.ndarray:
    """(H, W, 3) uint8: a colour per id; ids that touch differ where the palette allows it."""
    colours, label = _colours_of_ids(label, prefer)
    return colours[label]


def _colours_of_ids(label, prefer=None):
    """The same as a table, (n, 3), and the place of each pixel's id in it."""
    ids, label = _without_gaps(label)
    wanted = ids.astype(np.int64) - 1
    if prefer is not None:
        truth, colours = prefer
        both = (truth > 0) & (label > 0)
        pairs, pixel, area = np.unique(np.stack([label[both], truth[both]]), axis=1,
                                       return_index=True, return_counts=True)
        theirs = colours[both][pixel]
        for n in np.argsort(area):  # the largest overlap is written last
            wanted[pairs[0, n]] = np.flatnonzero((PALETTE == theirs[n]).all(-1))[0]
    neighbours = {}
    for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
        touching = (a != b) & (a > 0) & (b > 0)
        for i, j in np.unique(np.stack([a[touching], b[touching]]), axis=1).T:
            neighbours.setdefault(max(i, j), set()).add(min(i, j))
    chosen = np.zeros(len(ids), int)
    for i in np.flatnonzero(np.bincount(label.ravel())[1:]) + 1:
        taken = {chosen[j] for j in neighbours.get(i, ())}
        order = [(wanted[i] + k) % len(PALETTE) for k in range(len(PALETTE))]
        chosen[i] = next((c for c in order if c not in taken), order[0])
    return PALETTE[chosen], label


def _without_gaps(label):
    """(ids, place of each pixel's id in them); tables of all ids are no larger than the label."""
    highest = int(label.max(initial=0))
    if highest < label.size:
        return np.arange(highest + 1), label
    ids, places = np.unique(np.append(label.dtype.type(0), label), return_inverse=True)
    return ids, places[1:].reshape(label.shape)


def _thick_outline(label, width):
    """Outlines that are `width` pixels wide, inside the objects."""
    edge = outline(label)
    for _ in range(width - 1):
        edge |= outline(np.where(edge, 0, label))
    return edge


def _fill(dimmed, label, colours):
    """Objects in their colours, half transparent, with full outlines."""
    colour = colours.astype(np.float32)
    out = np.where((label > 0)[..., None], dimmed * 0.6 + colour * 0.6, dimmed)
    edge = _thick_outline(label, 1 + max(label.shape) // 300)
    out[edge] = colour[edge]
    return np.clip(out, 0, 255).astype(np.uint8)


def _errors(dimmed, truth, pred, classes):
    """Missed and spurious pixels in strong colours, correct ones in grey."""
    out = dimmed.copy()
    t, p = truth > 0, pred > 0
    masks = [(t & p, CORRECT, 0.55), (t & ~p, MISSED, 0.9), (p & ~t, SPURIOUS, 0.9)]
    if classes:
        masks.append((t & p & (truth != pred), WRONG_CLASS, 0.9))
    for mask, colour, strength in masks:
        out[mask] = dimmed[mask] * (1 - strength) + np.array(colour) * strength
    return np.clip(out, 0, 255).astype(np.uint8)


@functools.cache
def _font(size):
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has no letters beyond ASCII."""
    import matplotlib  # late: takes half a second, and few commands draw panels

    folder = pathlib.Path(matplotlib.get_data_path())
    return ImageFont.truetype(str(folder / "fonts/ttf/DejaVuSans.ttf"), size)


def _font_size(width: int) -> int:
    """Pixels; wide pictures are shown reduced, and their text has to stay legible."""
    return max(15, width // 85)


def _line_height(width: int) -> int:
    return round(1.6 * _font_size(width))


def _page(tiles, caption, legend):
    """Tiles under their names, over the caption at the left and the legend at the right."""
    height, width = next(iter(tiles.values())).shape[:2]
    cell = max(width, MIN_CELL)
    total = len(tiles) * (cell + GAP) + GAP
    size, line = _font_size(total), _line_height(total)
    page = Image.new("RGB", (total, height + 2 * line + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    font = _font(size)
    for n, (name, tile) in enumerate(tiles.items()):
        x = GAP + n * (cell + GAP)
        draw.text((x, GAP + line // 2), name, INK, font, anchor="lm")
        page.paste(Image.fromarray(tile), (x, GAP + line))
    x, y, half = total - GAP, page.height - GAP // 2 - line // 2, round(0.4 * size)
    for name, colour in reversed(legend):
        x -= draw.textlength(name, font)
        draw.text((x, y), name, INK, font, anchor="lm")
        draw.rectangle((x - 3 * half, y - half, x - half, y + half), colour, INK)
        x -= 3 * half + size
    if draw.textlength(caption, font) > x - GAP:
        while caption and draw.textlength(caption + "...", font) > x - GAP:
            caption = caption[:-1]
        caption += "..." if caption else ""
    draw.text((GAP, y), caption, INK, font, anchor="lm")
    return np.asarray(page)
