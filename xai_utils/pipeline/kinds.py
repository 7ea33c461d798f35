"""What a value of params.yaml may be, whatever section it stands in: the kinds that sections.py is made of."""

import os
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from xai_utils.files import file_name

REFERENCE_SIZE = 224  # pixels at which the papers state lengths (images.py, which needs torch)
SCHEMES = ("tcp", "tls", "ws", "wss", "ucx")  # of Dask's
WORKERS = max(64, 4 * (os.cpu_count() or 1))  # threads of all processes together: more only wait for each other


def _printable(text):
    if not text.isprintable():
        raise ValueError("it holds signs that cannot be printed")
    return text


def _each_once(names):
    seen = set()
    if twice := [name for name in names if name in seen or seen.add(name)]:
        raise ValueError(f"it names {twice[0]!r} twice; name each once")
    return names


def _ascending(numbers):
    if numbers != sorted(set(numbers)):
        raise ValueError("they must ascend, each once")
    return numbers


def _scale_jitter(sides):
    if sides and not (len(sides) == 2 and REFERENCE_SIZE <= sides[0] <= sides[1]):
        raise ValueError(f"give [], or two numbers of pixels that ascend from {REFERENCE_SIZE} on, such as [256, 480]")
    return sides


def _colour_map(name):
    from matplotlib import colormaps

    if name not in colormaps:
        raise ValueError("matplotlib has e.g. viridis, magma, inferno, turbo, jet")
    return name


def _count(value):
    if value is None:
        raise ValueError("give a whole number, or all")
    return None if value == "all" else value


def _names(value):
    if value != "all" and not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        raise ValueError("give all, or a list of names")
    return value if value == "all" else _each_once(value)


def _options(value):
    if not (isinstance(value, dict) or value is None or value is False):
        raise ValueError("give options, such as {}, or false to leave the row out")
    return value


def _kept(rows):
    return {name: row for name, row in rows.items() if row is not False} if isinstance(rows, dict) else rows


def _address(text):
    parts = urlsplit(text)
    try:
        whole = parts.scheme in SCHEMES and parts.hostname and parts.port
    except ValueError:  # of a port that is no number
        whole = False
    if not whole:
        raise ValueError(f"give PROTOCOL://HOST:PORT, as a scheduler tells it, PROTOCOL one of {', '.join(SCHEMES)}")
    return text


def but_for(*names):
    """A name that is none of `names`, which the stage itself gives."""

    def check(name):
        if name in names:
            raise ValueError(f"the stage itself makes {name!r}; give yours another name")
        return name

    return AfterValidator(check)


# the upper ends are far beyond what a run needs: what lies above them is a slip of the finger
Whole = Annotated[int, Field(ge=1, le=1_000_000)]
Rounds = Annotated[int, Field(ge=1, le=10_000)]
Epochs = Annotated[int, Field(ge=0, le=10_000)]
Images = Annotated[int, Field(ge=1, le=100_000_000)]
Workers = Annotated[int, Field(ge=1, le=WORKERS)]
Pixels = Annotated[int, Field(ge=16, le=1024)]
Percent = Annotated[int, Field(gt=0, lt=100)]
Rate = Annotated[float, Field(gt=0, le=100)]
Positive = Annotated[float, Field(gt=0, le=10_000)]
NotNegative = Annotated[float, Field(ge=0, le=10_000)]
Share = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
ColourJitter = Annotated[float, Field(ge=0, lt=1)]
ScaleJitter = Annotated[list[Annotated[int, Field(le=4096)]], AfterValidator(_scale_jitter)]

Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
FileName = Annotated[str, AfterValidator(file_name)]
Address = Annotated[Word, AfterValidator(_address)]
ColourMap = Annotated[Word, AfterValidator(_colour_map)]
Baseline = Literal["rise_blur", "rise_blur_gauss", "blur", "mean", "black"]

Count = Annotated[  # "all" where a person reads and writes it, None for the code
    Images | None,
    BeforeValidator(_count),
    PlainSerializer(lambda value: "all" if value is None else value, when_used="json"),
]
Names = Annotated[Any, BeforeValidator(_names)]
RowOptions = Annotated[Any, BeforeValidator(_options)]
Once = AfterValidator(_each_once)
Ascending = AfterValidator(_ascending)
Kept = BeforeValidator(_kept)  # false leaves a row out
