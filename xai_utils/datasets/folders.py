"""What lies in folders of images: splits, classes, files; and what of it is left out, by reason.

Links to files and folders are followed. Left out are hidden files and folders, those that file managers and servers
make (MADE_BY_SYSTEMS), and notes (NOT_IMAGES); any other file must be an image.
"""

import os

from xai_utils.datasets.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
NOT_IMAGES = {".txt", ".md", ".csv", ".json", ".xml", ".yaml", ".yml", ".html", ".ini", ".db", ".mat"}
TRAIN = ("train", "training")  # in any case
LOOSE = "an image beside the folders of classes"
HELD_OUT = ("validation", "val", "valid", "test", "testing")  # the first that exists is held out
MADE_BY_SYSTEMS = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"}


class LeftOut(dict):
    """Reason -> the names that were left out for it."""

    def note(self, reason, name):
        self.setdefault(reason, []).append(str(name).encode(errors="replace").decode())  # a report is UTF-8

    def summary(self):
        """Reason -> {"count", "first"}, for a report."""
        return {reason: {"count": len(names), "first": names[0]} for reason, names in sorted(self.items())}


def splits(root, left_out, *, table=False):
    """The folders (of training images, of held-out ones) directly in `root`; None for what is not there.

    Beside folders of other names, or a `table` of classes, one that holds images directly is no split: it is a class
    that is called so. DataError where that cannot be seen, and for two folders of one meaning.
    """
    folders = [root / name for name in _folders(root, root, LeftOut())]
    others = [folder for folder in folders if folder.name.lower() not in TRAIN + HELD_OUT]
    named = [folder for folder in folders if folder not in others and not ((others or table) and is_flat(folder))]
    train = [folder for folder in named if folder.name.lower() in TRAIN]
    held_out = sorted(
        (folder for folder in named if folder not in train), key=lambda folder: HELD_OUT.index(folder.name.lower())
    )
    for same in (train, [folder for folder in held_out if folder.name.lower() == held_out[0].name.lower()]):
        if len(same) > 1:
            names = " and ".join(folder.name for folder in same)
            raise DataError(f"{root}: {names} mean the same split; put their classes into one folder")
    if bool(train) != bool(held_out) and any(map(is_flat, others)):
        name, other = named[0].name, next(filter(is_flat, others)).name
        raise DataError(
            f"{root}: {name}/ holds folders, and beside it lies {other}/ with images: is {name} a split or a class? "
            f"Move {other}/ away or into a split, or, where {name} is a class, rename it, e.g. to {name}_"
        )
    if named:
        _folders(root, root, left_out)
        _note_loose(root, root, left_out)
    for folder in others if named else ():
        left_out.note("a folder beside the splits", folder.name)
    for folder in held_out[1:]:
        left_out.note(f"a split that is not used, for {held_out[0].name} is held out", folder.name)
    return (train or [None])[0], (held_out or [None])[0]


def classes_in(root, folder, left_out):
    """Class name -> sorted files relative to `root`, for the class folders of `folder`.

    DataError for a class without images, a file that is no image, and an image that links put into two classes.
    """
    classes, homes, places = {}, {}, {}
    for name in _folders(root, folder, left_out):
        _check_name(folder / name)
        classes[name] = _images(root, folder / name, left_out)
        for file in classes[name]:
            before = homes.setdefault(real_path(root / file, places), (name, file))
            if before[0] != name:
                raise DataError(f"{root}: {before[1]} and {file} are the same image; an image has one class")
    if not classes:
        held = sorted(entry.name for entry in folder.iterdir())
        raise DataError(
            f"{folder} has no class folders; {listed('it holds', held)}: put images into it, or into folder/class/, "
            "or name their classes in labels.csv (file,class)"
        )
    _note_loose(root, folder, left_out)
    return classes


def unlabelled_in(root, left_out):
    """The sorted files of a `root` that holds images and no folder; None where it holds something else."""
    return _images(root, root, left_out) if is_flat(root) else None


def walk(root, folder, left_out):
    """All files of `folder`, at any depth, sorted; links to folders are followed, but no folder is read twice."""
    entered, links, files = set(), [], []

    def enter(place):
        entered.add(os.path.realpath(place))
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = place / entry.name
                if reason := _by_system(entry.name):
                    left_out.note(reason, path.relative_to(root).as_posix())
                elif entry.is_dir(follow_symlinks=False):
                    enter(path)
                elif entry.is_symlink() and path.is_dir():
                    links.append(path)  # after all that is no link, so that a link never takes a real folder's place
                else:
                    files.append(path)

    enter(folder)
    while links:
        link = links.pop(0)
        if os.path.realpath(link) in entered:
            left_out.note("a link to a folder that is read already", link.relative_to(root).as_posix())
        else:
            enter(link)
    return sorted(files)


def real_path(file, places):
    """The path of `file` without links; the dict `places` remembers those of folders, which spares most of the time."""
    if file.parent not in places:
        places[file.parent] = os.path.realpath(file.parent)
    path = os.path.join(places[file.parent], file.name)
    return os.path.realpath(path) if os.path.islink(path) else path


def listed(lead, names):
    """`lead` and the first of `names`, for a message."""
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{lead} {shown}" if names else f"{lead} nothing"


def _folders(root, place, left_out):
    """The sorted names of the folders directly in `place`, without those that systems make."""
    names = []
    for name in sorted(entry.name for entry in place.iterdir() if entry.is_dir()):
        if reason := _by_system(name):
            left_out.note(reason, (place / name).relative_to(root).as_posix())
        else:
            names.append(name)
    return names


def _note_loose(root, folder, left_out):
    for entry in sorted(folder.iterdir()):
        if entry.suffix.lower() in SUFFIXES and entry.is_file() and not _by_system(entry.name):
            left_out.note(LOOSE, entry.relative_to(root).as_posix())


def is_flat(folder):
    """Whether images lie directly in it, and no folder."""
    entries = [entry for entry in folder.iterdir() if not _by_system(entry.name)]
    return any(entry.suffix.lower() in SUFFIXES for entry in entries) and not any(entry.is_dir() for entry in entries)


def _by_system(name):
    if name.startswith("."):
        return "hidden"
    return "made by a system, not by you" if name.lower() in MADE_BY_SYSTEMS else None


def _images(root, folder, left_out):
    files = []
    for path in walk(root, folder, left_out):
        if path.suffix.lower() in SUFFIXES:
            _check_name(path)
            files.append(path.relative_to(root).as_posix())
        elif path.suffix.lower() in NOT_IMAGES:
            left_out.note("no image but a note", path.relative_to(root).as_posix())
        else:
            allowed = " ".join(sorted(SUFFIXES))
            raise DataError(f"{path} is not an image of a known kind ({allowed}); convert it or move it away")
    if not files:
        raise DataError(f"class {folder.name!r} ({folder}) holds no image; add images or remove the folder")
    return files


def _check_name(path):
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: the name is not UTF-8; rename it") from None
