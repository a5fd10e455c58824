"""Where the used blocks of an image belong on the disk, and how they are divided into pieces."""

from typing import Any

from ramdisk_agent.device import MIB, Ranges, Target
from ramdisk_agent.work import Failed


class Map:
    """Where the used blocks of an image belong: GET `image.map`. Raises Failed when it does not fit the plan's `image`."""

    def __init__(self, image: dict[str, Any], said: Any) -> None:
        try:
            self.size_mib = int(said["size_mib"])
            self.extents = [(int(first), int(count)) for first, count in said["extents"]]
            self.piece = int(said.get("frame_mib") or 8) * MIB
            self.frames = [int(size) for size in said.get("frames") or []]
        except (KeyError, TypeError, ValueError) as error:
            raise Failed(
                f"the block map {image['map']} cannot be read ({error!r}): add the image again"
            ) from None
        self.used_mib = sum(count for _, count in self.extents)
        end, ordered = 0, True
        for first, count in self.extents:
            ordered, end = ordered and first >= end and count > 0, first + count
        wrong = ""
        if not self.extents or not ordered or end > self.size_mib or self.piece <= 0:
            wrong = "its extents are not in order or end after the image"
        elif self.used_mib != image["used_mib"]:
            wrong = f"it speaks of {self.used_mib} MiB, the plan of {image['used_mib']}"
        elif image["encoding"] == "zstd" and len(self.frames) != -(-self.used_mib * MIB // self.piece):
            wrong = f"it has {len(self.frames)} zstd frames for {self.used_mib} MiB"
        if wrong:
            raise Failed(f"the block map {image['map']} is wrong: {wrong}; add the image again")

    def pieces(self, target: Target) -> list[Ranges]:
        """Where the bytes of each piece belong."""
        found: list[Ranges] = [[]]
        room = self.piece
        for first, count in self.extents:
            offset, left = first * MIB, count * MIB
            while left:
                if not room:
                    found.append([])
                    room = self.piece
                take = min(left, room)
                found[-1] += target.locate(offset, take)
                offset, left, room = offset + take, left - take, room - take
        return found

    def gaps(self) -> list[tuple[int, int]]:
        """(offset, size) in the image where no block is: it must read as zeros."""
        found = []
        at = 0
        for first, count in [*self.extents, (self.size_mib, 0)]:
            if first > at:
                found.append((at * MIB, (first - at) * MIB))
            at = first + count
        return found
