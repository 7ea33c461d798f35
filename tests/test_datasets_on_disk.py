"""Image folders: layouts, every kind of image, and every mistake named."""

import numpy as np
import pytest
from PIL import Image

from xai_utils import datasets
from xai_utils.datasets import DataError, folders, on_disk


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


def listed(root, **options):
    return on_disk.find_images(root, **{"validation_fraction": 0.25, "seed": 0} | options)


def test_layouts(tmp_path):
    """train/ with val/ or test/, val/ alone, train/ alone, class folders directly: each gives the splits it says."""
    for held_out in folders.HELD_OUT:
        root = tmp_path / held_out
        folder_of(root / "train", images=3)
        folder_of(root / held_out, images=2)
        found = listed(root)
        assert found.classes == ("a", "b")
        assert found.train[:3] == [("train/a/0.png", 0), ("train/a/1.png", 0), ("train/a/2.png", 0)]
        assert found.validation[2:] == [(f"{held_out}/b/0.png", 1), (f"{held_out}/b/1.png", 1)]
    only = listed(folder_of(tmp_path / "only" / "val").parent)
    assert (len(only.train), len(only.validation), only.classes) == (0, 8, ("a", "b"))
    for root in (folder_of(tmp_path / "flat"), folder_of(tmp_path / "unsplit" / "train").parent):
        found = listed(root)
        assert [label for _, label in found.train] == [0] * 3 + [1] * 3
        assert [label for _, label in found.validation] == [0, 1]
        assert len(dict(found.train + found.validation)) == 8
        assert listed(root).validation == found.validation
        assert any(listed(root, seed=seed).validation != found.validation for seed in range(1, 6))


def test_images_in_one_folder_have_no_labels(tmp_path):
    """No table, no class folder: all images are held out, UNLABELLED; notes beside them are counted."""
    for name in ("2.png", "1.png"):
        save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("x")
    found = listed(tmp_path / "photos")
    assert (found.classes, found.train) == ((), [])
    assert found.validation == [("1.png", datasets.UNLABELLED), ("2.png", datasets.UNLABELLED)]
    assert found.left_out == {"no image but a note": ["notes.txt"]}


def test_everything_can_be_held_out(tmp_path):
    """validation_fraction 1 leaves nothing to train on; then one class, and a class of one image, are enough."""
    found = listed(folder_of(tmp_path / "set", classes=("a",), images=1), validation_fraction=1.0)
    assert (found.classes, found.train, found.validation) == (("a",), [], [("a/0.png", 0)])


def test_hidden_files_and_notes_are_left_out_and_nested_images_are_found(tmp_path):
    """A .DS_Store, a README and a hidden folder are no images; class/deeper/x.JPEG is one."""
    root = folder_of(tmp_path / "set")
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "a" / "README.txt").write_text("x")
    save(root / ".cache" / "x.png")
    save(root / "a" / "deeper" / "x.JPEG")
    found = listed(root)
    assert found.classes == ("a", "b")
    assert "a/deeper/x.JPEG" in dict(found.train + found.validation)


def test_splits_are_known_in_any_spelling_and_nothing_is_ignored_silently(tmp_path):
    """Training/ and Val/ are train/ and val/; what lies beside them is left out by name."""
    folder_of(tmp_path / "set" / "Training", images=3)
    folder_of(tmp_path / "set" / "Val", images=2)
    folder_of(tmp_path / "set" / "TEST", images=1)
    save(tmp_path / "set" / "x.png")
    (tmp_path / "set" / "Annotations").mkdir()
    (tmp_path / "set" / "labels.csv").write_text("file,class\n")
    found = listed(tmp_path / "set")
    assert [file for file, _ in found.train[:2]] == ["Training/a/0.png", "Training/a/1.png"]
    assert [file for file, _ in found.validation[:2]] == ["Val/a/0.png", "Val/a/1.png"]
    assert found.left_out == {
        "an image beside the folders of classes": ["x.png"],
        "a folder beside the splits": ["Annotations"],
        "a split that is not used, for Val is held out": ["TEST"],
        "a table that is not read, for the folders of the splits name the classes": ["labels.csv"],
    }
    for other, message in (("train", "Training and train mean the same"), ("val", "Val and val mean the same")):
        (tmp_path / "set" / other).mkdir()
        with pytest.raises(DataError, match=message):
            listed(tmp_path / "set")
        (tmp_path / "set" / other).rmdir()


