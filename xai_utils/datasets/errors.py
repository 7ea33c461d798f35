"""The one error that data of the wrong form raises."""


class DataError(ValueError):
    """Data on disk is not as it must be: the message names the file, class or column and says what to do."""
