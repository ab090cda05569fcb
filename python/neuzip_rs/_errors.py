"""The errors neuzip_rs raises, all importable from ``neuzip_rs`` itself.

The native module looks these classes up when it raises, so that they can have two bases.
"""


class NeuzipError(Exception):
    """Base class of everything neuzip_rs raises about compressed data."""


class CorruptDataError(NeuzipError, ValueError):
    """The input is damaged, truncated, or was never written by neuzip_rs."""


class UnsupportedVersionError(NeuzipError):
    """The input needs a newer format version or a feature this release does not have."""


class OutputTooLargeError(NeuzipError):
    """The decoded data would exceed ``max_output_size`` or what can be allocated."""


class BaseMismatchError(NeuzipError):
    """The data refers to another tensor (a base, a tied weight) that is missing or different."""
