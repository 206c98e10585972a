"""Heat-map overlays between the reading and their DICOM object: sealed PNG files.

The reading writes an overlay before it drafts the report that names it; the
writer of DICOM objects reads it. The key is the patient's, so erasing her
erases them.
"""

from typing import TYPE_CHECKING

from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.keys import Sealer
    from node.store.store import Store


def write_overlay(
    store: "Store", sealer: "Sealer", sop_instance_uid: str, png: bytes
) -> None:
    """Keep the overlay of the heat map that will have this UID. Blocks.

    Writing it again replaces it: a retried reading paints the same picture.
    """
    name = overlay_name(sop_instance_uid)
    writer = store.blobs.writer(
        name, key=sealer.blob_key, associated_data=name.encode()
    )
    try:
        writer.write(png)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def read_overlay(
    store: "Store", sealer: "Sealer", sop_instance_uid: str
) -> bytes | None:
    """Return the PNG file of a heat map, or None when nobody painted it. Blocks."""
    name = overlay_name(sop_instance_uid)
    try:
        with store.blobs.reader(
            name, key=sealer.blob_key, associated_data=name.encode()
        ) as reader:
            return reader.read()
    except NodeError as error:
        if error.kind is ErrorKind.NOT_FOUND:
            return None
        raise


def overlay_name(sop_instance_uid: str) -> str:
    """Return the blob name of an overlay."""
    return f"overlay/{sop_instance_uid}"