def test_a_class_may_be_called_as_a_split(tmp_path):
    """Beside other classes a folder of images is a class; one of folders could be both, which is asked."""
    root = folder_of(tmp_path / "set", classes=("bus", "train", "Test", "val"))
    assert listed(root).classes == ("Test", "bus", "train", "val")
    root = folder_of(tmp_path / "deep", classes=("bus", "train/steam"))
    with pytest.raises(DataError, match=r"is train a split or a class\? Move bus/ away or .* rename it"):
        listed(root)
    root = folder_of(tmp_path / "table", classes=("train",))
    (root / "labels.csv").write_text("file,class\n" + "".join(f"train/{i}.png,{i % 2}\n" for i in range(4)))
    assert listed(root).classes == ("0", "1")


def test_links_are_followed_and_lead_nowhere_twice(tmp_path):
    """Linked images, folders and classes count; loops and second ways to a folder are left out, two classes refused."""
    root = folder_of(tmp_path / "set")
    folder_of(tmp_path / "elsewhere", classes=("more", "c"), images=2)
    plain = listed(root)
    (root / "a" / "more").symlink_to("../../elsewhere/more")
    (root / "a" / "0_loop").symlink_to("../a")
    (root / "a" / "self").symlink_to("more")
    (root / "a" / "4.png").symlink_to("../../elsewhere/c/0.png")
    (root / "c").symlink_to("../elsewhere/c")
    with pytest.raises(DataError, match=r"a/4\.png and c/0\.png are the same image; an image has one class"):
        listed(root)
    (root / "a" / "4.png").unlink()
    found = listed(root)
    names = {file for file, _ in found.train + found.validation}
    assert names - {file for file, _ in plain.train + plain.validation} == {
        "a/more/0.png", "a/more/1.png", "c/0.png", "c/1.png"}  # fmt: skip
    assert found.left_out == {"a link to a folder that is read already": ["a/0_loop", "a/self"]}


def test_what_is_left_out_is_counted_in_the_description(tmp_path):
    """Hidden files, notes, thumbnails' folders, images of no class, rows of unused images: a count and a name each."""
    root = folder_of(tmp_path / "set" / "train").parent
    save(root / "train" / "@eaDir" / "x.png")
    save(root / "train" / "a" / "@eaDir" / "x.png")
    save(root / "train" / "a" / ".thumbnails" / "x.png")
    save(root / "__MACOSX" / "x.png")
    save(root / "other" / "deep" / "x.png")
    save(root / "train" / "y.png")
    (root / "train" / "a" / "notes.txt").touch()
    (root / "boxes.csv").write_text("file,x0,y0,x1,y1\n./train//a/0.png,0,0,4,4\nother/deep/x.png,0,0,4,4\n")
    description = datasets.prepare(root, tmp_path / "out", image_size=8)
    assert description["left_out"] == {
        "a folder beside the splits": {"count": 1, "first": "other"},
        "a row of boxes.csv for an image that is not used": {"count": 1, "first": "other/deep/x.png"},
        "an image beside the folders of classes": {"count": 1, "first": "train/y.png"},
        "hidden": {"count": 1, "first": "train/a/.thumbnails"},
        "made by a system, not by you": {"count": 3, "first": "__MACOSX"},
        "no image but a note": {"count": 1, "first": "train/a/notes.txt"},
    }
    assert description["annotated_classes"] == ["a"]
    left_out = folders.LeftOut()
    left_out.note("hidden", ".\udcff")  # a name that is not UTF-8
    assert left_out == {"hidden": [".?"]}


