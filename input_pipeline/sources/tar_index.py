"""The records of a WebDataset tar: offsets of their images and captions, found once and kept in a file."""

import codecs
import io
import os
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.image_formats import IMAGE_SUFFIXES
from input_pipeline.sources import opener
from input_pipeline.sources.base import NO_CAPTION, clean_captions, decode, parse_json
from input_pipeline.sources.index_file import load_index, save_index
from input_pipeline.sources.remote import UnreachableError, is_remote
from input_pipeline.sources.unread import unread_kind
from input_pipeline.storage import digest

SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", "cls")
DOTTED = "a dot in the key, which ends at the first one: write another character for it"
MAX_CAPTION_BYTES = 2**20  # of one .txt or .json; more is no caption
MAX_LABEL_BYTES = 1000  # of one .cls
INDEX_VERSION = 3  # of the file and of the rules by which records are found
# Suffix -> offset, size, and of captions why they cannot be used, or "".
Members = dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class TarIndex:
    """What a tar holds.

    rows: int64 [n, 5], image offset and size, captions offset and size (0 where there are none), whether the captions
    are JSON. keys: of the records. broken: (what follows the tar's stem in the id of a member, the tar or a record,
    reason). labels: what the .cls of each record says, "" where there is none; empty where no record has one. unread:
    how many members are not read, by suffix.
    """

    rows: np.ndarray
    keys: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    labels: tuple[str, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)


def open_index(
    path: str, captions_field: str = "", state: list[int | str] | None = None, needs_captions: bool = True
) -> TarIndex:
    """The index of a tar: the one kept of it, if it is of the tar as it is now, or else a new one, which is kept.

    It is kept beside the tar as .NAME.index.npz, or in `opener.cache_folder` where nothing can be written there. Its
    file holds the tar's size and time of writing, so an index of another or an older tar is made again, and so is a
    damaged one. Several processes may do so at once.

    state: `opener.file_state` of the tar, where it is known. needs_captions: False keeps records without any.
    """
    state = state or opener.file_state(path)
    fingerprint = {
        "version": INDEX_VERSION,
        "state": state,
        "captions_field": captions_field,
        "needs_captions": needs_captions,
        "suffixes": SUFFIXES,
    }
    files = _index_files(path, captions_field if needs_captions else f"{captions_field}\0 none needed")
    for file in files:
        if (index := _load(file, fingerprint)) is not None:
            return index
    index = make_index(path, captions_field, needs_captions)
    if opener.file_state(path) == state:  # and not of a tar that is still being written
        for file in files:
            try:
                _save(file, index, fingerprint)
            except OSError:  # read-only or full
                continue
            break
    return index


def _index_files(path: str, captions_field: str) -> list[Path]:
    field = f".{digest(captions_field.encode())}" if captions_field else ""
    name = f"{os.path.basename(path)}{field}.index.npz"
    whole = path if is_remote(path) else os.path.abspath(path)
    cached = opener.cache_folder() / "indices" / f"{digest(whole.encode())}.{name}"
    return [cached] if is_remote(path) else [Path(whole).parent / f".{name}", cached]


def _load(file: Path, expected: Mapping[str, Any]) -> TarIndex | None:
    if (loaded := load_index(file, expected)) is None:
        return None
    found, arrays = loaded
    keys = tuple(arrays["keys"].tobytes().decode().split("\0")[:-1])
    if len(keys) != len(arrays["rows"]):
        return None
    broken = tuple((name, reason) for name, reason in found["broken"])
    return TarIndex(arrays["rows"], keys, broken, tuple(found["labels"]), found["unread"])


def _save(file: Path, index: TarIndex, fingerprint: Mapping[str, Any]) -> None:
    keys = "".join(f"{key}\0" for key in index.keys).encode()  # names with zero bytes are refused
    found = {"broken": index.broken, "labels": index.labels, "unread": dict(index.unread)}
    save_index(file, fingerprint, found, rows=index.rows, keys=np.frombuffer(keys, np.uint8))


