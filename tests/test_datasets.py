"""The prepared form that all stages read: geometry, bytes, failures, splits, and real images."""

import csv
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xai_utils import datasets
from xai_utils.datasets import DataError, decoding, fitting, on_disk
from xai_utils.files import DiskFull
from xai_utils.training.target import labels_among

SPECIES = Path(__file__).resolve().parent.parent / "data" / "birds"


@pytest.fixture(scope="module")
def catalogue():
    return datasets.load_catalogue(SPECIES / "species.yaml")


def save(path, pixels=None, *, size=(8, 6), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size) if pixels is None else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def folder_of(root, *, classes=("a", "b"), images=4, size=(8, 6)):
    for name in classes:
        for number in range(images):
            save(root / name / f"{number}.png", size=size)
    return root


def test_geometry_of_boxes_by_hand():
    """Half-open boxes of a 40 x 20 image, by hand, with crop (to 16: 40 x 20 -> 36 x 18, cut 10 and 1) and squash."""
    image = Image.new("RGB", (40, 20))
    boxes = np.array([[20.0, 10, 30, 20], [0, 0, 12, 5], [0, 0, 10, 20]])
    # scale 18 / 20 = 0.9: [18, 9, 27, 18] - [10, 1] = [8, 8, 17, 17] clipped to 16;
    # [0, 0, 10.8, 4.5] -> [-10, -1, 0.8, 3.5] clipped; [0, 0, 9, 18] ends left of the crop and is dropped.
    fitted, own = fitting.fit(image, boxes, 16, "crop")
    assert fitted.size == (16, 16)
    assert own == pytest.approx(np.array([[8, 8, 16, 16], [0, 0, 0.8, 3.5]]))
    _, own = fitting.fit(image, boxes, 16, "squash")
    assert own == pytest.approx(np.array([[8, 8, 12, 16], [0, 0, 4.8, 4], [0, 0, 4, 16]]))
    _, tall = fitting.fit(Image.new("RGB", (20, 40)), boxes[:, [1, 0, 3, 2]], 16, "crop")
    assert tall == pytest.approx(np.array([[8, 8, 16, 16], [0, 0, 3.5, 0.8]]))


