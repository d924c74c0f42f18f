"""Layouts of tools: what belongs to what without renaming, and what is refused with words."""

import json
import sys
import zipfile

import numpy as np
import pytest
import roifile
import tifffile
from PIL import Image

from cellseg_jax import config, data
from cellseg_jax.data import lazy
from cellseg_jax.data.datasets import folder
from cellseg_jax.data.fingerprint import content_fingerprint
from cellseg_jax.data.quality.examine import _ignored_files, examine
from cellseg_jax.data.records import BadFiles
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError
from cellseg_jax.inference import images_in, outputs
from cellseg_jax.inference.images_in import COLUMNS_FILE, NOTE

SHAPE = (12, 16)
LABEL = np.zeros(SHAPE, np.uint16)
LABEL[2:6, 2:7], LABEL[7:11, 3:12] = 1, 2
SQUARE = [[2, 2], [7, 2], [7, 6], [2, 6]]


def save(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8) if array is None else array
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        Image.fromarray(array).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(images=("a.png", "b.png"), ids=(1, 2), image_ids=None):
    """A file of two squares in each image, and of what `image_ids` adds."""
    image_ids = [*ids, *ids] if image_ids is None else image_ids
    return {"images": [{"id": i, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]}
                       for i, name in zip(ids, images, strict=True)],
            "categories": [{"id": 3, "name": "nucleus"}],
            "annotations": [{"id": n + 1, "image_id": i, "category_id": 3, "iscrowd": 0,
                             "segmentation": [np.ravel(SQUARE).tolist()]}
                            for n, i in enumerate(image_ids)]}


def geojson(*kinds):
    return [{"type": "Feature", "geometry": {
        "type": "Polygon", "coordinates": [[[x + 4 * n, y] for x, y in SQUARE[:3]]]},
        "properties": {"classification": {"name": kind}} if kind else {}}
        for n, kind in enumerate(kinds)]


def labelme(**content):
    return {"shapes": [{"label": "cell", "points": SQUARE, "shape_type": "polygon"}],
            "imageHeight": SHAPE[0], "imageWidth": SHAPE[1]} | content


def labels(root, **options):
    return {record.name: record.read().label for record in folder.records(root, **options)}


# Files beside the image {image: (mask, others)}: all of them hold LABEL.
MASKS = {
    "Cellpose, masks as TIFF": ("{}.tif", "{}_masks.tif", ()),
    "Cellpose, masks as PNG, and what else it writes": (
        "{}.png", "{}_cp_masks.png", ("{}_flows.tif", "{}_cp_output.png", "{}_cp_outlines.txt")),
    "Cellpose, x_seg.npy": ("{}.tif", "{}_seg.npy", ()),
    "our own": ("{}.png", "{}_label.tif", ("{}_overlay.png", "{}_objects.csv")),
    "images and masks": ("images/{}.png", "masks/{}.tif", ()),
    "StarDist": ("images/{}.tif", "masks/{}.tif", ()),
    "a folder labels": ("images/{}.png", "labels/{}.png", ()),
    "our own in masks": ("images/{}.png", "masks/{}_label.tif", (
        "masks/{}_overlay.png", "masks/{}_objects.csv")),
    "x_0000": ("images/{}_0000.tif", "masks/{}.tif", ()),
    "OME-TIFF": ("images/{}.ome.tif", "labels/{}.tif", ()),
    "OME-TIFF and ours": ("images/{}.ome.tif", "labels/{}.ome_label.tif", ()),
    "OME-TIFF beside ours": ("{}.ome.tif", "{}_label.ome.tif", ()),
    "OME-TIFF of both": ("images/{}.ome.tif", "masks/{}_masks.ome.tif", ()),
    "x_mask": ("images/{}.jpg", "masks/{}_mask.png", ()),
    "NumPy": ("images/{}.png", "masks/{}.npy", ()),
    "the name of the whole file": ("images/{}.tif", "masks/{}.tif.png", ()),
    "the name of the whole file, and an ending": ("{}.tif", "{}.tif_mask.png", ()),
    "masks in a folder beside images": ("{}.tif", "masks/{}.tif", ()),
    "CVAT, a folder in each": ("images/default/{}.png", "masks/default/{}.png", ()),
}


@pytest.mark.parametrize("layout", MASKS)
def test_masks_of_tools_pair_without_renaming(tmp_path, layout):
    image, mask, others = MASKS[layout]
    for n, stem in enumerate(("p 1", "p 2")):
        save(tmp_path / image.format(stem))
        save(tmp_path / mask.format(stem), (LABEL * (n + 1)).astype(np.uint8))
        for other in others:
            path = tmp_path / other.format(stem)
            save(path) if path.suffix in (".png", ".tif") else path.write_text("x")
    found = folder.records(tmp_path)
    assert [record.files[0].name for record in found] == [
        image.rpartition("/")[2].format(stem) for stem in ("p 1", "p 2")]
    for n, record in enumerate(found):
        np.testing.assert_array_equal(record.read().label, LABEL * (n + 1))
    assert [f.what.partition(":")[0] for f in found.findings] == [
        f"{2 * len(others)} files are read neither as image nor as annotation"] * bool(others)


@pytest.mark.parametrize("place", ["masks/", "images/", ""])
def test_no_file_of_predict_is_foreign_beside_its_labels(tmp_path, place):
    image = "" if place == "" else "images/"
    save(tmp_path / f"{image}a.png")
    save(tmp_path / f"{place}a_label.tif", LABEL)
    for name in (*outputs.SUFFIXES, NOTE, COLUMNS_FILE):
        path = tmp_path / place / (f"a{name}" if name.startswith("_") else name)
        if not path.exists() and name not in (
                "_rois.zip", "_objects.geojson", "_objects.geojson.gz", "_coco.json"):
            path.touch()
    np.testing.assert_array_equal(labels(tmp_path)["a"], LABEL)


@pytest.mark.parametrize("name, content", [
    ("{}.json", labelme()), ("{}.geojson", geojson("", "")),
    ("{}.png.geojson", geojson("", "")), ("rois/{}.geojson", geojson("", ""))])