def make_index(path: str, captions_field: str = "", needs_captions: bool = True) -> TarIndex:
    """Reads the headers and captions of a tar, in one pass. needs_captions: False keeps records without any."""
    scan = _scan_tar(path, captions_field)
    groups, end = scan.groups, scan.end
    suffix = ".tar" if path.endswith(".tar") else ""
    broken = [(f"{suffix}/{member}", reason) for member, reason in scan.refused]
    broken += [(f"/{key}", DOTTED) for key in scan.find_dotted_records()]
    if end:
        broken.append((suffix, end))
        # The last record may have lost members behind the cut: keep it only if it has as many as the first one.
        if groups and len(groups[last := next(reversed(groups))]) < len(next(iter(groups.values()))):
            del groups[last]
    rows, keys, labels = [], [], []
    for key, members in groups.items():
        try:
            row = _index_record(members, captions_field, needs_captions)
        except ValueError as error:
            broken.append((f"/{key}", str(error)))
        else:
            rows.append(row)
            keys.append(key)
            labels.append(scan.labels.get(key, ""))
            scan.unread.update(_unused(members, row, captions_field))
    return TarIndex(
        np.array(rows, np.int64).reshape(len(rows), 5),
        tuple(keys),
        tuple(broken),
        tuple(labels) if any(labels) else (),
        scan.unread,
    )


