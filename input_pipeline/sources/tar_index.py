"""The records of a WebDataset tar: offsets of their images and captions, found once and kept in a file."""

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.sources import opener
from input_pipeline.sources.base import NO_CAPTION, clean_captions, parse_json
from input_pipeline.sources.index_file import load_index, save_index
from input_pipeline.sources.remote import UnreachableError, is_remote
from input_pipeline.storage import digest

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")
DOTTED = "a dot in the key, which ends at the first one: write another character for it"
MAX_CAPTION_BYTES = 2**20  # of one .txt or .json; more is no caption
INDEX_VERSION = 2  # of the file and of the rules by which records are found
# Suffix -> offset, size, and of captions why they cannot be used, or "".
Members = dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class TarIndex:
    """What a tar holds.

    rows: int64 [n, 5], image offset and size, captions offset and size, whether the captions are JSON. keys: of the
    records. broken: (what follows the tar's stem in the id of a member, the tar or a record, reason).
    """

    rows: np.ndarray
    keys: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]


def open_index(path: str, captions_field: str = "", state: list[int | str] | None = None) -> TarIndex:
    """The index of a tar: the one kept of it, if it is of the tar as it is now, or else a new one, which is kept.

    It is kept beside the tar as .NAME.index.npz, or in `opener.cache_folder` where nothing can be written there. Its
    file holds the tar's size and time of writing, so an index of another or an older tar is made again, and so is a
    damaged one. Several processes may do so at once.

    state: `opener.file_state` of the tar, where it is known.
    """
    state = state or opener.file_state(path)
    fingerprint = {"version": INDEX_VERSION, "state": state, "captions_field": captions_field}
    files = _index_files(path, captions_field)
    for file in files:
        if (index := _load(file, fingerprint)) is not None:
            return index
    index = make_index(path, captions_field)
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
    return TarIndex(arrays["rows"], keys, tuple((name, reason) for name, reason in found["broken"]))


def _save(file: Path, index: TarIndex, fingerprint: Mapping[str, Any]) -> None:
    keys = "".join(f"{key}\0" for key in index.keys).encode()  # names with zero bytes are refused
    save_index(file, fingerprint, {"broken": index.broken}, rows=index.rows, keys=np.frombuffer(keys, np.uint8))


def make_index(path: str, captions_field: str = "") -> TarIndex:
    """Reads the headers and captions of a tar, in one pass."""
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
    rows, keys = [], []
    for key, members in groups.items():
        try:
            row = _index_record(members, captions_field)
        except ValueError as error:
            broken.append((f"/{key}", str(error)))
        else:
            rows.append(row)
            keys.append(key)
    return TarIndex(np.array(rows, np.int64).reshape(len(rows), 5), tuple(keys), tuple(broken))


@dataclass
class _Scan:
    """What a tar contains.

    groups: key -> its complete members. dotted: of names with a dot in what looks like the key, the part before the
    last dot -> the suffixes. refused: (name, reason) of members. end: where and how the tar ends, if not as it should.
    """

    groups: dict[str, Members] = field(default_factory=dict)
    dotted: dict[str, set[str]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
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
                        continue
                    group = scan.groups.setdefault(key, {})
                    if suffix in group:
                        scan.refused.append((name, "occurs twice in the tar"))
                        continue
                    why = "" if suffix in IMAGE_SUFFIXES else _why_unusable(member, suffix, file, captions_field)
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


def _index_record(members: Members, captions_field: str) -> tuple[int, ...]:
    """Returns image offset and size, captions offset and size, and 1 if those are JSON; ValueError if unusable."""
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        raise ValueError("caption without image")
    if image[1] == 0:
        raise ValueError("empty image")
    wanted = {"": ("json", "txt"), "txt": ("txt",)}.get(captions_field, ("json",))
    sources = [suffix for suffix in wanted if suffix in members]
    if not sources:
        raise ValueError(f"image without caption: {' and '.join(f'no .{suffix}' for suffix in sorted(wanted)[::-1])}")
    for suffix in sources:
        offset, size, why = members[suffix]
        if not why:
            return *image[:2], offset, size, int(suffix == "json")
        if why != NO_CAPTION:
            raise ValueError(why)
    raise ValueError(NO_CAPTION)


def parse_captions(data: bytes, is_json: bool, captions_field: str = "") -> tuple[str, ...]:
    """The captions in a .txt or .json file; empty if there are none, ValueError if they cannot be read."""
    if not is_json:
        return clean_captions(data)
    content = parse_json(data)
    if not isinstance(content, dict):
        raise ValueError(f"the JSON is a {type(content).__name__}, not an object with captions or caption")
    if captions_field:
        return clean_captions(content.get(captions_field) or ())
    return clean_captions(content.get("captions") or content.get("caption") or ())
