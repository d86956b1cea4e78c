"""The functional groups of an enhanced multi-frame object (PS3.3, C.7.6.16): what holds for all frames or for one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset


class FrameGroups:
    """Where the attributes of a frame stand: in its own groups, in those of all frames, or in the header itself.

    A file that is not enhanced has no groups, and every macro of it is its header.

    Args:
        header: of the file.
    """

    def __init__(self, header: "Dataset") -> None:
        self._header = header
        shared = header.get("SharedFunctionalGroupsSequence") or []
        self._shared = shared[0] if shared else None
        self._frames = header.get("PerFrameFunctionalGroupsSequence") or []

    @property
    def enhanced(self) -> bool:
        """Whether there are any groups."""
        return self._shared is not None or bool(self._frames)

    def macro(self, frame: int, name: str) -> "Dataset":
        """The item of sequence ``name`` that holds for the frame, or the header where no group has it."""
        return self.own(frame, name) or self._header

    def own(self, frame: int, name: str) -> "Dataset | None":
        """The same without the header."""
        own = self._frames[frame] if frame < len(self._frames) else None
        for group in (own, self._shared):
            items = group.get(name) if group is not None else None
            if items:
                return items[0]  # type: ignore[no-any-return]
        return None
