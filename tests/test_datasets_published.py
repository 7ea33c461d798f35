"""Published data sets: each layout as its archives unpack, held against torchvision's readers, and what is missing."""

import shutil

import numpy as np
import pytest
import torchvision
from conftest import ROOT
from PIL import Image
from scipy.io import savemat

from xai_utils import datasets
from xai_utils.datasets import DataError, MissingData, published


def picture(path, value=0, *, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def voc(path, *boxes, name="n01", size=(40, 30)):
    """A Pascal VOC annotation: `boxes` of xmin, ymin, xmax, ymax."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>{''.join(f'<{c}>{v}</{c}>' for c, v in zip(corners, box, strict=True))}"
        "</bndbox></object>"
        for box in boxes
    )
    write(path, f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>")


def cub(root):
    names = ["001.Auk/Auk_1.jpg", "001.Auk/Auk_2.jpg", "002.Wren/Wren_1.jpg", "002.Wren/Wren_2.jpg"]
    for name in names:
        picture(root / "images" / name)
    write(root / "images.txt", *(f"{number} {name}" for number, name in enumerate(names, 1)))
    write(root / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2")
    write(root / "classes.txt", "1 001.Auk", "2 002.Wren")
    write(root / "train_test_split.txt", "1 1", "2 0", "3 0", "4 1")
    write(root / "bounding_boxes.txt", "1 5.0 6.0 10.0 4.0", "2 0.0 0.0 41.0 30.0", "3 1.0 2.0 3.0 4.0", "4 0 0 9 9")
    return root


def cars(root):
    kind = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]

    def annotations(path, *rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"annotations": np.array([list(rows)], dtype=kind)})

    for name in ("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg", "cars_test/00002.jpg"):
        picture(root / name)
    annotations(root / "devkit/cars_train_annos.mat", (1, 1, 40, 30, 2, "00001.jpg"), (5, 6, 9, 8, 1, "00002.jpg"))
    annotations(root / "cars_test_annos_withlabels.mat", (2, 3, 4, 5, 1, "00001.jpg"), (1, 1, 2, 2, 2, "00002.jpg"))
    names = np.array([["AM General Hummer SUV 2000", "Ram C/V Cargo Van 2012"]], dtype=object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})
    return root


def aircraft(root):
    data = root / "data"
    for number in (11, 12, 13, 14, 15, 16):
        picture(data / f"images/{number}.jpg", size=(60, 50))
    write(data / "variants.txt", "A300B4", "An-12")
    write(data / "families.txt", "A300", "An-12")
    write(data / "manufacturers.txt", "Antonov", "Airbus")  # not in the order of the alphabet
    for level, one, two in (("variant", "A300B4", "An-12"), ("family", "A300", "An-12"),
                            ("manufacturer", "Airbus", "Antonov")):  # fmt: skip
        write(data / f"images_{level}_train.txt", f"11 {one}", f"12 {two}")
        write(data / f"images_{level}_val.txt", f"13 {two}")
        write(data / f"images_{level}_trainval.txt", f"11 {one}", f"12 {two}", f"13 {two}")
        write(data / f"images_{level}_test.txt", f"14 {one}", f"15 {two}", f"16 {one}")
    write(data / "images_box.txt", *(f"{number} 1 1 60 30" for number in (11, 12, 13, 14, 15)), "16 11 6 20 10")
    return root


def pets(root):
    notes = root / "annotations"
    rows = {"trainval": ["Abyssinian_1 1 1 1", "great_pyrenees_1 4 2 3"], "test": ["Abyssinian_2 1 1 1",
            "great_pyrenees_2 4 2 3"]}  # fmt: skip
    write(notes / "list.txt", "#Image CLASS-ID SPECIES BREED ID", *rows["trainval"], *rows["test"])
    for split, lines in rows.items():
        write(notes / f"{split}.txt", *lines)
    for name in ("Abyssinian_1", "Abyssinian_2", "great_pyrenees_1", "great_pyrenees_2"):
        picture(root / "images" / f"{name}.jpg")
        trimap = np.full((30, 40), 2, dtype=np.uint8)
        trimap[10:20, 5:25] = 3
        trimap[11:19, 6:24] = 1
        (notes / "trimaps").mkdir(exist_ok=True)
        Image.fromarray(trimap).save(notes / "trimaps" / f"{name}.png")
    voc(notes / "xmls/Abyssinian_1.xml", (1, 2, 10, 12), name="cat")
    return root


def imagenet(root, *, sorted_by_class=True, kaggle=False):
    images = root / "Data/CLS-LOC" if kaggle else root
    notes = root / "Annotations/CLS-LOC" if kaggle else root / "Annotations"
    for synset in ("n01440764", "n01443537"):
        for number in (1, 2):
            picture(images / "train" / synset / f"{synset}_{number}.JPEG")
    voc(notes / "train/n01443537/n01443537_2.xml", (0, 0, 39, 29), name="n01443537")
    for number, synset in enumerate(("n01443537", "n01440764", "n01440764", "n01443537"), 1):
        folder = images / "val" / synset if sorted_by_class else images / "val"
        picture(folder / f"ILSVRC2012_val_0000000{number}.JPEG")
        voc(notes / f"val/ILSVRC2012_val_0000000{number}.xml", (number, 0, 19, 9), name=synset)
    return root


def places(root):
    write(root / "categories_places365.txt", "/a/airfield 0", "/b/bakery/shop 1")
    write(root / "places365_train_standard.txt", "/a/airfield/00000001.jpg 0", "/b/bakery/shop/00000001.jpg 1")
    write(root / "places365_val.txt", "Places365_val_00000001.jpg 1", "Places365_val_00000002.jpg 0")
    for name in ("a/airfield", "b/bakery/shop"):
        picture(root / "data_256" / name / "00000001.jpg")
    for number in (1, 2):
        picture(root / f"val_256/Places365_val_0000000{number}.jpg")
    return root


def cowc(root):
    train = {"Toronto_ISPRS/train/a.0.png": 0, "Utah_AGRC/train/b.12.png": 12, "Utah_AGRC/train/c.2.png": 2}
    test = {"Potsdam_ISPRS/test/d.2.png": 2, "Potsdam_ISPRS/test/e.0.png": 0}
    for split, rows in (("train", train), ("test", test)):
        write(root / f"COWC_{split}_list_64_class.txt", *(f"{file} {count}" for file, count in rows.items()))
        for file in rows:
            picture(root / file)
    return root


MAKERS = {"cub": cub, "cars": cars, "aircraft": aircraft, "pets": pets, "imagenet": imagenet, "places": places,
          "cowc": cowc}  # fmt: skip


def found(root, **options):
    return published.find(root, **{"validation_fraction": 0.2, "seed": 0} | options)


def test_every_layout_is_tested():
    """A layout that is added to LAYOUTS needs a tiny tree here."""
    assert set(MAKERS) == set(published.LAYOUTS)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_layout_is_recognised_and_prepared(kind, tmp_path):
    """By itself or one folder above, the same images; prepared, each split has its own images in every class."""
    folder = published.LAYOUTS[kind].folder
    MAKERS[kind](tmp_path / "above" / folder)
    shutil.copytree(tmp_path / "above" / folder, tmp_path / "other name")
    one, two = found(tmp_path / "above"), found(tmp_path / "other name")
    assert one.kind == two.kind == kind
    assert (one.classes, one.train, one.validation) == (two.classes, two.train, two.validation)
    assert not {file for file, _ in one.train} & {file for file, _ in one.validation}
    description = datasets.prepare(tmp_path / "other name", tmp_path / "out", image_size=32)
    data = datasets.load(tmp_path / "out")
    assert data.classes == one.classes
    assert (description["kind"], description["name"], description["skipped"]) == (kind, "other name", {})
    for split, listed in ((data.train, one.train), (data.validation, one.validation)):
        assert sorted(zip(split.files, split.labels.tolist(), strict=True)) == sorted(listed)


def test_cub(tmp_path):
    """Labels from 0, the published split, boxes from x, y, width, height; what reaches beyond the image is cut."""
    listing = found(cub(tmp_path / "CUB_200_2011"))
    assert listing.classes == ("001.Auk", "002.Wren")
    assert listing.train == [("images/001.Auk/Auk_1.jpg", 0), ("images/002.Wren/Wren_2.jpg", 1)]
    assert listing.validation == [("images/001.Auk/Auk_2.jpg", 0), ("images/002.Wren/Wren_1.jpg", 1)]
    assert listing.boxes("images/001.Auk/Auk_1.jpg", (40, 30)).tolist() == [[5, 6, 15, 10]]
    assert listing.boxes("images/001.Auk/Auk_2.jpg", (40, 30)).tolist() == [[0, 0, 40, 30]]


def test_cars_as_torchvision_reads_them(tmp_path):
    """Files, labels and names are torchvision's; boxes, which it lacks, count from 1 and include the last pixel."""
    root = cars(tmp_path / "stanford_cars")
    listing = found(root)
    for split, own in (("train", listing.train), ("test", listing.validation)):
        theirs = torchvision.datasets.StanfordCars(tmp_path, split=split, download=False)
        assert [(str(root / file), label) for file, label in own] == [(file, int(c)) for file, c in theirs._samples]
        assert list(listing.classes) == theirs.classes
    assert listing.boxes("cars_train/00001.jpg", (40, 30)).tolist() == [[0, 0, 40, 30]]
    assert listing.boxes("cars_train/00002.jpg", (40, 30)).tolist() == [[4, 5, 9, 8]]
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos_withlabels.mat")
    assert found(root).validation == listing.validation


@pytest.mark.parametrize("level", ["variant", "family", "manufacturer"])
def test_aircraft_as_torchvision_reads_them(tmp_path, level):
    """Three levels: trainval and test are torchvision's, in the order of the published list of classes."""
    root = aircraft(tmp_path / "fgvc-aircraft-2013b")
    listing = found(root, annotation_level=level)
    for split, own in (("trainval", listing.train), ("test", listing.validation)):
        theirs = torchvision.datasets.FGVCAircraft(tmp_path, split=split, annotation_level=level, download=False)
        files = zip(theirs._image_files, theirs._labels, strict=True)
        assert [(str(root / file), label) for file, label in own] == list(files)
        assert list(listing.classes) == theirs.classes
    assert (found(root).train == listing.train) == (level != "manufacturer")  # None: variant; names alone differ here


def test_aircraft_lose_their_banner(tmp_path):
    """The 20 rows of copyright are cut off, the boxes stay: white above, a grey banner below gives white alone."""
    root = aircraft(tmp_path / "set")
    pixels = np.full((50, 60, 3), 255, dtype=np.uint8)
    pixels[30:] = 100
    for path in (root / "data/images").iterdir():
        Image.fromarray(pixels).save(path, quality=100)
    datasets.prepare(root, tmp_path / "out", image_size=30, geometry="squash")
    data = datasets.load(tmp_path / "out")
    assert data.validation.images.min() > 245
    assert data.train.boxes[0].tolist() == [[0, 0, 30, 30]]
    assert data.validation.boxes[1].tolist() == [[5, 5, 10, 10]]  # 16: columns 10 to 20 of 60, rows 5 to 10 of 30


def test_pets_as_torchvision_reads_them(tmp_path):
    """Class numbers may have gaps; masks are 1 on the animal, 2 on its outline; boxes are published or the mask's."""
    root = pets(tmp_path / "oxford-iiit-pet")
    listing = found(root)
    assert listing.classes == ("Abyssinian", "great_pyrenees")
    for split, own in (("trainval", listing.train), ("test", listing.validation)):
        theirs = torchvision.datasets.OxfordIIITPet(tmp_path, split=split, download=False)
        assert [root / file for file, _ in own] == theirs._images
        assert [theirs.classes[label] for _, label in own] == ["Abyssinian", "Great Pyrenees"]
    assert listing.boxes("images/Abyssinian_1.jpg", (40, 30)).tolist() == [[0, 1, 10, 12]]
    assert listing.boxes("images/Abyssinian_2.jpg", (40, 30)).tolist() == [[5, 10, 25, 20]]
    mask = np.asarray(listing.parts("images/Abyssinian_1.jpg"))
    assert (mask == 1).sum() == 8 * 18
    assert (mask == 2).sum() == 10 * 20 - 8 * 18
    datasets.prepare(root, tmp_path / "out", image_size=30, geometry="squash")
    split = datasets.load(tmp_path / "out").validation
    assert split.part_names == ("animal", "outline")
    assert set(np.unique(split.parts)) == {0, 1, 2}
    inside = split.box_masks([0])
    assert not ((split.part_masks([0], "animal") | split.part_masks([0], "outline")) & ~inside).any()


@pytest.mark.parametrize("shape", [{}, {"sorted_by_class": False}, {"kaggle": True, "sorted_by_class": False}])
def test_imagenet_in_three_shapes(tmp_path, shape):
    """val/ sorted or flat, at the root or in Data/CLS-LOC: the same labels; XML boxes, from 0 with the last pixel."""
    root = imagenet(tmp_path / "ILSVRC", **shape)
    listing = found(root)
    assert listing.classes == ("n01440764", "n01443537")
    assert [label for _, label in listing.train] == [0, 0, 1, 1]
    held_out = {file.rsplit("_", 1)[1]: label for file, label in listing.validation}
    assert held_out == {"00000001.JPEG": 1, "00000002.JPEG": 0, "00000003.JPEG": 0, "00000004.JPEG": 1}
    boxes = {file.rsplit("_", 1)[1]: listing.boxes(file, (40, 30)).tolist() for file, _ in listing.validation}
    assert boxes["00000003.JPEG"] == [[3, 0, 20, 10]]
    file = listing.train[3][0]
    assert listing.boxes(file, (40, 30)).tolist() == [[0, 0, 40, 30]]
    assert listing.boxes(file, (80, 60)).tolist() == [[0, 0, 80, 60]]  # annotated at another size
    assert listing.boxes(listing.train[0][0], (40, 30)).shape == (0, 4)


def test_imagenet_with_and_without_the_blacklist(tmp_path):
    """The developers' kit names validation images by number; without the kit the error says what to unpack."""
    root = imagenet(tmp_path / "set", sorted_by_class=False)
    with pytest.raises(MissingData, match=r"has no blacklist; unpack ILSVRC2014_devkit\.tgz there"):
        found(root, drop_blacklisted=True)
    write(root / "ILSVRC2014_devkit/data/ILSVRC2014_clsloc_validation_blacklist.txt", "2", "4")
    kept = [file.rsplit("_", 1)[1] for file, _ in found(root, drop_blacklisted=True).validation]
    assert kept == ["00000001.JPEG", "00000003.JPEG"]
    assert len(found(root).validation) == 4


def test_imagenet_counts_objects_of_the_images_class_only(tmp_path):
    """A second object of another synset is no place where the class is seen."""
    root = imagenet(tmp_path / "set")
    xml = root / "Annotations/val/ILSVRC2012_val_00000002.xml"
    other = "<object><name>n99</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    xml.write_text(xml.read_text().replace("</annotation>", f"{other}</annotation>"))
    file = "val/n01440764/ILSVRC2012_val_00000002.JPEG"
    assert found(root).boxes(file, (40, 30)).tolist() == [[2, 0, 20, 10]]


def test_places_lists(tmp_path):
    """Names with slashes stay; small images or, where only those are there, large ones."""
    root = places(tmp_path / "set")
    listing = found(root)
    assert listing.classes == ("/a/airfield", "/b/bakery/shop")
    assert listing.train[1] == ("data_256/b/bakery/shop/00000001.jpg", 1)
    assert listing.validation[0] == ("val_256/Places365_val_00000001.jpg", 1)
    (root / "data_256").rename(root / "data_large_standard")
    (root / "val_256").rename(root / "val_large")
    assert found(root).train[0][0] == "data_large_standard/a/airfield/00000001.jpg"
    assert found(root).validation[0][0] == "val_large/Places365_val_00000001.jpg"


def test_cowc_classes_are_counts_in_their_order(tmp_path):
    """0, 2, 12 cars are three classes, also where one of them has no test image."""
    listing = found(cowc(tmp_path / "set"))
    assert listing.classes == ("0", "2", "12")
    assert [label for _, label in listing.train] == [0, 2, 1]
    assert [label for _, label in listing.validation] == [1, 0]


@pytest.mark.parametrize(
    ("kind", "lost", "message"),
    [
        ("cub", "bounding_boxes.txt", r"bounding_boxes\.txt is missing.*CUB_200_2011\.tgz"),
        ("cub", "images/002.Wren/Wren_1.jpg", r"1 of the 4 images that CUB-200-2011 lists are missing.*Wren_1"),
        ("cars", "cars_test_annos_withlabels.mat", r"withlabels\.mat is missing, which Stanford Cars needs; unpack"),
        ("cars", "devkit", r"cars_meta\.mat is missing.*car_devkit\.tgz"),
        ("aircraft", "data/images_variant_val.txt", r"variant_val\.txt is missing.*fgvc-aircraft-2013b\.tar\.gz"),
        ("pets", "annotations/test.txt", r"annotations/test\.txt is missing.*annotations\.tar\.gz"),
        ("pets", "annotations/trimaps/Abyssinian_2.png", r"Abyssinian_2\.png is missing.*annotations\.tar\.gz"),
        ("pets", "images", r"4 of the 4 images that Oxford-IIIT Pet lists are missing"),
        ("imagenet", "val", r"val is missing, which ImageNet \(ILSVRC 2012\) needs"),
        ("places", "categories_places365.txt", r"categories_places365\.txt is missing.*places365-standard\.tar"),
        ("cowc", "COWC_test_list_64_class.txt", r"COWC_test_list_64_class\.txt is missing.*list_64_class\.txt\.bz2"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_what_to_unpack_where(kind, lost, message, tmp_path):
    """A piece that is not there is a FileNotFoundError in one line: its path, the archive, the folder."""
    root = MAKERS[kind](tmp_path / "set")
    path = root / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(MissingData, match=message) as caught:
        datasets.prepare(root, tmp_path / "out", image_size=32)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, DataError)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("kind", MAKERS)
def test_an_absent_data_set_is_known_by_its_name(kind, tmp_path):
    """The folder is not there or empty: the error says what to unpack where."""
    layout = published.LAYOUTS[kind]
    for state in ("does not exist", "is empty"):
        with pytest.raises(MissingData, match=state) as caught:
            found(tmp_path / layout.folder)
        assert layout.obtain.format(root=tmp_path / layout.folder) in str(caught.value)
        (tmp_path / layout.folder).mkdir(exist_ok=True)


def test_a_class_without_images_is_named(tmp_path):
    """An empty class of a list, and an empty class folder of ImageNet."""
    root = cub(tmp_path / "one")
    write(root / "train_test_split.txt", "1 1", "2 1", "3 0", "4 1")
    with pytest.raises(DataError, match=r"class '001\.Auk' has no held-out image"):
        found(root)
    root = imagenet(tmp_path / "two")
    shutil.rmtree(root / "train" / "n01443537")
    (root / "train" / "n01443537").mkdir()
    with pytest.raises(DataError, match=r"class 'n01443537' .* holds no image"):
        found(root)


def test_damaged_lists_and_annotations_are_named(tmp_path):
    """A short line, an unknown class, a truncated XML, a .mat that is none, a mask of another size."""
    root = cub(tmp_path / "cub")
    write(root / "image_class_labels.txt", "1 1", "2", "3 2", "4 2")
    with pytest.raises(DataError, match=r"image_class_labels\.txt line 2: '2' has not 2 columns"):
        found(root)
    write(root / "image_class_labels.txt", "1 1", "2 7", "3 2", "4 2")
    with pytest.raises(DataError, match=r"Auk_2\.jpg has a class that is not in the list of 2"):
        found(root)
    write(root / "image_class_labels.txt", "1 1", "3 2", "4 2")
    with pytest.raises(DataError, match=r"its lists are not those of CUB-200-2011"):
        found(root)
    root = cars(tmp_path / "cars")
    write(root / "devkit/cars_train_annos.mat", "nothing")
    with pytest.raises(DataError, match="its lists are not those of Stanford Cars"):
        found(root)
    root = aircraft(tmp_path / "aircraft")
    write(root / "data/images_variant_test.txt", "14 Concorde")
    with pytest.raises(DataError, match=r"'Concorde' is not in variants\.txt"):
        found(root)
    root = pets(tmp_path / "pets")
    write(root / "annotations/xmls/Abyssinian_1.xml", "<annotation><size>")
    with pytest.raises(DataError, match=r"Abyssinian_1\.xml: not a readable annotation"):
        datasets.prepare(root, tmp_path / "out", image_size=32)
    for size in ("", "<width>0</width><height>30</height>"):
        write(root / "annotations/xmls/Abyssinian_1.xml", f"<annotation><size>{size}</size></annotation>")
        with pytest.raises(DataError, match=r"Abyssinian_1\.xml: an annotation without size or box"):
            datasets.prepare(root, tmp_path / "out", image_size=32)
    (root / "annotations/xmls/Abyssinian_1.xml").unlink()
    picture(root / "images/Abyssinian_1.jpg", size=(50, 50))
    with pytest.raises(DataError, match=r"Abyssinian_1\.jpg has \(50, 50\) pixels and its mask \(40, 30\)"):
        datasets.prepare(root, tmp_path / "out", image_size=32)


def test_an_option_of_another_data_set_is_refused(tmp_path):
    """annotation_level is for aircraft, drop_blacklisted for ImageNet: elsewhere they would be ignored silently."""
    with pytest.raises(ValueError, match=r"annotation_level is 'family', but .* is CUB-200-2011; it is for FGVC"):
        found(cub(tmp_path / "cub"), annotation_level="family")
    with pytest.raises(ValueError, match=r"drop_blacklisted is True, but .* it is for ImageNet \(ILSVRC 2012\) alone"):
        found(aircraft(tmp_path / "aircraft"), drop_blacklisted=True)
    with pytest.raises(ValueError, match="annotation_level"):
        datasets.prepare(ROOT / "data" / "birds", tmp_path / "out", image_size=32, annotation_level="family")


# --- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_pets_with_their_masks_and_boxes(real, tmp_path):
    """598 real images: torchvision's labels; published head boxes; masks that lie inside the boxes made of them."""
    source = real / "oxford-pets-3"
    listing = found(source)
    assert (len(listing.train), len(listing.validation), len(listing.classes)) == (300, 298, 3)
    for split, own in (("trainval", listing.train), ("test", listing.validation)):
        theirs = torchvision.datasets.OxfordIIITPet(source, split=split, download=False)
        assert [listing.root / file for file, _ in own] == theirs._images
        assert len({(label, theirs._labels[i]) for i, (_, label) in enumerate(own)}) == 3
    datasets.prepare(source, tmp_path / "out", image_size=64, train_per_class=4, validation_per_class=8)
    data = datasets.load(tmp_path / "out")
    assert len(data.validation) == 24
    for split in (data.train, data.validation):
        everything = range(len(split))
        assert all(len(boxes) for boxes in split.boxes)
        animal = split.part_masks(everything, "animal")
        assert 0.1 < animal.float().mean() < 0.8
    masks = data.validation.box_masks(range(24))
    animal = data.validation.part_masks(range(24), "animal")
    assert (animal & ~masks).float().mean() < 0.005  # but for rounding at the edges


@pytest.mark.real
def test_real_imagenet_samples_as_they_lie_there(real, tmp_path):
    """400 images in one folder with labels.csv: classes are synsets, and one image of each class is held out."""
    description = datasets.prepare(real / "imagenet-samples", tmp_path / "out", image_size=32)
    assert description["counts"] == {"train": 0, "validation": 400}
    data = datasets.load(tmp_path / "out")
    assert data.classes[0] == "n01440764"
    assert data.validation.files[0] == "images/n01440764_tench.JPEG"
    assert sorted(data.classes) == list(data.classes)
