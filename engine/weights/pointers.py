"""Git LFS pointers: a few lines of text in place of a large file that was not fetched."""

_START = b"version https://git-lfs"
NOT_FETCHED = "it is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"


def is_pointer(data: bytes) -> bool:
    """Whether a file with this text, or beginning with it, is a pointer."""
    return data.startswith(_START)
