"""DICOMweb for the review page, viewers and other systems (PS3.18).

Retrieval of metadata, stored frames, rendered frames and whole instances. Who must not
see identities gets headers from an allow-list and pictures that are black around the
ultrasound regions; stored bytes go to machines only, because names are burned into
them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import hdrs, web
from multidict import MultiDict
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_scp.services.matching import Key, asked_values, matches
from dicom_scp.web.accept import OCTETS, Wanted, wanted
from dicom_scp.web.rendered import (
    JPEG,
    MAX_VIEWPORT,
    MEDIA_TYPES,
    THUMBNAIL,
    Renderer,
    Source,
    Wish,
)
from dicom_scp.web.video import VideoStream
from node.domain.access import Action, Identity
from node.domain.audit import Noted
from node.domain.disclosure import mask_name
from node.domain.errors import ErrorKind, NodeError
from node.http import Failure, identity
from node.imaging import VIDEO, StoredImage
from node.recording import UNKNOWN_ID, Told, safe_id
from node.store import moves, studies

if TYPE_CHECKING:
    from node.store.blobs import BlobReader
    from node.store.database import Transaction
    from node.store.store import Store
    from node.store.studies import StoredInstance

PREFIX: Final = "/dicom-web"
# Compared as a whole by common clients: a charset parameter makes them see nothing.
JSON: Final = "application/dicom+json"
DICOM: Final = "application/dicom"
CHUNK: Final = 1 << 20
MAX_FRAMES_AT_ONCE: Final = 256
REMEMBERED_HEADERS: Final = 128
_UID = re.compile(r"[0-9.]{1,64}")

# Media types of stored streams (PS3.18 8.7.3); what is not here goes as octet-stream.
STREAM_TYPES: Final = {
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    **{f"1.2.840.10008.1.2.4.{n}": JPEG for n in (50, 51, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jls" for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jp2" for n in (90, 91)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jxl" for n in (110, 111, 112)},
    **{f"1.2.840.10008.1.2.4.{n}": "image/jphc" for n in (201, 202, 203)},
}
UNCOMPRESSED: Final = frozenset(
    {
        str(ExplicitVRBigEndian),
        str(ImplicitVRLittleEndian),
        str(ExplicitVRLittleEndian),
        str(DeflatedExplicitVRLittleEndian),
    }
)

# -- what masked callers see of a header: nothing that is not named here ---------------

SHOWN_GROUPS: Final = frozenset({"0018", "0020", "0028"})
SHOWN_TAGS: Final = frozenset(
    {
        "00080005",  # Specific Character Set
        "00080008",  # Image Type
        "00080016",  # SOP Class UID
        "00080018",  # SOP Instance UID
        "00080020",  # Study Date
        "00080021",  # Series Date
        "00080023",  # Content Date
        "0008002A",  # Acquisition DateTime
        "00080030",  # Study Time
        "00080031",  # Series Time
        "00080033",  # Content Time
        "00080060",  # Modality
        "00080070",  # Manufacturer
        "00081030",  # Study Description
        "0008103E",  # Series Description
        "00081090",  # Manufacturer's Model Name
        "00082144",  # Recommended Display Frame Rate
        "00082218",  # Anatomic Region Sequence
        "00083002",  # Available Transfer Syntax UID
        "00100040",  # Patient's Sex
        "00101010",  # Patient's Age
    }
)
# Even in the groups above a person or free text may identify her.
HIDDEN_VR: Final = frozenset({"PN", "LT", "ST", "UT", "UN"})
HIDDEN_TAGS: Final = frozenset({"00181000", "00200010"})  # device serial, Study ID
PATIENT_NAME: Final = "00100010"
PIXEL_DATA: Final = "7FE00010"

Attributes = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def masked_header(header: Attributes) -> Attributes:
    """Return what a caller may see to whom identities are masked."""
    shown = {tag: e for tag, e in header.items() if _is_shown(tag, e)}
    groups = (header.get(PATIENT_NAME, {}).get("Value") or [{}])[0]
    parts = [groups.get(n, "") for n in ("Alphabetic", "Ideographic", "Phonetic")]
    name = mask_name("=".join(parts))
    shown[PATIENT_NAME] = {"vr": "PN", "Value": [{"Alphabetic": name}]}
    return dict(sorted(shown.items()))


def _is_shown(tag: str, element: Attributes) -> bool:
    if int(tag[3], 16) % 2 or element.get("vr") in HIDDEN_VR or tag in HIDDEN_TAGS:
        return False
    return tag[:4] in SHOWN_GROUPS or tag in SHOWN_TAGS


def render_error(failure: Failure) -> web.Response:
    """Return a failure as JSON; what cannot be shown is 406 here (PS3.18 8.7.8)."""
    status = 406 if failure.kind is ErrorKind.UNSUPPORTED else failure.status
    body = {"error": failure.message, "request_id": failure.request_id}
    return web.json_response(body, status=status)


def describe(request: web.Request, status: int, _: Noted) -> Told:
    """Return what a request is called in the audit trail: verb, level and UID."""
    resource, path = request.match_info.route.resource, request.match_info
    if resource is None:
        return Told("dicom-web unmatched", UNKNOWN_ID)
    last = resource.canonical.rpartition("/")[2]
    verb = {"series": "search", "instances": "search", PIXEL_DATA: "video"}.get(last)
    if last.startswith("{"):
        verb = "frames" if "frames" in last else "retrieve"
    level = next(key for key in reversed(_LEVELS) if key in path)
    return Told(
        f"dicom-web {verb or last}",
        f"{level}/{safe_id(path[level], status)}",
        {"study_instance_uid": safe_id(path["study"], status)},
    )


def routes(
    store: Store, *, renderer: Renderer | None = None, base_url: str = ""
) -> list[web.AbstractRouteDef]:
    """Return the routes below /dicom-web; `base_url` is what bulk data is named by."""
    handlers = _Handlers(store, renderer or Renderer(), base_url)
    study = f"{PREFIX}/studies/{{study}}"
    series = f"{study}/series/{{series}}"
    instance = f"{series}/instances/{{instance}}"
    frame = f"{instance}/frames/{{frames}}"
    table: list[tuple[str, Handler]] = [
        (f"{study}/metadata", handlers.metadata),
        (f"{series}/metadata", handlers.metadata),
        (f"{instance}/metadata", handlers.metadata),
        (f"{study}/series", handlers.search_series),
        (f"{study}/instances", handlers.search_instances),
        (f"{series}/instances", handlers.search_instances),
        (instance, handlers.retrieve),
        (f"{instance}/bulkdata/{PIXEL_DATA}", handlers.video),
        (frame, handlers.frames),
        (f"{frame}/rendered", handlers.rendered),
        (f"{instance}/rendered", handlers.rendered),
        (f"{frame}/thumbnail", handlers.thumbnail),
        (f"{instance}/thumbnail", handlers.thumbnail),
        (f"{series}/thumbnail", handlers.thumbnail),
        (f"{study}/thumbnail", handlers.thumbnail),
    ]
    return [web.get(path, handler) for path, handler in table]


class _Handlers:
    def __init__(self, store: Store, renderer: Renderer, base_url: str) -> None:
        self._store = store
        self._renderer = renderer
        self._base_url = base_url
        self._headers: OrderedDict[str, Dataset] = OrderedDict()

    # -- headers ----------------------------------------------------------------------

    async def metadata(self, request: web.Request) -> web.StreamResponse:
        """Answer headers as DICOM JSON (PS3.18 10.4.1.1.2)."""
        caller = _reader(request)
        _choose(request, [(JSON, ()), ("application/json", ())])
        found = await self._find(request, caller)
        told = [_told(one, caller) for one in found]
        if caller.may(Action.RETRIEVE_INSTANCE):
            for one, header in zip(found, told, strict=True):
                self._name_video(one, header)
        return _json(request, orjson.dumps(told))

    def _name_video(self, instance: StoredInstance, header: Attributes) -> None:
        """Tell where the stream of a video is: no frame of it can be had."""
        if instance.transfer_syntax_uid in VIDEO:
            path = (
                f"{PREFIX}/studies/{instance.study_instance_uid}"
                f"/series/{instance.series_instance_uid}"
                f"/instances/{instance.sop_instance_uid}/bulkdata/{PIXEL_DATA}"
            )
            uri = f"{self._base_url}{path}"
            header[PIXEL_DATA] = {"vr": "OB", "BulkDataURI": uri}

    async def search_series(self, request: web.Request) -> web.StreamResponse:
        """Answer the series of a study (PS3.18 10.6, minimal)."""
        caller = _reader(request)
        query = _Query.of(request, {"SeriesInstanceUID", "Modality"})
        found = await self._find(request, caller, missing_ok=True)
        series: dict[str, list[StoredInstance]] = {}
        for one in found:
            series.setdefault(one.series_instance_uid, []).append(one)
        told = []
        for members in series.values():
            header = _told(members[0], caller)
            wanted_tags = (
                "00080005 00080060 0008103E 00100010 0020000D 0020000E 00200011"
            )
            row = {tag: header[tag] for tag in wanted_tags.split() if tag in header}
            row["00201209"] = {"vr": "IS", "Value": [len(members)]}
            told.append(row)
        return query.answer(request, told)

    async def search_instances(self, request: web.Request) -> web.StreamResponse:
        """Answer the instances of a study or series (PS3.18 10.6, minimal)."""
        caller = _reader(request)
        query = _Query.of(
            request, {"SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID"}
        )
        found = await self._find(request, caller, missing_ok=True)
        wanted_tags = (
            "00080005 00080016 00080018 00080060 00083002 0020000D 0020000E"
            " 00200013 00280008 00280010 00280011"
        )
        told = []
        for one in found:
            header = _told(one, caller)
            told.append({t: header[t] for t in wanted_tags.split() if t in header})
        return query.answer(request, told)

    # -- stored bytes -----------------------------------------------------------------

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        """Answer the whole instance, in the syntax it came in (PS3.18 10.4.1.1.1)."""
        caller = _reader(request)
        caller.require(Action.RETRIEVE_INSTANCE)
        (instance,) = await self._find(request, caller)
        syntax = instance.transfer_syntax_uid
        choice = _choose(request, [(DICOM, (syntax,))])
        reader = await self._renderer.run(
            lambda: studies.open_blob(self._store, instance)
        )
        try:
            part = f"{DICOM}; transfer-syntax={syntax}"
            head, tail, content_type = b"", b"", part
            if choice.multipart:
                boundary = secrets.token_hex(16)
                content_type = f'multipart/related; type="{DICOM}"; boundary={boundary}'
                head = f"--{boundary}\r\nContent-Type: {part}\r\n\r\n".encode()
                tail = f"\r\n--{boundary}--\r\n".encode()
            response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: content_type})
            response.content_length = len(head) + instance.size + len(tail)
            await response.prepare(request)
            await response.write(head)
            for at in range(0, instance.size, CHUNK):
                chunk = await self._renderer.run(partial(reader.read, at, CHUNK))
                await response.write(chunk)
            await response.write(tail)
        finally:
            reader.close()
        await response.write_eof()
        return response

    async def video(self, request: web.Request) -> web.StreamResponse:
        """Answer a video as stored, a range of it if asked (PS3.18 10.4.1.1.5)."""
        caller = _reader(request)
        caller.require(Action.RETRIEVE_INSTANCE)
        (instance,) = await self._find(request, caller)
        return await self._stream(request, instance)

    async def _stream(
        self, request: web.Request, instance: StoredInstance
    ) -> web.StreamResponse:
        syntax = instance.transfer_syntax_uid
        if syntax not in VIDEO:
            raise NodeError("no video; ask for its frames", ErrorKind.NOT_FOUND)
        reader = await self._renderer.run(
            lambda: studies.open_blob(self._store, instance)
        )
        try:
            opened = partial(VideoStream.open, reader, syntax)
            stream = await self._renderer.run(opened)
            choice = _choose(request, [(stream.media_type, (syntax,)), (OCTETS, ())])
            asked = ",".join(request.headers.getall(hdrs.ACCEPT, []))
            told = f"{choice.media_type}; transfer-syntax={syntax}"
            if "multipart/" in asked:
                return await self._multipart(request, reader, stream, told)
            return await self._ranged(request, reader, stream, told)
        finally:
            reader.close()

    async def _multipart(
        self, request: web.Request, reader: BlobReader, stream: VideoStream, told: str
    ) -> web.StreamResponse:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: {told}\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        kind = told.partition(";")[0]
        response = web.StreamResponse()
        response.headers[hdrs.CONTENT_TYPE] = (
            f'multipart/related; type="{kind}"; boundary={boundary}'
        )
        response.content_length = len(head) + stream.size + len(tail)
        await response.prepare(request)
        await response.write(head)
        await self._send(response, reader, stream, 0, stream.size)
        await response.write(tail)
        await response.write_eof()
        return response

    async def _ranged(
        self, request: web.Request, reader: BlobReader, stream: VideoStream, told: str
    ) -> web.StreamResponse:
        start, stop = _range(request, stream.size)
        response = web.StreamResponse(
            status=200 if hdrs.RANGE not in request.headers else 206,
            headers={hdrs.CONTENT_TYPE: told, hdrs.ACCEPT_RANGES: "bytes"},
        )
        if response.status == 206:
            where = f"bytes {start}-{stop - 1}/{stream.size}"
            response.headers[hdrs.CONTENT_RANGE] = where
        response.content_length = stop - start
        await response.prepare(request)
        await self._send(response, reader, stream, start, stop)
        await response.write_eof()
        return response

    async def _send(
        self,
        response: web.StreamResponse,
        reader: BlobReader,
        stream: VideoStream,
        start: int,
        stop: int,
    ) -> None:
        for at, length in stream.pieces(start, stop):
            await response.write(
                await self._renderer.run(partial(reader.read, at, length))
            )

    async def frames(self, request: web.Request) -> web.StreamResponse:
        """Answer frames as stored, one part each (PS3.18 10.4.1.1.6)."""
        caller = _reader(request)
        caller.require(Action.RETRIEVE_INSTANCE)
        (instance,) = await self._find(request, caller)
        numbers = _frame_numbers(request, instance)
        syntax = instance.transfer_syntax_uid
        offers = [(OCTETS, (str(ExplicitVRLittleEndian),))]
        if syntax not in UNCOMPRESSED:
            offers = [
                (STREAM_TYPES.get(syntax, OCTETS), (syntax,)),
                (OCTETS, (syntax,)),
            ]
        choice = _choose(request, offers)
        if not choice.multipart and len(numbers) > 1:
            raise web.HTTPNotAcceptable
        tag = _etag(instance, "frames", *map(str, numbers), choice.media_type)
        if _unchanged(request, tag):
            return _not_modified(tag)
        source = self._source(instance)
        parts = await self._renderer.run(lambda: _stored_frames(source, numbers))
        told = f"{choice.media_type}; transfer-syntax={choice.transfer_syntax}"
        return _parts(parts, told, choice, tag)

    # -- pictures ---------------------------------------------------------------------

    async def rendered(self, request: web.Request) -> web.StreamResponse:
        """Answer a frame as a picture for a browser (PS3.18 10.4.1.1.3)."""
        caller = _reader(request)
        (instance,) = await self._find(request, caller)
        video = instance.transfer_syntax_uid in VIDEO
        whole = "frames" not in request.match_info
        if video and whole and caller.may(Action.RETRIEVE_INSTANCE):
            return await self._stream(request, instance)
        (number,) = _frame_numbers(request, instance, many=False)
        wish = Wish(
            frame=number - 1,
            masked=not caller.sees_identity,
            media_types=_picture_types(request),
            viewport=_viewport(request),
        )
        return await self._picture(request, instance, wish)

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        """Answer a small picture of whatever the path names (PS3.18 10.4.1.1.4)."""
        caller = _reader(request)
        found = await self._find(request, caller)
        instance = next((one for one in found if one.frame_table), None)
        if instance is None:
            raise NodeError("there is no picture", ErrorKind.NOT_FOUND)
        (number,) = _frame_numbers(request, instance, many=False)
        wish = Wish(
            frame=number - 1,
            masked=not caller.sees_identity,
            media_types=_picture_types(request)[-1:],
            viewport=_viewport(request) or THUMBNAIL,
        )
        return await self._picture(request, instance, wish)

    async def _picture(
        self, request: web.Request, instance: StoredInstance, wish: Wish
    ) -> web.StreamResponse:
        source = self._source(instance)
        tag = wish.etag(source)
        if _unchanged(request, tag):
            return _not_modified(tag)
        picture = await self._renderer.picture(source, wish)
        return web.Response(
            body=picture.content,
            content_type=picture.media_type,
            headers={hdrs.ETAG: tag},
        )

    # -- finding ----------------------------------------------------------------------

    async def _find(
        self,
        request: web.Request,
        caller: Identity,
        *,
        missing_ok: bool = False,
    ) -> list[StoredInstance]:
        """Return the instances that the path names; NOT_FOUND when there are none.

        GONE for a study of the wrong patient: her name stands beside these images.
        """
        path = request.match_info
        if any(_UID.fullmatch(path[key]) is None for key in _LEVELS if key in path):
            raise NodeError("that is not a UID", ErrorKind.INVALID)
        async with self._store.db.transaction() as tx:
            if "instance" in path:
                one = await studies.instance(tx, self._store, path["instance"])
                found = [one] if one is not None else []
            else:
                found = await studies.instances_of(tx, self._store, path["study"])
            found = [one for one in found if _belongs(one, path)]
            if found:
                await _require_standing(tx, self._store, found[0].study_instance_uid)
        if not found and not missing_ok:
            raise NodeError("nothing is stored under these UIDs", ErrorKind.NOT_FOUND)
        return found

    def _source(self, instance: StoredInstance) -> Source:
        revision = instance.sha256.hex()[:32]
        key = f"{instance.sop_instance_uid} {revision}"
        header = self._headers.get(key)
        if header is None:
            header = Dataset.from_json(instance.metadata.decode())
            self._headers[key] = header
            while len(self._headers) > REMEMBERED_HEADERS:
                self._headers.popitem(last=False)
        return Source(
            sop_instance_uid=instance.sop_instance_uid,
            revision=revision,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            header=header,
            frames=instance.frame_table,
            open=lambda: studies.open_blob(self._store, instance),
        )


_LEVELS: Final = ("study", "series", "instance")


async def _require_standing(
    tx: Transaction, store: Store, study_instance_uid: str
) -> None:
    move = await moves.of_study(tx, store, study_instance_uid)
    if move is not None:
        raise NodeError(
            f"filed under the wrong patient; it is study {move.filed_as} now",
            ErrorKind.GONE,
        )


def _belongs(instance: StoredInstance, path: web.UrlMappingMatchInfo) -> bool:
    told = (
        instance.study_instance_uid,
        instance.series_instance_uid,
        instance.sop_instance_uid,
    )
    pairs = zip(_LEVELS, told, strict=True)
    return all(path.get(level, uid) == uid for level, uid in pairs)


def _reader(request: web.Request) -> Identity:
    caller = identity(request)
    caller.require(Action.READ_IMAGE)
    return caller


def _told(instance: StoredInstance, caller: Identity) -> Attributes:
    header: Attributes = orjson.loads(instance.metadata)
    header["00083002"] = {"vr": "UI", "Value": [instance.transfer_syntax_uid]}
    if caller.sees_identity:
        return dict(sorted(header.items()))
    return masked_header(header)


def _stored_frames(source: Source, numbers: Sequence[int]) -> list[bytes]:
    image = StoredImage(
        source.open(),
        header=source.header,
        frames=source.frames,
        transfer_syntax_uid=source.transfer_syntax_uid,
    )
    frames = [image.stored_frame(number - 1) for number in numbers]
    big_endian = not UID(source.transfer_syntax_uid).is_little_endian
    if big_endian and image.picture.bits_allocated > 8:
        raise NodeError("16 bit samples in big endian", ErrorKind.UNSUPPORTED)
    return frames


# -- requests and answers --------------------------------------------------------------


def _range(request: web.Request, size: int) -> tuple[int, int]:
    """Return the one range that is asked for, or all (RFC 9110 14.2); 416 outside."""
    try:
        start, stop, _ = request.http_range.indices(size)
    except ValueError:
        start, stop = size, size
    if start >= stop:
        raise web.HTTPRequestRangeNotSatisfiable(
            headers={hdrs.CONTENT_RANGE: f"bytes */{size}"}
        )
    return start, stop


def _choose(
    request: web.Request, offers: Sequence[tuple[str, tuple[str, ...]]]
) -> Wanted:
    """Return the first wish of the caller that one of `offers` fulfils, or 406."""
    asked = request.headers.getall(hdrs.ACCEPT, [])
    if "accept" in request.query:
        asked = request.query.getall("accept")
    for wish in wanted(asked):
        for media_type, syntaxes in offers:
            chosen = wish.narrowed(media_type, syntaxes)
            if chosen is not None:
                return chosen
    raise web.HTTPNotAcceptable


def _picture_types(request: web.Request) -> tuple[str, ...]:
    """Return the picture types that the caller takes, in our order."""
    kinds = []
    for kind in MEDIA_TYPES:
        try:
            _choose(request, [(kind, ())])
        except web.HTTPNotAcceptable:
            continue
        kinds.append(kind)
    if not kinds:
        raise web.HTTPNotAcceptable
    return tuple(kinds)


def _frame_numbers(
    request: web.Request, instance: StoredInstance, *, many: bool = True
) -> list[int]:
    """Return the frames of the path, from 1; the first when it names none."""
    told = request.match_info.get("frames", "1")
    try:
        numbers = [int(part) for part in re.split(r"[,\\]|%2C", told)]
    except ValueError:
        raise NodeError("frames are numbers from 1", ErrorKind.INVALID) from None
    if len(numbers) > (MAX_FRAMES_AT_ONCE if many else 1):
        raise NodeError("too many frames at once", ErrorKind.INVALID)
    if any(not 1 <= number <= instance.number_of_frames for number in numbers):
        raise NodeError("there is no such frame", ErrorKind.NOT_FOUND)
    return numbers


def _viewport(request: web.Request) -> tuple[int, int] | None:
    told = request.query.get("viewport")
    if told is None:
        return None
    try:
        width, height = (int(part) for part in told.split(",")[:2])
    except ValueError:
        raise NodeError("viewport is width,height", ErrorKind.INVALID) from None
    if not (0 < width <= MAX_VIEWPORT and 0 < height <= MAX_VIEWPORT):
        raise NodeError("viewport out of range", ErrorKind.INVALID)
    return width, height


@dataclass(frozen=True)
class _Query:
    """The search parameters that are understood; others are refused, not ignored."""

    match: tuple[Key, ...]
    limit: int
    offset: int
    warning: str | None

    @classmethod
    def of(cls, request: web.Request, keys: set[str]) -> _Query:
        _choose(request, [(JSON, ()), ("application/json", ())])
        match: list[Key] = []
        numbers = {"limit": 1000, "offset": 0}
        warning = None
        for key, value in request.query.items():
            if key in keys:
                tag, vr = _TAG_OF[key]
                match.append(Key(tag, vr, tuple(asked_values(value))))
            elif key in numbers:
                if not value.isascii() or not value.isdigit() or len(value) > 9:
                    raise NodeError(f"{key} is not a number", ErrorKind.INVALID)
                numbers[key] = int(value)
            elif key == "fuzzymatching":
                warning = '299 sononode "fuzzy matching is not done"'
            elif key not in ("includefield", "accept"):
                raise NodeError(f"{key[:40]} is no key here", ErrorKind.INVALID)
        return cls(tuple(match), numbers["limit"], numbers["offset"], warning)

    def answer(
        self, request: web.Request, rows: list[Attributes]
    ) -> web.StreamResponse:
        """Return the page that was asked for; 204 when it is empty."""
        kept = [row for row in rows if self._matches(row)]
        page = kept[self.offset : self.offset + self.limit]
        headers = {hdrs.WARNING: self.warning} if self.warning else {}
        if not page:
            return web.Response(status=204, headers=headers)
        response = _json(request, orjson.dumps(page))
        response.headers.update(headers)
        return response

    def _matches(self, row: Attributes) -> bool:
        return all(matches(key, row.get(key.tag)) for key in self.match)


_TAG_OF: Final = {
    "SeriesInstanceUID": ("0020000E", "UI"),
    "SOPInstanceUID": ("00080018", "UI"),
    "SOPClassUID": ("00080016", "UI"),
    "Modality": ("00080060", "CS"),
}


def _etag(instance: StoredInstance, *parts: str) -> str:
    told = "\n".join((instance.sha256.hex(), *parts))
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'


def _unchanged(request: web.Request, tag: str) -> bool:
    asked = request.headers.get(hdrs.IF_NONE_MATCH, "")
    known = {part.strip().removeprefix("W/") for part in asked.split(",")}
    return tag in known or "*" in known


def _not_modified(tag: str) -> web.Response:
    return web.Response(status=304, headers={hdrs.ETAG: tag})


def _json(request: web.Request, body: bytes) -> web.Response:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if _unchanged(request, tag):
        return _not_modified(tag)
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: JSON, hdrs.ETAG: tag})


def _parts(parts: Sequence[bytes], told: str, choice: Wanted, tag: str) -> web.Response:
    """Return one part bare when asked for, else multipart/related (PS3.18 8.6.1.2)."""
    headers: MultiDict[str] = MultiDict({hdrs.ETAG: tag})
    if not choice.multipart:
        headers[hdrs.CONTENT_TYPE] = told
        return web.Response(body=parts[0], headers=headers)
    boundary = secrets.token_hex(16)
    while any(boundary.encode() in part for part in parts):
        boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: {told}\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts)
    headers[hdrs.CONTENT_TYPE] = (
        f'multipart/related; type="{choice.media_type}"; boundary={boundary}'
    )
    return web.Response(body=body + f"--{boundary}--\r\n".encode(), headers=headers)
