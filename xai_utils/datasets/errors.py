"""What data of the wrong form raise: the message names the file, class or column and says what to do."""


class DataError(ValueError):
    """Data on disk are not as they must be."""


class MissingData(DataError, FileNotFoundError):
    """A data set, or a piece of it, is not where it must be; the message says what to put there."""


class CorruptImage(DataError):
    """An image that cannot be decoded to its last pixel. `prepare` may leave such images out."""
