"""The column of photographs that a template learns its subject from."""

from __future__ import annotations

from blueprints import PICTURE
from litegraph import Workflow
from on_embedded import PHOTOGRAPH


def photographs(flow: Workflow, **size: int) -> int:
    """Three photographs with their masks, side by side and gathered; the last node's images and masks are all of them.

    size: width and height, where the node's own are not meant.
    """
    gathered = 0
    for index in range(3):
        if index:
            flow.beside()
        image = flow.add("LoadImage", title=f"Photograph {index + 1}", image=PHOTOGRAPH, room=PICTURE)
        more = {"more_images": (gathered, 0), "more_masks": (gathered, 1)} if index else {}
        gathered = flow.add("DreamVideoSubjectImages", images=(image, 0), masks=(image, 1), room=PICTURE,
                            **size, **more)  # fmt: skip
    return gathered
