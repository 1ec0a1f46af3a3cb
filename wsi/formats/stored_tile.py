"""The bytes of one stored tile, and how large a tile may be: the same for every format that keeps tiles in a file."""

from ..source import ByteSource
from .tilewise import BadTile

MAX_TILE_PX = 4_096 * 4_096  # 48 MiB decoded; scanners write 240 to 1,024 px a side
MAX_STRIP_PX = 100_000_000  # 286 MiB decoded; a compressed image in one strip is decoded whole for each read


def read_stored(source: ByteSource, offset: int, count: int) -> bytes:
    """`count` bytes at `offset`, all of them. Raises BadTile."""
    if count <= 0:
        raise BadTile("the file holds no bytes for it" + ", its stated size is absurd" * (count < 0))
    data = source.read_at(offset, count)
    if len(data) != count:
        raise BadTile(f"the file ends {count - len(data):,} bytes too early")
    return data
