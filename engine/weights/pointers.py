"""Files that Git LFS leaves where a large file was not fetched: a few lines of text that name it."""

_START = b"version https://git-lfs"
NOT_FETCHED = "it is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"


def is_pointer(data: bytes) -> bool:
    """Whether a file with this text, or with this beginning, is one."""
    return data.startswith(_START)