@pytest.mark.parametrize("place", ["", "images/"])
def test_outlines_lie_beside_images_or_in_a_folder(tmp_path, name, content, place):
    for stem in "ab":
        save(tmp_path / f"{place}{stem}.png")
        path = name.format(stem)
        write(tmp_path / (path if "/" in path else place + path), content)
    assert all(label.max() == len(content if isinstance(content, list) else [1])
               for label in labels(tmp_path).values())


def test_rois_that_were_drawn_on_several_channels_lie_on_their_image(tmp_path):
    pixels = np.zeros((2, 20, 24), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "CYX"})
    with zipfile.ZipFile(tmp_path / "a_rois.zip", "w") as archive:
        for channel in (1, 2):  # ImageJ calls the channel a position where there is nothing else
            roi = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, left=2, right=8,
                                    top=8 * channel, bottom=8 * channel + 4, position=channel)
            archive.writestr(f"{channel}.roi", roi.tobytes())
    record, = folder.records(tmp_path, channel_index="0")
    assert np.bincount(record.read().label.ravel())[1:].tolist() == [24, 24]
    tifffile.imwrite(tmp_path / "a.tif", pixels[0])
    with pytest.raises(InputError, match="its ROIs lie on 2 planes of a stack, its image is 2-D"):
        folder.records(tmp_path)[0].read()


def test_imagej_rois_lie_beside_images(tmp_path):
    for stem in "ab":
        save(tmp_path / f"{stem}.tif")
        roi = roifile.ImagejRoi.frompoints(np.array(SQUARE), name="cell")
        with zipfile.ZipFile(tmp_path / f"{stem}_RoiSet.zip", "w") as archive:
            archive.writestr("cell.roi", roi.tobytes())
    assert {name: label.sum() for name, label in labels(tmp_path).items()} == {"a": 20, "b": 20}


# --- COCO -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["annotations/instances_default.json", "images/_annotations.json",
                                   "all.json"])
@pytest.mark.parametrize("ids", [(1, 2), ("a", "b"), (1.0, 2.5), (-7, 2**70)])
def test_a_coco_file_lies_anywhere_and_has_ids_of_any_kind(tmp_path, place, ids):
    for stem in "abc":
        save(tmp_path / f"images/{stem}.png")
    write(tmp_path / place, coco(("a.png", "images/b.png"), ids))
    found = folder.records(tmp_path)
    assert [record.name for record in found] == ["a", "b"]
    assert [np.unique(record.read().label).tolist() for record in found] == [[0, 3], [0, 4]]
    assert [f.what for f in found.findings if f.level == "warning"] == [
        f"1 images are not listed in {place.rpartition('/')[2]} and are left out: c"]


@pytest.mark.parametrize("image_ids, ids, lost", [
    (["1", 2, "1", 2], (1, 2), 0), ([1.0, 2, "x", None], (1, 2), 2), ([1, 2, 2**60], (1, 2), 1),
    ([11, 12, 11, 12], (1, 2), 4)])
def test_every_annotation_is_used_or_counted(tmp_path, image_ids, ids, lost):
    for stem in "ab":
        save(tmp_path / f"{stem}.png")
    write(tmp_path / "all.json", coco(ids=ids, image_ids=image_ids))
    if lost:
        with pytest.raises(BadFiles, match=f"all.json: {lost} annotations have an image_id that"):
            folder.records(tmp_path)
    else:
        found = folder.records(tmp_path)
        hidden = [r.read().findings[0].what for r in found]
        assert all("1 objects keep none" in text for text in hidden)