def test_bad_folders_are_refused_by_name(tmp_path):
    """Missing, empty, without classes, a class without images, one-sided classes, unknown kinds of files."""
    folder_of(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("x")
    save(folder_of(tmp_path / "loose", classes=("edited",)) / "x.png")
    (folder_of(tmp_path / "hollow") / "c").mkdir()
    folder_of(tmp_path / "sided" / "train")
    folder_of(tmp_path / "sided" / "val", classes=("a",))
    (folder_of(tmp_path / "foreign") / "a" / "x.gif").write_bytes(b"GIF89a")
    folder_of(tmp_path / "single", images=1)
    folder_of(tmp_path / "shallow", classes=("images",))
    for name, message in (
        ("god", r"god does not exist; beside it lie empty, file, .*good"),
        ("empty", r"empty is empty; beside it lie empty, file"),
        ("file", "is a file, not a folder"),
        ("notes", r"notes has no class folders; it holds x.txt: put images into it"),
        ("loose", r"has one class only, 'edited'"),
        ("hollow", "class 'c' .* holds no image"),
        ("sided", "class 'b' is in train/ but not in val/"),
        ("foreign", "x.gif is not an image of a known kind.*convert"),
        ("single", "class 'a' has one image only"),
        ("shallow", r"has one class only, 'images', and a classifier needs two; .*labels\.csv"),
    ):
        with pytest.raises(DataError, match=message):
            listed(tmp_path / name)
    with pytest.raises(DataError, match=r"validation_fraction is 1\.5; it must lie between"):
        listed(tmp_path / "good", validation_fraction=1.5)


def test_a_table_names_the_classes_of_one_folder(tmp_path):
    """labels.csv: files at the root or in images/, split by seed; all are held out where each class has one image."""
    root = tmp_path / "set"
    for name in ("images/1.png", "images/2.png", "3.png", "4.png", "images/unlisted.png"):
        save(root / name)
    (root / "labels.csv").write_text("file,index,class\n1.png,7,wren\nimages/2.png,7,auk\n3.png,7,wren\n4.png,7,auk\n")
    found = listed(root)
    assert found.classes == ("auk", "wren")
    assert sorted(found.train + found.validation) == [
        ("3.png", 1), ("4.png", 0), ("images/1.png", 1), ("images/2.png", 0)]  # fmt: skip
    assert [label for _, label in found.validation] == [0, 1]
    assert found.left_out == {"an image that labels.csv does not name": ["images/unlisted.png"]}
    (root / "labels.csv").write_text("synset,file\nn2,1.png\nn1,2.png\n")
    assert listed(root).train == []
    assert listed(root).validation == [("images/2.png", 0), ("images/1.png", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,kind\n1.png,a\n", r"the first line must name the columns file and class; it names \['file', 'kind'\]"),
        ("", "the first line must name the columns"),
        ("file,class\n9.png,a\n", r"line 2: unknown file '9\.png'"),
        ("file,class\n1.png,\n", r"line 2: 1\.png has no class"),
        ("file,class\n1.png,a\n2.png,b\n1.png,b\n", r"line 4: 1\.png stands there for the second time"),
        ("file,class\n1.png,a\n2.png,b\n.//1.png,b\n", r"line 4: \./+1\.png stands there for the second time \(line 2"),
        ("file,class\n1.png,a\nlink.png,b\n", r"line 3: link\.png stands there for the second time"),
        ("file,class\n../outside.png,a\n", r"line 2: '\.\./outside\.png' is no path inside"),
        ("file,class\n/etc/1.png,a\n", r"line 2: '/etc/1\.png' is no path inside .*; give one relative to it"),
        ("file,class\nlabels.csv,a\n", r"line 2: unknown file 'labels\.csv'; files are images"),
        ("file,class\n", "lists no image"),
        ("file,class\n1.png,a\n2.png,a\n", "has one class only, 'a'"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, message):
    """Every mistake in labels.csv is named with its line."""
    for name in ("1.png", "2.png"):
        save(tmp_path / "set" / name)
    save(tmp_path / "outside.png")
    (tmp_path / "set" / "link.png").symlink_to("1.png")
    (tmp_path / "set" / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "set")


def test_every_kind_of_image_becomes_rgb(tmp_path):
    """Grey, palette, transparent, CMYK, 1-bit and 16-bit images have the RGB values computed by hand."""
    row = np.array([[0, 128, 255]], dtype=np.uint8)
    grey = np.stack([row] * 3, axis=-1)
    assert np.array_equal(on_disk.read_image(save(tmp_path / "grey.png", row)), grey)
    deep = (row.astype(np.uint16) * 257).astype(np.uint16)
    assert np.array_equal(on_disk.read_image(save(tmp_path / "deep.png", deep)), grey)
    clear = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    on_white = [[[255, 255, 255], [255, 0, 0], [204, 204, 204]]]
    for suffix in ("png", "webp"):
        assert np.array_equal(on_disk.read_image(save(tmp_path / f"clear.{suffix}", clear, lossless=True)), on_white)
    grey_clear = np.array([[[0, 0], [100, 255], [0, 51]]], dtype=np.uint8)
    expected = [[[255] * 3, [100] * 3, [204] * 3]]
    assert np.array_equal(on_disk.read_image(save(tmp_path / "la.png", grey_clear)), expected)
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "p.png")
    assert np.array_equal(on_disk.read_image(tmp_path / "p.png"), [[[10, 20, 30], [200, 100, 50]]])
    indexed.save(tmp_path / "pt.png", transparency=0)
    assert np.array_equal(on_disk.read_image(tmp_path / "pt.png"), [[[255] * 3, [200, 100, 50]]])
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = np.asarray(on_disk.read_image(tmp_path / "cmyk.jpg"), dtype=int)
    assert np.abs(red - [255, 0, 0]).max() < 12
    Image.new("1", (2, 2), 1).save(tmp_path / "bit.bmp")
    assert np.array_equal(on_disk.read_image(tmp_path / "bit.bmp"), np.full((2, 2, 3), 255))


def test_exif_orientation_is_applied(tmp_path):
    """Orientation 6 (turn clockwise): the left column of the stored image is the top row of the upright one."""
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[:, 0] = [250, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.asarray(on_disk.read_image(save(tmp_path / "x.png", pixels, exif=exif)))
    assert upright.shape == (3, 2, 3)
    assert (upright[0] == [250, 0, 0]).all()
    assert not upright[1:].any()


def test_bad_images_are_refused_by_name(tmp_path, monkeypatch):
    """Cut off, empty, text named .jpg, GIF named .png, absurdly large: one line that names the file."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "bmp", "webp"):
        path = save(tmp_path / f"cut.{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=rf"cut\.{suffix}: .*(damaged or cut off|not a readable)"):
            on_disk.read_image(path)
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    save(tmp_path / "gif.png", noise, format="GIF")
    for name, message in (
        ("zero.jpg", r"zero.jpg: the file is empty \(0 bytes\)"),
        ("text.jpg", "text.jpg: not a readable image; allowed are JPEG, PNG, WEBP, BMP"),
        ("gif.png", "gif.png: not a readable image"),
        ("absent.png", "absent.png: "),
    ):
        with pytest.raises(DataError, match=message) as caught:
            on_disk.read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    big = save(tmp_path / "big.png", noise)
    for limit in (3000, 1000):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=rf"big.png: more than {limit} pixels"):
            on_disk.read_image(big)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x0,y0,x1\n", "column 'y1' is missing; the first line must be file,x0,y0,x1,y1"),
        ("", "column 'file' is missing"),
        ("file,x0,y0,x1,y1\na/9.png,0,0,1,1\n", "line 2: unknown file 'a/9.png'"),
        ("file,x0,y0,x1,y1\na/0.png,0,zero,1,1\n", "line 2: column 'y0' holds 'zero', not a number"),
        ("file,x0,y0,x1,y1\na/0.png,0,nan,1,1\n", "column 'y0' holds 'nan'"),
        ("file,x0,y0,x1,y1\na/0.png,0,0,1\n", "column 'y1' holds None"),
        ("file,x0,y0,x1,y1\na/0.png,3,0,2,1\n", "line 2: empty box 3,0,2,1 of a/0.png"),
        ("file,x0,y0,x1,y1\na/0.png,0,0,9,6\n", "of a/0.png lies outside its image of 8 x 6 pixels"),
        ("file,x0,y0,x1,y1\na/0.png,0,0,8,7\n", "of a/0.png lies outside its image of 8 x 6 pixels"),
        ("file,x0,y0,x1,y1\na/0.png,-1,0,8,6\n", "of a/0.png lies outside"),
        ("file,x0,y0,x1,y1\na/0.png,0,0,.5,1\nb/0.png,.1,.2,.3,.4\n", "all boxes lie within 0 and 1, as if .* shares"),
        ("file,x0,y0,x1,y1\na/0.png,0,0,8,6\na//0.png,0.0,0,8,6\n", "line 3: the box of line 2 of a/0.png once more"),
        ("file,x0,y0,x1,y1\n../set/a/0.png,0,0,8,6\n", r"line 2: '\.\./set/a/0\.png' is no path inside"),
        (
            "file,x0,y0,x1,y1\n{set}/a/0.png,0,0,8,6\n",
            "line 2: '/.*/set/a/0.png' is no path inside .*; give one relative",
        ),
        ("file,x0,y0,x1,y1\na,0,0,8,6\n", "line 2: unknown file 'a'; files are images"),
        (b"file,x0,y0,x1,y1\n\xff,0,0,8,6\n", "not a readable UTF-8 CSV file"),
    ],
)
def test_a_wrong_boxes_file_is_refused_and_nothing_stays_behind(tmp_path, text, message):
    """Every mistake in boxes.csv is named; the target folder and its surroundings stay as they were."""
    root = folder_of(tmp_path / "set")
    (root / "boxes.csv").write_bytes(text if isinstance(text, bytes) else text.replace("{set}", str(root)).encode())
    with pytest.raises(DataError, match=message):
        datasets.prepare(root, tmp_path / "out", image_size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