@dataclass
class _Scan:
    """What a tar contains.

    groups: key -> its complete members. dotted: of names with a dot in what looks like the key, the part before the
    last dot -> the suffixes. refused: (name, reason) of members. labels: key -> text of its .cls. unread: how many
    members are no part of a record, by suffix. end: where and how the tar ends, if not as it should.
    """

    groups: dict[str, Members] = field(default_factory=dict)
    dotted: dict[str, set[str]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    end: str | None = None

    def find_dotted_records(self) -> list[str]:
        """What was meant for the key of a record: an image with captions of that name, or one that is no part of
        another record, as KEY.mask.png beside KEY.jpg is."""
        return [
            name
            for name, suffixes in self.dotted.items()
            if not suffixes.isdisjoint(IMAGE_SUFFIXES)
            and (suffixes & {"txt", "json"} or _split_name(name)[0] not in self.groups)
        ]


def _split_name(name: str) -> tuple[str, str]:
    """The key, up to the first dot after the last slash, and the suffix, in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _scan_tar(path: str, captions_field: str) -> _Scan:
    scan = _Scan()
    size = opener.file_size(path)
    end = 0
    with opener.open_file(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > size:
                        scan.end = f"tar cut off at byte {size}, within {member.name}"
                        return scan
                    end = tar.offset
                    name = member.name.removeprefix("./")
                    if member.isdir():
                        continue
                    if reason := _refusal(member):
                        scan.refused.append((name.encode(errors="replace").decode(), reason))
                        continue
                    key, suffix = _split_name(name)
                    if suffix not in SUFFIXES:
                        start, _, last = name.rpartition(".")
                        hidden = key.rpartition("/")[2] == ""  # as ._KEY.jpg, which macOS adds
                        if "." in suffix and last.lower() in SUFFIXES and not hidden:
                            scan.dotted.setdefault(start, set()).add(last.lower())
                        scan.unread[unread_kind(name.rpartition("/")[2])] += 1
                        continue
                    group = scan.groups.setdefault(key, {})
                    if suffix in group:
                        scan.refused.append((name, "occurs twice in the tar"))
                        continue
                    why = ""
                    if suffix == "cls":
                        scan.labels[key], why = _read_label(member, file)
                    elif suffix not in IMAGE_SUFFIXES:
                        why = _why_unusable(member, suffix, file, captions_field)
                    group[suffix] = (member.offset_data, member.size, why)
                    tar.members = []  # type: ignore[attr-defined]  # or all headers would stay in memory
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two from damaged extended headers
            if isinstance(error, UnreachableError):
                raise
            kind = "tar" if scan.groups else "not an uncompressed tar, or"
            scan.end = f"{kind} cut off at byte {size}: {error}"
            return scan
        file.seek(end)  # tarfile takes a bad header for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            scan.end = f"tar cut off or damaged at byte {end} of {size}"
    return scan


def _refusal(member: tarfile.TarInfo) -> str | None:
    if not member.isreg() or member.issparse():
        return "a link, a sparse or a special file, not a plain one"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "the name leads out of the tar"
    if "\0" in member.name:  # as an extended header may have it
        return "the name holds a zero byte"
    try:
        member.name.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    return None


def _why_unusable(member: tarfile.TarInfo, suffix: str, file: io.BufferedReader, captions_field: str) -> str:
    """Why a .txt or .json gives no caption; empty if it gives one."""
    if member.size > MAX_CAPTION_BYTES:
        return f".{suffix} of {member.size} bytes, at most {MAX_CAPTION_BYTES}"
    file.seek(member.offset_data)
    try:
        return "" if parse_captions(file.read(member.size), suffix == "json", captions_field) else NO_CAPTION
    except UnreachableError:
        raise
    except ValueError as error:
        return str(error)


def _read_label(member: tarfile.TarInfo, file: io.BufferedReader) -> tuple[str, str]:
    """The label that a .cls holds, and why it cannot be used, or ""."""
    if member.size > MAX_LABEL_BYTES:
        return "", f".cls of {member.size} bytes, at most {MAX_LABEL_BYTES}"
    file.seek(member.offset_data)
    try:
        label = decode(file.read(member.size)).strip()
    except ValueError as error:
        return "", str(error)
    return label, "" if label else ".cls without a label"


def _image_suffix(members: Members) -> str | None:
    return next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), None)


def _unused(members: Members, row: tuple[int, ...], captions_field: str) -> list[str]:
    """Kinds of a used record's members that are not read: other pictures, and JSON that should have captions.

    A .txt beside a JSON with captions says the same, as img2dataset writes both.
    """
    unused = [f".{suffix}" for suffix in members if suffix in IMAGE_SUFFIXES and suffix != _image_suffix(members)]
    failed = [s for s in ("json", "txt") if s in members and members[s][0] != row[2] and members[s][2]]
    return unused + [f".{suffix} without captions" for suffix in failed if members[suffix][2] != NO_CAPTION]


def _index_record(members: Members, captions_field: str, needs_captions: bool) -> tuple[int, ...]:
    """Returns image offset and size, captions offset and size, and 1 if those are JSON; ValueError if unusable.

    Captions in a JSON win over the text, but a JSON without any does not: many have something else in it. A record with
    a label needs none.
    """
    suffix_of_image = _image_suffix(members)
    if suffix_of_image is None:
        raise ValueError("caption without image" if {"txt", "json"} & members.keys() else "label without image")
    image = members[suffix_of_image]
    if image[1] == 0:
        raise ValueError("empty image")
    wanted = {"": ("json", "txt"), "txt": ("txt",)}.get(captions_field, ("json",))
    if "cls" in members and members["cls"][2]:
        raise ValueError(members["cls"][2])
    sources = [suffix for suffix in wanted if suffix in members]
    for suffix in sources:
        offset, size, why = members[suffix]
        if not why:
            return *image[:2], offset, size, int(suffix == "json")
    if not needs_captions or ("cls" in members and all(members[suffix][2] == NO_CAPTION for suffix in sources)):
        return *image[:2], 0, 0, 0
    if not sources:
        raise ValueError(f"image without caption: {' and '.join(f'no .{suffix}' for suffix in sorted(wanted)[::-1])}")
    raise ValueError(next((members[s][2] for s in sources if members[s][2] != NO_CAPTION), NO_CAPTION))


def parse_captions(data: bytes, is_json: bool, captions_field: str = "") -> tuple[str, ...]:
    """The captions in a .txt or .json file; empty if there are none, ValueError if they cannot be read."""
    if not is_json:
        return clean_captions(data.removeprefix(codecs.BOM_UTF8))
    content = parse_json(data)
    if not isinstance(content, dict):
        raise ValueError(f"the JSON is a {type(content).__name__}, not an object with captions or caption")
    if captions_field:
        return clean_captions(content.get(captions_field) or ())
    return clean_captions(content.get("captions") or content.get("caption") or ())