def test_a_coco_file_that_does_not_fit_is_refused(tmp_path):
    save(tmp_path / "a.png")
    write(tmp_path / "all.json", coco())
    with pytest.raises(BadFiles, match="all.json: lists 1 images that are not in .*: b.png"):
        folder.records(tmp_path)
    save(tmp_path / "b.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match="says 12x16 of an image of 9x9; its polygons do not fit"):
        labels(tmp_path)
    write(tmp_path / "more.json", coco())
    with pytest.raises(BadFiles, match="more.json: lists a.png again"):
        folder.records(tmp_path)
    (tmp_path / "more.json").unlink()
    save(tmp_path / "a_masks.png", LABEL.astype(np.uint8))
    with pytest.raises(InputError, match="all.json: lists images that also have annotations of"):
        folder.records(tmp_path)
    with pytest.raises(BadFiles, match="b.png: image without a mask"):
        folder.records(tmp_path, annotations="masks")


def calls_of(function):
    """How many Python functions are called meanwhile."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_listing_takes_time_in_proportion_to_the_number_of_files(tmp_path):
    calls = []
    for start, stop in ((0, 60), (60, 240)):
        for n in range(start, stop):
            for name in (f"images/{n}.png", f"masks/{n}.png", f"masks/{n}_ignore.png"):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).touch()
        calls.append(calls_of(lambda: folder.records(tmp_path, ignore="suffix:_ignore")))
    assert calls[1] < 5 * calls[0]  # 16 times where each is compared with each


def test_an_export_of_cvat_has_its_images_in_a_folder_of_the_subset(tmp_path):
    for stem in "ab":
        save(tmp_path / f"images/default/{stem}.png")
    write(tmp_path / "annotations/instances_default.json", coco())
    assert sorted(labels(tmp_path)) == ["a", "b"]
    save(tmp_path / "images/other/c.png")
    with pytest.raises(BadFiles, match="images/default: is a folder in 'images', which holds files"
                                       " alone; .* such as images/default,masks/default"):
        folder.records(tmp_path)
    assert sorted(labels(tmp_path, folders="images/default,annotations")) == ["a", "b"]


@pytest.mark.parametrize("place, name", [("images/", "{}.ome.tif"), ("", "{}.tif")])
def test_ome_sets_with_companion_files_are_images(tmp_path, place, name):
    files = [name.format(stem) for stem in ("a_0", "a_1")]
    for n, file in enumerate(files):
        save(tmp_path / place / file, np.full(SHAPE, n + 1, np.uint8))
    save(tmp_path / "masks/a_0.png", LABEL.astype(np.uint8))
    companion = tmp_path / place / "a.companion.ome"
    data = "".join(f'<TiffData FirstC="{n}" PlaneCount="1"><UUID FileName="{file}">{file}</UUID>'
                   "</TiffData>" for n, file in enumerate(files))
    companion.write_text(
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{SHAPE[1]}" '
        f'SizeY="{SHAPE[0]}" SizeC="2" SizeZ="1" SizeT="1"><Channel ID="C:0" Name="DAPI"/>'
        f'<Channel ID="C:1" Name="GFP"/>{data}</Pixels></Image></OME>')
    record, = folder.records(tmp_path, channel_index="GFP,DAPI")
    assert {path.name for path in record.files} == {*files, companion.name, "a_0.png"}
    assert record.read().image[0, 0].tolist() == [2, 1]
    (tmp_path / place / files[1]).unlink()
    with pytest.raises(BadFiles, match=f"{files[0]}: is of a set of 2 files, of which {files[1]} "):
        folder.records(tmp_path)
    (tmp_path / place / files[0]).unlink()
    if place:
        with pytest.raises(BadFiles, match="a.companion.ome: expected only .* it is the companion "
                                           "file of an OME set, of which no TIFF is there"):
            folder.records(tmp_path)


def test_folders_by_condition_are_strata(tmp_path):
    for name in ("drug/a", "drug/b", "control/a"):
        save(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}_mask.tif", LABEL)
    found = folder.records(tmp_path)
    assert [record.name for record in found] == ["control_a", "drug_a", "drug_b"]
    samples = [record.read() for record in found]
    assert [sample.stratum for sample in samples] == ["control", "drug", "drug"]
    for sample in samples:
        np.testing.assert_array_equal(sample.label, LABEL)
    assert {record.group for record in folder.records(tmp_path, group="^(drug|control)_")} == {
        "drug", "control"}
    save(tmp_path / "images/untreated/c.png")
    with pytest.raises(InputError, match="masks/untreated' does not exist"):
        folder.records(tmp_path)
    (tmp_path / "images/untreated/c.png").rename(tmp_path / "images/untreated.png")
    (tmp_path / "images/untreated").rmdir()
    with pytest.raises(BadFiles, match="is a folder in 'images', which holds files alone"):
        folder.records(tmp_path)


def test_two_images_of_one_name_by_condition_are_an_error(tmp_path):
    for name in ("a_b/c", "a/b_c"):
        save(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.tif", LABEL)
    with pytest.raises(BadFiles, match="would be called a_b_c, as .*; rename one of the two"):
        folder.records(tmp_path)


# --- classes --------------------------------------------------------------------------------------


def test_classes_of_outlines_are_named(tmp_path):
    save(tmp_path / "a.png")
    write(tmp_path / "a.geojson", geojson("Tumor", "Stroma", "Tumor"))
    values = lambda **options: np.unique(labels(tmp_path, **options)["a"]).tolist()
    assert values() == [0, 1, 2, 3] and values(labels="binary") == [0, 1]
    assert values(classes=("Tumor",)) == [0, 1, 3]
    note, = folder.records(tmp_path, classes=("Tumor",))[0].read().findings
    assert note.what == ("1 of 3 objects are left out, Stroma: of classes that config.data.classes "
                         "does not name")
    options = dict(labels="classes", num_classes=3)
    label = labels(tmp_path, classes=("Stroma", "Tumor"), **options)["a"]
    assert [label[2, x] for x in (4, 8, 12)] == [2, 1, 2]
    with pytest.raises(InputError, match=r"a.geojson: 3 objects have no class of config.data.class"
                                         r"es \(\); its classes are \('Stroma', 'Tumor'\); name"):
        labels(tmp_path, **options)
    write(tmp_path / "a.geojson", geojson("Tumor", ""))
    with pytest.raises(InputError, match="1 objects have no class .*, and 1 objects have none"):
        labels(tmp_path, classes=("Stroma", "Tumor"), **options)
    with pytest.raises(InputError, match="config.data.classes: got 1 names; expected 2"):
        folder.records(tmp_path, classes=("a",), **options)


def test_regions_of_qupath_are_no_objects_and_may_be_not_annotated(tmp_path):
    save(tmp_path / "a.png")
    write(tmp_path / "a.geojson", geojson("Tumor", "Ignore*", "Region*"))
    sample = folder.records(tmp_path)[0].read()
    assert np.unique(sample.label).tolist() == [0, 1]
    assert sample.findings[-1].what == (
        "2 of 3 objects are left out, Ignore*, Region*: regions to QuPath (classes that end in *); "
        "config.data.ignore=class:NAME makes one what is not annotated")
    label = labels(tmp_path, ignore="class:Ignore*")["a"]
    assert np.unique(label).tolist() == [-1, 0, 1] and label[2, 8] == -1
    label = labels(tmp_path, labels="classes", classes=("Tumor",), ignore="class:Ignore*")["a"]
    assert np.unique(label).tolist() == [-1, 0, 1]
    assert labels(tmp_path, classes=("Tumor", "Region*"))["a"].max() == 3
    features = geojson("Tumor", "Ignore*", "Region*")  # beside detections
    for feature, kind in zip(features, ("detection", "annotation", "annotation"), strict=True):
        feature["properties"]["objectType"] = kind
    features[1]["geometry"]["coordinates"] = [[[0, 0], [10, 0], [10, 9], [0, 9]]]
    write(tmp_path / "a.geojson", features)
    label = labels(tmp_path, ignore="class:Ignore*")["a"]
    assert np.count_nonzero(label == 1) == np.count_nonzero(sample.label == 1)
    assert np.count_nonzero(label == -1) == 90 - np.count_nonzero(label[:9, :10] == 1)
    save(tmp_path / "b.png")
    save(tmp_path / "b_masks.png", LABEL.astype(np.uint8))
    with pytest.raises(InputError, match="b_masks.png: holds values of pixels; set config"):
        labels(tmp_path, ignore="class:Ignore*")


def nnunet(root, channels=1, **described):
    for stem in ("case_1", "case_2"):
        for n in range(channels):
            save(root / f"imagesTr/{stem}_{n:04d}.png", np.full(SHAPE, 10 * n + 7, np.uint8))
        save(root / f"labelsTr/{stem}.png", LABEL.astype(np.uint8))
    write(root / "dataset.json", {
        "channel_names": {str(n): f"channel {n}" for n in range(channels)},
        "labels": {"background": 0, "cell": 1, "ignore": 2}, "file_ending": ".png"} | described)


def test_raw_data_of_nnunet(tmp_path):
    nnunet(tmp_path, channels=3)
    options = dict(labels="classes", num_classes=2, ignore="2")
    found = folder.records(tmp_path, **options)
    assert [record.name for record in found] == ["case_1", "case_2"]
    sample = found[0].read()
    assert sample.image[0, 0].tolist() == [7, 17, 27] and len(found[0].files) == 4
    np.testing.assert_array_equal(sample.label, np.where(LABEL == 2, -1, LABEL.astype(int)))
    with pytest.raises(InputError, match="config.data.labels: got instances; .* config.data.labels="
                                         "classes and config.data.num_classes=2"):
        folder.records(tmp_path)
    with pytest.raises(InputError, match="config.data.ignore: got ''; .* set config.data.ignore='"):
        folder.records(tmp_path, **options | {"ignore": ""})
    nnunet(tmp_path, channels=3, channel_names={"0": "DAPI", "1": "GFP"})
    with pytest.raises(BadFiles, match="case_1 are 0000, 0001, 0002; expected 2, from 0000 on"):
        folder.records(tmp_path, **options)
    (tmp_path / "labelsTr/case_2.png").rename(tmp_path / "labelsTr/case_2.nii.gz")
    with pytest.raises(BadFiles, match=r"volumes \(.nii.gz\) are not read, save their slices"):
        folder.records(tmp_path, **options)


def test_one_picture_in_colour_is_three_channels_of_nnunet(tmp_path):
    nnunet(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"})
    options = dict(labels="classes", num_classes=2, ignore="2")
    with pytest.raises(BadFiles, match="case_1 are 0000; expected 3, .* or one file with all"):
        folder.records(tmp_path, **options)
    pixels = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    for stem in ("case_1", "case_2"):
        save(tmp_path / f"imagesTr/{stem}_0000.png", pixels)
    found = folder.records(tmp_path, **options)
    np.testing.assert_array_equal(found[1].read().image[..., :3], pixels)
    green = folder.records(tmp_path, **options, channel_index="G")
    np.testing.assert_array_equal(green[1].read().image[..., 0], pixels[..., 1])


def test_channels_of_nnunet_are_chosen_by_their_names(tmp_path):
    nnunet(tmp_path, channels=3, channel_names={"0": "DAPI", "1": "GFP", "2": "bright field"})
    options = dict(labels="classes", num_classes=2, ignore="2")
    def pixel(chosen):
        sample = folder.records(tmp_path, channel_index=chosen, **options)[0].read()
        return sample.image[0, 0].tolist()
    assert pixel("GFP") == [17] == pixel("1") == pixel("gfp")
    assert pixel("bright field, DAPI") == [27, 7]
    with pytest.raises(InputError, match="has no channel 'RFP'; its channels are 0 DAPI, 1 GFP, 2"):
        pixel("RFP")
    with pytest.raises(InputError, match="no channel '3'"):
        pixel("3")
    nnunet(tmp_path, channels=3, channel_names={"0": "zscore", "1": "zscore", "2": "1"})
    with pytest.raises(InputError, match="has 2 channels 'zscore'; its channels are 0 zscore"):
        pixel("zscore")
    assert pixel("0,1") == [7, 17] and pixel("1,2") == [17, 27]


def test_corrected_names_of_channels_are_read_anew(tmp_path):
    def pixel(*names):
        nnunet(tmp_path, channels=2, channel_names=dict(enumerate(names)))
        return data.load(config.default().data.to_dict() | data.options("folder") | dict(
            name="folder", root=str(tmp_path), cache=str(tmp_path / "cache"), size=(8, 8),
            fit="center_crop", labels="classes", num_classes=2, ignore="2",
            channel_index="DAPI")).image[0, 0, 0].tolist()

    assert pixel("DAPI", "GFP") == [7] and pixel("GFP", "DAPI") == [17]


@pytest.mark.parametrize("chosen, pixel", [
    ("GFP", [17]), ("0", [7]), ("gfp,DAPI", [17, 7]), ("", [7, 17, 27])])
def test_images_of_nnunet_are_predicted_as_they_are_trained_on(tmp_path, chosen, pixel):
    nnunet(tmp_path, channels=3, channel_names={"0": "DAPI", "1": "GFP", "2": "bright field"})
    labelled = dict(labels="classes", num_classes=2, ignore="2")
    trained = folder.records(tmp_path, channel_index=chosen, **labelled)[0].read().image
    assert trained[0, 0].tolist() == pixel
    (tmp_path / "imagesTr").rename(tmp_path / "imagesTs")
    options = ReadOptions(channel_index=chosen)
    jobs = images_in.without_channels(images_in.find([str(tmp_path / "imagesTs")], "out"), options)
    assert [path.name for path, _ in jobs] == ["case_1_0000.png", "case_2_0000.png"]
    image, = lazy.open_images(jobs[0][0], options)
    np.testing.assert_array_equal(image.read(), trained)
    with pytest.raises(InputError, match="no channel 'RFP'; its channels are 0 DAPI, 1 GFP, 2 br"):
        lazy.open_images(jobs[0][0], ReadOptions(channel_index="RFP"))


def test_files_of_one_name_in_nnunets_folders_are_ambiguous(tmp_path):
    nnunet(tmp_path)
    save(tmp_path / "imagesTr/case_1_0000.tif")
    save(tmp_path / "labelsTr/case_2.tif", LABEL)
    with pytest.raises(BadFiles) as error:
        folder.records(tmp_path, labels="classes", num_classes=2, ignore="2")
    assert sorted((finding.where.rpartition("/")[2], finding.what)
                  for finding in error.value.findings) == [
        (f"{name}.tif", f"ambiguous, {name}.png has the same stem; keep one of the two")
        for name in ("case_1_0000", "case_2")]


# --- what is ambiguous or not read ----------------------------------------------------------------


def test_several_annotations_of_an_image_are_chosen_from(tmp_path):
    save(tmp_path / "images/a.png")
    save(tmp_path / "masks/a_label.tif", LABEL)
    save(tmp_path / "masks/a_masks.tif", LABEL * 2)
    with pytest.raises(BadFiles, match="ambiguous, a.png has 2 annotations: a_label.tif, a_masks.ti"
                                       "f; choose one, such as config.data.mask_suffix=_label"):
        folder.records(tmp_path)
    assert labels(tmp_path, mask_suffix="_masks")["a"].max() == 4
    with pytest.raises(BadFiles, match="image without a mask"):
        folder.records(tmp_path, mask_suffix="_corrected")
    write(tmp_path / "masks/a.geojson", geojson("", "", ""))
    (tmp_path / "masks/a_masks.tif").unlink()
    with pytest.raises(BadFiles, match="choose one, such as config.data.annotations=geojson"):
        folder.records(tmp_path)
    assert labels(tmp_path, annotations="geojson")["a"].max() == 3
    assert labels(tmp_path, annotations="masks")["a"].max() == 2
    with pytest.raises(InputError, match="config.data.annotations: got 'qupath'; expected one of "):
        folder.records(tmp_path, annotations="qupath")


def test_labels_of_planes_beside_those_of_their_stack(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (3, *SHAPE), np.uint8)
    save(tmp_path / "images/a.tif", stack)
    save(tmp_path / "masks/a_label.tif", np.stack([LABEL] * 3))
    for n in range(3):
        save(tmp_path / f"masks/a_000{n}_label.tif", LABEL)
    with pytest.raises(BadFiles, match="a_0000_label.tif: mask without an image .* a plane of a"
                                       ". config.data.mask_suffix=_label reads a_label.tif alone"):
        folder.records(tmp_path)
    found = folder.records(tmp_path, mask_suffix="_label", pages="slices")
    assert [r.name for r in found] == ["a_0000", "a_0001", "a_0002"]
    assert found.findings[0].what.startswith("3 files are read neither as image nor as annotation")


def test_outlines_of_a_stack_lie_on_their_planes(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (3, *SHAPE), np.uint8)
    save(tmp_path / "a.tif", stack)
    features = geojson("", "", "")
    for z, feature in enumerate(features):
        feature["geometry"]["plane"] = {"c": -1, "z": z % 2, "t": 0}
    write(tmp_path / "a.geojson", features)
    found = labels(tmp_path, pages="slices")
    assert [(name, np.count_nonzero(np.unique(label))) for name, label in found.items()] == [
        ("a_0000", 2), ("a_0001", 1), ("a_0002", 0)]
    write(tmp_path / "a.json", labelme())
    with pytest.raises(BadFiles, match="a.json: mask has 1 pages, its image a.tif gives 3 samples"):
        folder.records(tmp_path, pages="slices", annotations="labelme")


@pytest.mark.parametrize("z, expected", [
    ("slices", [2, 4, 6, 8, 10, 12]), ("max", [6, 12]), ("1", [4, 10])])
def test_outlines_of_slices_and_times_lie_on_both(tmp_path, z, expected):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, *SHAPE), np.uint8), imagej=True,
                     metadata={"axes": "TZYX"})
    features, rois = geojson(*[""] * 6), []
    for n, feature in enumerate(features):  # each larger by a row of two pixels
        time, depth = divmod(n, 3)
        corners = [[0, 0], [2, 0], [2, n + 1], [0, n + 1]]
        feature["geometry"] |= {"coordinates": [corners],
                                "plane": {"c": -1, "z": depth, "t": time}}
        rois.append(roifile.ImagejRoi.frompoints(corners, name=str(n + 1)))
        rois[-1].z_position, rois[-1].t_position = depth + 1, time + 1
    write(tmp_path / "a.geojson", features)
    roifile.roiwrite(tmp_path / "a.zip", rois, mode="w")
    for kind in ("geojson", "imagej"):
        found = labels(tmp_path, z=z, annotations=kind)
        assert [np.count_nonzero(label) for label in found.values()] == expected
    for roi in rois[:2]:  # of slice 1 in all frames, of frame 1 in all slices; by number
        roi.position, roi.z_position, roi.t_position = 0, 0, 0
    rois[0].z_position, rois[1].t_position, rois[2].position = 1, 1, 6
    roifile.roiwrite(tmp_path / "a.zip", rois[:3], mode="w")
    if z == "slices":
        found = labels(tmp_path, z=z, annotations="imagej")
        assert [np.unique(label)[1:].tolist() for label in found.values()] == [
            [1, 2], [2], [2], [1], [], [3]]


def test_outlines_of_the_slice_that_is_chosen_are_read_alone(tmp_path):
    save(tmp_path / "a.tif", np.zeros((3, *SHAPE), np.uint8))
    rois = [roifile.ImagejRoi.frompoints([[0, 0], [2, 0], [2, n + 1], [0, n + 1]], name=f"{n + 1}")
            for n in range(3)]
    for n, roi in enumerate(rois):
        roi.position = n + 1
    roifile.roiwrite(tmp_path / "a.zip", rois, mode="w")
    assert np.unique(labels(tmp_path, z="2")["a"]).tolist() == [0, 3]
    roifile.roiwrite(tmp_path / "a.zip", rois[:1], mode="w")
    with pytest.raises(InputError, match="a.zip: none of its objects lies on the plane that config."
                                         "data.z=2 chooses"):
        labels(tmp_path, z="2")
    (tmp_path / "a.zip").unlink()
    write(tmp_path / "a.geojson", [])
    assert not labels(tmp_path, z="2")["a"].any()


def test_masks_of_slices_and_times_may_have_another_order(tmp_path):
    def save_stack(name, array, axes):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", ome=True,
                         metadata={"axes": axes})
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1) + np.zeros(SHAPE, np.uint8)
    save_stack("images/a.tif", image, "TZYX")
    save_stack("masks/a.tif", (image + 1).swapaxes(0, 1).copy(), "ZTYX")
    save_stack("masks/a_ignore.tif", (image == 4).swapaxes(0, 1).astype(np.uint8), "ZTYX")
    for n, record in enumerate(folder.records(tmp_path, z="slices", ignore="suffix:_ignore")):
        sample = record.read()
        assert sample.image.max() == n and sample.label.max() == (-1 if n == 4 else n + 1)
    (tmp_path / "masks/a_ignore.tif").unlink()
    assert [label.max() for label in labels(tmp_path, z="slices").values()] == [1, 2, 3, 4, 5, 6]
    save_stack("masks/a.tif", image.reshape(3, 2, *SHAPE), "TZYX")
    with pytest.raises(InputError, match="masks/a.tif: mask has planes .* expected the same"):
        labels(tmp_path, z="slices")


def test_outlines_on_planes_that_a_stack_does_not_have_are_refused(tmp_path):
    save(tmp_path / "a.tif", np.zeros((3, *SHAPE), np.uint8))
    features, rois = geojson("", "", ""), []
    for n, feature in enumerate(features):
        feature["geometry"]["plane"] = {"c": -1, "z": 2 * n, "t": 0}
        rois.append(roifile.ImagejRoi.frompoints(SQUARE, name=str(n)))
        rois[-1].position = 2 * n + 1
    write(tmp_path / "a.geojson", features)
    roifile.roiwrite(tmp_path / "a.zip", rois, mode="w")
    for kind, where in (("geojson", "a.geojson: .* z 4 t 0"), ("imagej", "a.zip: .* position 5")):
        record = folder.records(tmp_path, z="slices", annotations=kind)[0]
        with pytest.raises(InputError, match=f"{where}; were they") as error:
            record.read()
        assert "1 of its objects lie on planes that the stack (Z 3) does not have" in str(
            error.value)


@pytest.mark.parametrize("option", [{"threshold": 127, "labels": "binary"}, {"ignore": "255"},
                                    {"colours": ("000000", "ff0000")}])
def test_options_of_pixel_values_are_refused_for_outlines(tmp_path, option):
    save(tmp_path / "a.png")
    write(tmp_path / "a.json", labelme())
    record, = folder.records(tmp_path, **option)
    with pytest.raises(InputError, match=f"config.data.{next(iter(option))}: .* a.json holds out"):
        record.read()


@pytest.mark.parametrize("place", ["images/", ""])
def test_ome_zarr_images_with_labels_inside_or_beside(tmp_path, place):
    zarr = pytest.importorskip("zarr")
    image = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    described = {"multiscales": [{"axes": [{"name": "y"}, {"name": "x"}],
                                  "datasets": [{"path": "0"}]}]}
    for stem in "ab":
        group = zarr.open_group(tmp_path / f"{place}{stem}.zarr", mode="w")
        group.create_array("0", data=image)
        group.attrs["ome"] = described
    for stem in "ab":
        inside = zarr.open_group(tmp_path / f"{place}{stem}.zarr/labels/cells", mode="w")
        inside.create_array("0", data=LABEL)
        inside.attrs["ome"] = described
    found = folder.records(tmp_path)
    for name, record in zip("ab", found, strict=True):
        sample = record.read()
        assert record.name == name
        np.testing.assert_array_equal(sample.label, LABEL)
        np.testing.assert_array_equal(sample.image[..., 0], image)
    (tmp_path / f"{place}a.zarr/.zattrs").write_text("{}")
    (tmp_path / f"{place}.DS_Store").write_text("")
    note, = _ignored_files(tmp_path)  # what belongs to Zarr is read
    assert note.what == "1 hidden or system files are ignored (.DS_Store)"
    first = content_fingerprint(found, tmp_path / "cache", "folder", {})
    zarr.open_group(tmp_path / f"{place}b.zarr/labels/cells")["0"][0, 0] = 9
    assert content_fingerprint(found, tmp_path / "cache", "folder", {}) != first
    assert labels(tmp_path, annotations="zarr:cells")["b"][0, 0] == 9
    save(tmp_path / f"{place}a_masks.tif", LABEL * 2)
    with pytest.raises(BadFiles, match="ambiguous, a.zarr has 2 annotations: a_masks.tif, a.zarr"):
        folder.records(tmp_path)
    assert labels(tmp_path, annotations="zarr")["a"].max() == 2
    with pytest.raises(BadFiles, match="b.zarr: image without a mask"):
        folder.records(tmp_path, mask_suffix="_masks")


def test_a_mask_of_two_images_is_refused(tmp_path):
    for name in ("a_0000", "a.ome"):
        save(tmp_path / f"images/{name}.tif")
    save(tmp_path / "masks/a.tif", LABEL)
    with pytest.raises(BadFiles, match="masks/a.tif: may belong to a.ome, a_0000; rename it"):
        folder.records(tmp_path)


@pytest.mark.parametrize("name, content, words", [
    ("masks/a.xml", "<annotations>", "it is an XML file: of CVAT or VOC"),
    ("labels/a.txt", "0 0.1 0.2 0.3", "it is a text file: of YOLO"),
    ("masks/a.nii.gz", "x", "it is a packed file: of NIfTI"),
    ("a.json", '[{"data": 1, "annotations": [{"result": [{"from_name": "tag"}]}]}]',
     "is an export of Label Studio; export as COCO"),
    ("masks/a.json", "{}", "expected only .png, .tif"), ("masks/a.json", "", "is empty")])
def test_what_is_not_read_is_refused_with_words(tmp_path, name, content, words):
    save(tmp_path / ("images/a.png" if "/" in name else "a.png"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        folder.records(tmp_path)


def test_a_folder_of_images_alone_has_no_masks(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no folder images/ .* holds 1 files \(a.png\). Expected"):
        folder.records(tmp_path)
    save(tmp_path / "images/b.png")
    with pytest.raises(InputError, match=r"holds 1 folders \(images\) and 1 files \(a.png\). Exp"):
        folder.records(tmp_path)


# --- folders of other names -----------------------------------------------------------------------


def test_folders_of_any_names_are_read_where_they_are_named(tmp_path):
    for stem in "ab":
        save(tmp_path / f"raw/{stem}.tif")
        save(tmp_path / f"annotated/{stem}.tif", LABEL)
    with pytest.raises(InputError, match="annotations: --config.data.folders=raw,annotat"
                                         "ed or --config.data.folders=annotated,raw$"):
        folder.records(tmp_path)
    for label in labels(tmp_path, folders="raw, annotated").values():
        np.testing.assert_array_equal(label, LABEL)
    with pytest.raises(InputError, match="folders: got 'raw'; expected the folder of the images "):
        folder.records(tmp_path, folders="raw")
    with pytest.raises(InputError, match=r"folders: folder '.*/row' does not exist; .* holds 2 fold"
                                         r"ers \(annotated, raw\)"):
        folder.records(tmp_path, folders="row,annotated")
    save(tmp_path / "annotated/c.tif", LABEL)
    with pytest.raises(BadFiles, match="c.tif: mask without an image"):
        folder.records(tmp_path, folders="raw,annotated")


@pytest.mark.parametrize("place, named", [("json/{}.json", "images,json"), ("{}.json", None)])
def test_outlines_in_a_folder_of_any_name_are_found_for_the_message(tmp_path, place, named):
    save(tmp_path / "images/a.png")
    write(tmp_path / place.format("a"), labelme())
    expected = f"--config.data.folders={named or 'images,.'}"
    with pytest.raises(InputError, match=f"annotations: {expected}$" if named else "Expected DIR"):
        folder.records(tmp_path)
    assert not named or labels(tmp_path, folders=named)["a"].any()


def test_a_coco_file_beside_a_folder_of_any_name(tmp_path):
    for stem in "ab":
        save(tmp_path / f"photos/{stem}.png")
    write(tmp_path / "all.json", coco())
    with pytest.raises(InputError, match="annotations: --config.data.folders=photos,.$"):
        folder.records(tmp_path)
    assert labels(tmp_path, folders="photos,.")["a"].any()


def test_datasets_one_or_two_folders_deeper_are_named(tmp_path):
    for part in ("test", "train"):
        save(tmp_path / f"stardist/{part}/images/a.tif")
        save(tmp_path / f"stardist/{part}/masks/a.tif", LABEL)
    for root in (tmp_path / "stardist", tmp_path):
        with pytest.raises(InputError, match="pass --config.data.root='.*stardist/train' .test can "
                           "be scored .* --split=all --config.data.root='.*stardist/test'"):
            folder.records(root)
    nnunet(tmp_path / "raw/nnUNet_raw/Dataset001_Cells")
    with pytest.raises(InputError, match="deeper: pass --config.data.root='.*/Dataset001_Cells'$"):
        folder.records(tmp_path / "raw")


# --- a folder for each image ----------------------------------------------------------------------

OBJECTS = {"1": LABEL == 1, "2": LABEL == 2}
TREES = {  # image, masks: one, or one for each object
    "the Data Science Bowl": ("images/{}.png", "masks/{}.png", OBJECTS),
    "an image beside its masks": ("image.tif", "masks/{}.png", OBJECTS),
    "folders of other names": ("photo/{}.jpg", "cells/{}.tif", OBJECTS),
    "masks beside the image": ("image.png", "mask_{}.png", OBJECTS),
    "a file each": ("image.png", "mask.png", {"": LABEL}),
    "a file each, of the folder's name": ("{}.tif", "{}_seg.tif", {"{}": LABEL}),
    "a file each, in folders": ("images/{}.png", "labels/a.png", {"": LABEL}),
    "a mask in a folder": ("a.png", "masks/a.png", {"": LABEL})}


def save_tree(root, layout):
    image, mask, masks = TREES[layout]
    for n, name in enumerate(("p 1", "p 2")):
        save(root / name / image.format(name), np.full(SHAPE, 50 * n + np.eye(*SHAPE), np.uint8))
        for key, values in masks.items():
            one = values.astype(np.uint8) * (255 if values.dtype == bool else 1)
            save(root / name / mask.format(key.format(name)), one)


@pytest.mark.parametrize("layout", TREES)
def test_a_folder_for_each_image_is_read(tmp_path, layout):
    save_tree(tmp_path / "train", layout)
    found = folder.records(tmp_path / "train")
    assert [record.name for record in found] == ["p 1", "p 2"]
    for n, record in enumerate(found):
        sample = record.read()
        np.testing.assert_array_equal(sample.label, LABEL)
        assert abs(int(sample.image[-1, 0, 0]) - 50 * n) < 3
        assert {path.name for path in record.files} == {
            path.name for path in (tmp_path / "train" / record.name).rglob("*.*")}
    images = [record.files[0] for record in found]
    for root in (tmp_path, tmp_path / "train"):
        assert [path for path, _ in images_in.find([str(root)], tmp_path / "out")] == images
    alone = images_in.find([str(tmp_path / "train/p 2")], tmp_path / "out")
    assert [path for path, _ in alone] == images[1:]
    with pytest.raises(InputError, match="one folder deeper: pass --config.data.root='.*/train'"):
        folder.records(tmp_path)


def test_folders_of_an_image_that_are_unlike_are_errors(tmp_path):
    save_tree(tmp_path, "an image beside its masks")
    save(tmp_path / "p 3/image.tif")
    with pytest.raises(BadFiles, match="p 3: holds other files; expected one image and its mask"):
        folder.records(tmp_path)
    save(tmp_path / "p 3/masks/1.png", (LABEL > 0).astype(np.uint8))
    assert labels(tmp_path)["p 3"].max() == 1  # the only object there, as masks are of objects
    save(tmp_path / "p 3/masks/1.png", LABEL.astype(np.uint8))
    with pytest.raises(InputError, match="1.png: mask has several values beside 0, and is one of"):
        labels(tmp_path)
    save(tmp_path / "p 3/masks/1.png", np.ones((3, 4), np.uint8))
    with pytest.raises(InputError, match="1.png: mask is 3x4, its image is 12x16"):
        labels(tmp_path)
    save(tmp_path / "p 3/other.tif")
    with pytest.raises(BadFiles, match="p 3: holds 1 in masks and 2 in .; expected one image and"):
        folder.records(tmp_path)


def test_which_file_of_a_folder_is_the_mask_is_asked(tmp_path):
    for name in "pq":
        save(tmp_path / name / "photo/a.png")
        save(tmp_path / name / "cells/b.png", LABEL.astype(np.uint8))
    with pytest.raises(InputError, match="holds 2 folders with cells and photo, a file in each; "
                                         ".* --config.data.folders=cells,photo or .*=photo,cells$"):
        folder.records(tmp_path)
    for label in labels(tmp_path, folders="photo, cells").values():
        np.testing.assert_array_equal(label, LABEL)
    images = [path.parent.name for path, _ in images_in.find([str(tmp_path)], tmp_path / "out")]
    assert images == ["photo", "photo"]


def test_masks_of_kinds_are_no_objects(tmp_path):
    for name in "pq":
        save(tmp_path / name / "image.png")
        for kind in ("cells", "nuclei"):
            save(tmp_path / name / f"masks/{kind}.png", LABEL.astype(np.uint8))
    with pytest.raises(InputError, match="p/masks: holds cells.png, nuclei.png, as every folder of "
                                         ".* choose one, such as config.data.mask_suffix=cells"):
        folder.records(tmp_path)
    np.testing.assert_array_equal(labels(tmp_path, mask_suffix="nuclei")["p"], LABEL)


def test_photographs_in_two_folders_are_no_masks(tmp_path):
    for name in ("p/a/1.png", "p/masks/1.png", "p/masks/2.png"):
        save(tmp_path / name)
    assert len(images_in.find([str(tmp_path)], tmp_path / "out")) == 3



def test_the_doctor_reads_annotations(tmp_path):
    for n in range(4):
        save(tmp_path / f"{n}.png", np.random.default_rng(n).integers(0, 255, SHAPE, np.uint8))
        write(tmp_path / f"{n}.json", labelme())
    chosen = config.default()
    chosen.data.name, chosen.data.root, chosen.data.size = "folder", str(tmp_path), SHAPE
    examined = examine(config.complete(chosen).data)
    assert [fact.num_objects for fact in examined.facts] == [1] * 4
    assert not [f for f in examined.findings if f.level == "error"]


# --- pixels of objects that are not read, and of what is not annotated ----------------------------


def rectangle(x0, y0, x1, y1, kind):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": kind}}}


@pytest.mark.parametrize("labels", ["instances", "binary"])
def test_objects_that_are_left_out_take_no_pixels_from_others(tmp_path, labels):
    save(tmp_path / "images/x.png")
    write(tmp_path / "masks/x.geojson", [
        rectangle(1, 1, 11, 9, "cell"), rectangle(3, 3, 6, 6, "nucleus"),
        rectangle(2, 2, 5, 5, "Region*"), rectangle(12, 1, 15, 4, "cell"),
        rectangle(12, 1, 14, 3, "cell")])
    record, = folder.records(tmp_path, labels=labels, classes=("cell",))
    label, findings = record.read().label, " ".join(f.what for f in record.read().findings)
    expected = np.zeros(SHAPE, int)
    expected[1:9, 1:11] = 1
    expected[1:4, 12:15], expected[1:3, 12:14] = (1, 1) if labels == "binary" else (4, 5)
    np.testing.assert_array_equal(label, expected)
    assert "4 pixels (2.08%) belong to two or more objects" in findings  # not the nucleus'


@pytest.mark.parametrize("names, chosen", [
    (("x", "x"), "geojson"), (("x", "x"), ""), (("x", "all"), "coco"), (("x", "all"), ""),
    (("x_image", "x_mask"), "")])
def test_annotations_of_any_format_have_masks_of_what_is_not_annotated(tmp_path, names, chosen):
    image, annotation = names
    save(tmp_path / f"images/{image}.png")
    if annotation == "all":
        write(tmp_path / "masks/all.json", coco((f"{image}.png",), (1,), (1,)))
    elif annotation == "x":
        write(tmp_path / "masks/x.geojson", [rectangle(2, 2, 7, 6, "")])
    else:
        save(tmp_path / f"masks/{annotation}.png", np.where(LABEL == 1, 1, 0).astype(np.uint8))
    unknown = np.zeros(SHAPE, np.uint8)
    unknown[:, 12:] = 255
    save(tmp_path / "masks/x_ignore.png", unknown)
    record, = folder.records(tmp_path, ignore="suffix:_ignore", annotations=chosen)
    np.testing.assert_array_equal(
        record.read().label, np.where(unknown, -1, np.where(LABEL == 1, 1, 0)))


@pytest.mark.parametrize("name", ["shapes", "Feature", "images"])
def test_a_class_may_be_called_as_another_format_has_it(tmp_path, name):
    save(tmp_path / "images/a.png")
    content = coco(("a.png",), (1,), (1,))
    content["categories"][0]["name"] = name
    write(tmp_path / "masks/all.json", content)
    save(tmp_path / "images/b.png")
    assert [record.name for record in folder.records(tmp_path)] == ["a"]
    (tmp_path / "masks/all.json").unlink()
    (tmp_path / "images/b.png").unlink()
    write(tmp_path / "masks/a.json", [rectangle(2, 2, 7, 6, name)])
    record, = folder.records(tmp_path)
    np.testing.assert_array_equal(record.read().label, LABEL == 1)


def test_two_samples_of_one_name_are_refused(tmp_path):
    for place in ("images", "masks"):
        save(tmp_path / f"{place}/x.tif", np.stack([LABEL, LABEL]))
        save(tmp_path / f"{place}/x_0001.tif", LABEL)
    with pytest.raises(InputError, match="x_0001.tif: would be called x_0001, as one of .*x.tif is"
                                         "; rename one of the two"):
        folder.records(tmp_path, pages="slices")


def test_a_zip_of_the_finder_holds_its_rois(tmp_path):
    save(tmp_path / "images/x.png")
    (tmp_path / "masks").mkdir()
    roi = roifile.ImagejRoi.frompoints(np.array(SQUARE, float)).tobytes()
    with zipfile.ZipFile(tmp_path / "masks/x.zip", "w") as archive:
        archive.writestr("7.roi", roi)
        archive.writestr("__MACOSX/._7.roi", b"\0\5\26\7")
    record, = folder.records(tmp_path)
    np.testing.assert_array_equal(record.read().label, LABEL == 1)