def test_geometry_of_pixels_follows_the_boxes():
    """A white rectangle and its box land on the same pixels; the crop equals resizing everything, then cutting."""
    pixels = np.zeros((120, 300, 3), dtype=np.uint8)
    pixels[30:90, 130:200] = 255
    image, box = Image.fromarray(pixels), np.array([[130.0, 30, 200, 90]])
    for geometry in fitting.GEOMETRIES:
        fitted, own = fitting.fit(image, box, 56, geometry)
        rows, columns = np.nonzero(np.asarray(fitted)[..., 0] > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert own[0] == pytest.approx(seen, abs=0.6)
    whole = image.resize((160, 64), Image.Resampling.BILINEAR).crop((52, 4, 108, 60))
    assert np.abs(np.asarray(fitting.fit(image, box, 56, "crop")[0], int) - np.asarray(whole, int)).max() <= 1


def test_prepare_a_folder_with_awkward_names(tmp_path):
    """Class and file names with markup, commas, quotes and umlauts come back; two boxes of one image stay two."""
    classes = ("<script>alert(1)</script>".replace("/", "∕"), 'comma, "quoted"', "Zaunkönig 鳥")
    root = folder_of(tmp_path / "set", classes=classes, images=3, size=(16, 16))
    save(root / classes[1] / "ö,1.png", np.full((16, 16, 3), 200, dtype=np.uint8))
    with (root / "boxes.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = [["file", "x0", "y0", "x1", "y1"]]
        rows += [[f"{classes[1]}/ö,1.png", *box] for box in ((0, 0, 8, 16), (12, 12, 16, 16))]
        csv.writer(handle).writerows(rows)
    description = datasets.prepare(root, tmp_path / "out", image_size=8, geometry="squash", validation_fraction=0.34)
    data = datasets.load(tmp_path / "out")
    assert data.classes == tuple(sorted(classes))
    assert data.description == json.loads(json.dumps(description))
    assert description["annotated_classes"] == [classes[1]]
    assert description["counts"] == {"train": 7, "validation": 3}
    split = data.train if f"{classes[1]}/ö,1.png" in data.train.files else data.validation
    index = split.files.index(f"{classes[1]}/ö,1.png")
    assert split.boxes[index].tolist() == [[0, 0, 4, 8], [6, 6, 8, 8]]
    assert data.classes[split.labels[index]] == classes[1]
    assert torch.allclose(split.tensor([index]), torch.tensor(200 / 255))
    assert split.parts is None
    with pytest.raises(ValueError, match="unknown part 'wing'; the parts are none"):
        split.part_masks([0], "wing")
    with pytest.raises(ValueError, match="only birds can be drawn again"):
        data.render_again("train", 0)


def test_caps_take_a_seeded_subset_of_each_class(tmp_path):
    """Caps keep that many images per class, a larger cap the smaller one's too; val/ alone leaves train empty."""
    root = folder_of(tmp_path / "set" / "val", images=9).parent
    chosen = []
    for cap in (2, 5):
        datasets.prepare(root, tmp_path / f"out{cap}", image_size=4, validation_per_class=cap, seed=3)
        data = datasets.load(tmp_path / f"out{cap}")
        assert data.train.images.shape == (0, 3, 4, 4)
        assert len(data.train) == 0
        assert np.bincount(data.validation.labels).tolist() == [cap, cap]
        chosen.append(set(data.validation.files))
    assert chosen[0] < chosen[1]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "out"
    datasets.prepare(SPECIES, folder, image_size=32, train_per_class=3, validation_per_class=2, seed=5)
    return folder


def test_prepared_birds(drawn, catalogue):
    """Drawn birds have labels, parts, boxes and seeds that belong together; train and validation share no seed."""
    data = datasets.load(drawn)
    assert data.classes == tuple(catalogue.species)
    assert data.part_names == datasets.PARTS
    assert data.description["differing_parts"]["capped blue finch"]["crested blue finch"] == ["crest"]
    assert (len(data.train), len(data.validation)) == (36, 24)
    seeds = [file.rsplit(":", 1)[1] for split in (data.train, data.validation) for file in split.files]
    assert len(set(seeds)) == 60
    for index in (0, 17, 35):
        assert data.train.files[index].rsplit(":", 1)[0] == data.classes[data.train.labels[index]]
        again = data.render_again("train", index)
        assert np.array_equal(again.image.transpose(2, 0, 1), data.train.images[index])
        assert np.array_equal(again.parts, data.train.parts[index])
        assert data.train.boxes[index].tolist() == [list(again.box)]
    bald = data.render_again("validation", 2, without="crest")
    assert not (bald.parts == datasets.PARTS.index("crest") + 1).any()


def test_prepare_writes_the_same_bytes_again_and_replaces_only_its_own(drawn, tmp_path):
    """Same seed, same bytes in every file, also over an earlier result; another seed differs; foreign files stay."""
    options = {"image_size": 32, "train_per_class": 3, "validation_per_class": 2}
    for seed, same in ((6, False), (5, True)):  # the second call replaces the first one's result
        datasets.prepare(SPECIES, tmp_path / "out", seed=seed, **options)
        files = sorted(path.relative_to(drawn) for path in drawn.rglob("*") if path.is_file())
        assert len(files) == 12
        assert all((drawn / file).read_bytes() == (tmp_path / "out" / file).read_bytes() for file in files) == same
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="mine holds other files"):
        datasets.prepare(SPECIES, tmp_path / "mine", **options)
    with pytest.raises(ValueError, match="lies inside its source"):
        datasets.prepare(SPECIES, SPECIES / "out", **options)


def test_a_failure_keeps_the_earlier_result(tmp_path):
    """A damaged image found half-way leaves the earlier prepared data as they were, and nothing beside them."""
    root = folder_of(tmp_path / "set")
    datasets.prepare(root, tmp_path / "out", image_size=8)
    before = (tmp_path / "out" / "dataset.json").read_bytes()
    (root / "b" / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b/3.png: not a readable image"):
        datasets.prepare(root, tmp_path / "out", image_size=8)
    assert (tmp_path / "out" / "dataset.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_a_full_disk_is_said_before_any_image_is_read(tmp_path, monkeypatch):
    """The space for all arrays is reserved first; the message names it, and the earlier prepared data stay."""
    root = folder_of(tmp_path / "set")
    datasets.prepare(root, tmp_path / "out", image_size=8)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(on_disk, "read_image", lambda path: pytest.fail(f"{path} was read"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the system refuses larger files
    try:
        with pytest.raises(DiskFull, match=r"cannot write .*/out \(File too large\): 0\.\d MB are needed"):
            datasets.prepare(root, tmp_path / "out", image_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_corrupt_images_are_all_named_or_left_out_and_counted(tmp_path):
    """One error names every corrupt image; with skip_corrupt the rest is written, and the left out are listed."""
    root = folder_of(tmp_path / "set", images=5)
    for number, name in enumerate(("a", "b")):
        for image in range(5):
            save(root / name / f"{image}.png", np.full((6, 8, 3), 10 * image + 100 * number, dtype=np.uint8))
    for name in ("a/1.png", "b/3.png", "b/4.png"):
        (root / name).write_bytes(b"broken")
    with pytest.raises(datasets.CorruptImage, match=r"(?s)a/1\.png: not .*b/3\.png.*b/4\.png.*3 corrupt in all"):
        datasets.prepare(root, tmp_path / "out", image_size=8)
    assert not (tmp_path / "out").exists()
    options = {"image_size": 8, "validation_fraction": 0.4, "seed": 1}
    description = datasets.prepare(root, tmp_path / "out", skip_corrupt=True, **options)
    assert set(description["skipped"]) == {"a/1.png", "b/3.png", "b/4.png"}
    assert "b/3.png: not a readable image" in description["skipped"]["b/3.png"]
    assert sum(description["counts"].values()) == 7
    data = datasets.load(tmp_path / "out")
    for split in (data.train, data.validation):
        assert len(split.images) == len(split) == len(split.files)
        for file, image, label in zip(split.files, split.images, split.labels, strict=True):
            assert (image == 10 * int(file[2]) + 100 * label).all()  # each picture kept its file and its label
    assert not list((tmp_path / "out").rglob("*shorter*"))


def test_a_class_of_corrupt_images_alone_is_named(tmp_path):
    """Leaving out corrupt images must not leave out a class."""
    root = folder_of(tmp_path / "set" / "val", images=2).parent
    for image in (root / "val" / "b").iterdir():
        image.write_bytes(b"broken")
    with pytest.raises(DataError, match="class 'b': none of its images for validation is readable"):
        datasets.prepare(root, tmp_path / "out", image_size=8, skip_corrupt=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_bad_options_are_refused(tmp_path):
    """Unknown geometry, sizes below one and birds without a number of images are named."""
    good = {"image_size": 8, "train_per_class": 1, "validation_per_class": 1}
    for change, message in (
        ({"geometry": "stretch"}, "geometry is 'stretch'; allowed are crop, squash"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1"),
        ({"validation_per_class": 0}, "validation_per_class is 0"),
        ({"train_per_class": None}, "train_per_class is None; for drawn birds"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.prepare(SPECIES, tmp_path / "out", **good | change)
    assert not list(tmp_path.iterdir())


def test_load_refuses_what_is_not_prepared(drawn, tmp_path):
    """A folder without dataset.json, with a broken one, or with a shortened array is named."""
    with pytest.raises(DataError, match=r"is not a prepared data set \(no dataset.json\)"):
        datasets.load(tmp_path)
    copy = shutil.copytree(drawn, tmp_path / "copy")
    np.save(copy / "train" / "labels.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(DataError, match=r"damaged \(train: 36 images, 3 labels"):
        datasets.load(copy)
    (copy / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json is damaged"):
        datasets.load(copy)


def test_tensor_and_masks(drawn):
    """Pixels are value / 255; a box mask has the box's area for whole pixels and follows pixel centres otherwise."""
    split = datasets.load(drawn).validation
    images = split.tensor([4, 1])
    assert images.dtype == torch.float32
    assert torch.equal((images * 255).round().to(torch.uint8), torch.from_numpy(split.images[[4, 1]]))
    masks, everything = split.box_masks([4, 1]), torch.zeros(2, 32, 32, dtype=torch.bool)
    for part in split.part_names:
        everything |= split.part_masks([4, 1], part)
    for mask, seen, index in zip(masks, everything, (4, 1), strict=True):
        x0, y0, x1, y1 = split.boxes[index][0]
        assert mask.sum() == (x1 - x0) * (y1 - y0)
        assert not (seen & ~mask).any()
        assert torch.equal(seen, torch.from_numpy(split.parts[index] > 0))
    boxes = [np.array([[0.4, 0.5, 2.5, 2.0], [2.6, 2.6, 4.0, 3.6]]), np.zeros((0, 4))]
    images = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    hand = datasets.Split(images, np.zeros(2, dtype=np.int64), boxes, None, ["", ""], ("a",), ())
    assert hand.box_masks([0, 1]).int().tolist() == [
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
        [[0] * 4] * 4,
    ]


def test_subset_is_seeded_and_balanced():
    """As many of each class as there are: 2 of a rare class, the rest shared evenly; all is allowed, more is not."""
    labels = np.repeat([0, 1, 2], [2, 20, 30])
    images = np.zeros((52, 3, 2, 2), dtype=np.uint8)
    split = datasets.Split(images, labels, [], None, [""] * 52, ("a", "b", "c"), ())
    chosen = split.subset(12, 4)
    assert np.bincount(labels[chosen]).tolist() == [2, 5, 5]
    assert np.array_equal(chosen, np.unique(chosen))
    assert np.array_equal(chosen, split.subset(12, 4))
    assert not np.array_equal(chosen, split.subset(12, 5))
    counts = np.bincount(labels[split.subset(4, 0)], minlength=3)
    assert sorted(counts.tolist()) == [1, 1, 2]
    assert split.subset(52, 0).tolist() == list(range(52))
    for count in (0, 53):
        with pytest.raises(ValueError, match=f"a subset of {count} images was asked for; this split has 52"):
            split.subset(count, 0)


# --- real images -----------------------------------------------------------------------------------------------------


def test_images_without_labels_are_prepared_and_chosen_like_others(tmp_path):
    """A cap takes a seeded subset of all, a subset is seeded, and no network's class is theirs."""
    for number in range(6):
        save(tmp_path / "photos" / f"{number}.png", np.full((8, 6, 3), number, dtype=np.uint8))
    seen = set()
    for seed in range(4):
        about = datasets.prepare(
            tmp_path / "photos", tmp_path / "made", image_size=32, validation_per_class=4, seed=seed
        )
        assert (about["classes"], about["counts"]) == ([], {"train": 0, "validation": 4})
        seen.add(tuple(datasets.load(tmp_path / "made").validation.files))
    assert len(seen) > 1
    split = datasets.load(tmp_path / "made").validation
    assert split.labels.tolist() == labels_among(split, ["a", "b"]).tolist() == [datasets.UNLABELLED] * 4
    chosen = [split.subset(2, seed).tolist() for seed in range(6)]
    assert chosen[0] == split.subset(2, 0).tolist()
    assert len(set(map(tuple, chosen))) > 1


def test_labels_among_the_classes_of_a_network(tmp_path):
    """By name, whatever the order; a class that the network does not know is UNLABELLED."""
    folder_of(tmp_path / "set", classes=("a", "b", "c"), images=2)
    datasets.prepare(tmp_path / "set", tmp_path / "made", image_size=32, validation_fraction=1.0)
    split = datasets.load(tmp_path / "made").validation
    assert labels_among(split, ["c", "x", "a"]).tolist() == [2, 2, -1, -1, 0, 0]


@pytest.mark.real
def test_tiny_imagenet_boxes_are_those_of_its_file(real, tmp_path):
    """Real 64 px images at 96 px: each box is the published inclusive one, + 1 at its end, times 96 / 64."""
    source = real / "tiny-imagenet-20"
    options = {"geometry": "squash", "train_per_class": 3, "validation_per_class": 3}
    description = datasets.prepare(source, tmp_path / "out", image_size=96, **options)
    assert description["counts"] == {"train": 60, "validation": 60}
    assert description["annotated_classes"] == description["classes"]
    data = datasets.load(tmp_path / "out")
    with (source / "boxes.csv").open() as handle:
        published = {
            row["file"]: [int(row[name]) for name in ("x0", "y0", "x1", "y1")] for row in csv.DictReader(handle)
        }
    for split in (data.train, data.validation):
        for file, boxes, image in zip(split.files, split.boxes, split.images, strict=True):
            x0, y0, x1, y1 = published[file]
            assert boxes.tolist() == [[1.5 * x0, 1.5 * y0, 1.5 * (x1 + 1), 1.5 * (y1 + 1)]]
            assert image.std() > 3
    pixels = Image.open(source / data.train.files[5]).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(pixels).transpose(2, 0, 1), data.train.images[5])


@pytest.mark.real
def test_tiny_imagenet_is_not_half_open(real, tmp_path):
    """Its one-pixel boxes give its convention away; told to be half-open, the error says which option is meant."""
    with pytest.raises(DataError, match="set inclusive_boxes"):
        datasets.prepare(
            real / "tiny-imagenet-20", tmp_path / "out", image_size=64, train_per_class=1, inclusive_boxes=False
        )


@pytest.mark.real
def test_flat_folder_of_real_non_square_images(real, tmp_path):
    """Real photographs of many sizes sorted into class folders are cropped like resize-then-crop does it."""
    samples = sorted((real / "imagenet-samples" / "images").glob("*.JPEG"))[:6]
    for number, path in enumerate(samples):
        (tmp_path / "set" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "set" / "ab"[number % 2])
    datasets.prepare(tmp_path / "set", tmp_path / "out", image_size=56, validation_fraction=0.34)
    data = datasets.load(tmp_path / "out")
    assert (len(data.train), len(data.validation)) == (4, 2)
    for file, image in zip(data.train.files, data.train.images, strict=True):
        original = Image.open(tmp_path / "set" / file).convert("RGB")
        width, height = original.size
        size = (64, int(64 * height / width)) if width <= height else (int(64 * width / height), 64)
        left, top = round((size[0] - 56) / 2), round((size[1] - 56) / 2)
        whole = original.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 56, top + 56))
        assert np.abs(np.asarray(whole, dtype=int).transpose(2, 0, 1) - image).max() <= 1


SHAPES = ((60, 40), (40, 90), (33, 33), (400, 30), (20, 25))  # width, height


def various(root, count=7):
    """Ramps and noise of several shapes in two classes."""
    for number in range(count):
        width, height = SHAPES[number % len(SHAPES)]
        ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None]
        path = root / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)).save(path)
    return root


@pytest.mark.parametrize("geometry", fitting.GEOMETRIES)
@pytest.mark.parametrize("stored_size", [37, 50])
def test_images_stored_whole_give_the_test_crops_when_read(tmp_path, geometry, stored_size):
    """Of all shapes: the crops are those that are stored without it, up to resizing twice; boxes, labels alike."""
    root = various(tmp_path / "set")
    (root / "boxes.csv").write_text("file,x0,y0,x1,y1\n0/0.png,3,4,50,30\n1/3.png,190,2,240,20\n")
    options = {"image_size": 32, "geometry": geometry, "validation_fraction": 1.0}
    datasets.prepare(root, tmp_path / "plain", **options)
    about = datasets.prepare(root, tmp_path / "whole", **options, stored_size=stored_size)
    assert about["stored_size"] == stored_size
    plain, whole = (datasets.load(tmp_path / name).validation for name in ("plain", "whole"))
    difference = whole.pixels(range(7)).int() - plain.pixels(range(7)).int()
    assert difference.abs()[[i for i, file in enumerate(plain.files) if "3" not in file]].max() <= 9
    assert difference.abs().float().mean() < 1.5
    assert [each.tolist() for each in plain.boxes] == [each.tolist() for each in whole.boxes]
    assert plain.files == whole.files
    assert np.array_equal(whole.images[2], whole.images[[2]][0])
    assert np.array_equal(whole.images[-1], whole.images[len(whole) - 1])
    assert len(whole.images[1:3]) == 2
    assert whole.images.shape == plain.images.shape


def test_all_of_an_image_is_stored_with_its_proportions(tmp_path):
    """The shorter side is the stored size; of a strip of 400 x 30 the longer one is eight times that and no more."""
    datasets.prepare(
        various(tmp_path / "set"), tmp_path / "out", image_size=32, stored_size=40, validation_fraction=1.0
    )
    split = datasets.load(tmp_path / "out").validation
    pixels, shapes = split.stored([split.files.index("0/0.png"), split.files.index("1/3.png")])
    assert shapes.tolist() == [[0, 40, 60], [2400, 24, 320]]
    assert pixels.shape == (2400 + 24 * 320, 3)
    first = pixels[:2400].reshape(40, 60, 3)[..., 0]
    assert first.tolist() == split.images.whole(split.files.index("0/0.png"))[..., 0].tolist()
    assert first[0, 0] <= 4
    assert first[-1, -1] >= 245


@pytest.mark.parametrize("stored_size", [None, 40])
def test_decoding_goes_on_where_it_was_stopped(tmp_path, monkeypatch, stored_size):
    """Of three shards the second is damaged: the others stay, the mended one is decoded, and nothing else is left."""
    monkeypatch.setattr(decoding, "SHARD", 3)
    root, lines = various(tmp_path / "set"), []
    options = {"image_size": 32, "stored_size": stored_size, "validation_fraction": 1.0}
    datasets.prepare(root, tmp_path / "whole", **options)
    broken = root / "1" / "1.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:60])
    with pytest.raises(DataError, match=r"1\.png"):
        datasets.prepare(root, tmp_path / "out", **options, kept=tmp_path / "kept", log=lines.append)
    assert lines[0].startswith("decoded images: 3 of 7")
    assert not (tmp_path / "out").exists()
    broken.write_bytes(content)
    decoded = []
    read = on_disk.read_image
    monkeypatch.setattr(on_disk, "read_image", lambda path: decoded.append(path.name) or read(path))
    datasets.prepare(root, tmp_path / "out", **options, kept=tmp_path / "kept")
    assert decoded == ["6.png", "1.png", "3.png"]
    assert not any((tmp_path / "kept").iterdir())
    made = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out", tmp_path / "whole")
    ]
    assert made[0] == made[1]


def test_two_processes_decode_the_same(tmp_path):
    """Of more images than a shard holds, tiny ones."""
    root = tmp_path / "set"
    for number in range(decoding.SHARD + 20):
        path = root / f"{number % 2}" / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (number % 256, number // 256, 7)).save(path)
    for processes in (1, 2):
        options = {"image_size": 4, "validation_fraction": 1.0, "processes": processes}
        datasets.prepare(root, tmp_path / str(processes), **options)
    one, two = (tmp_path / name / "validation" / "images.npy" for name in "12")
    assert one.read_bytes() == two.read_bytes()
