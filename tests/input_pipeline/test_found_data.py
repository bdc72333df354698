"""Data as people have it: what lies there, and what is made of it."""

import csv
import io
import json
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_records import data_config, jpeg, write_tar

from input_pipeline.image_formats import FORMATS
from input_pipeline.open_data import make_sources
from input_pipeline.sources import FolderSource, Mixture, SubsetSource, TableSource, WebDatasetSource, make_source
from input_pipeline.sources.guess import guess_kind
from input_pipeline.sources.unread import describe_unread, remarks
from input_pipeline.transforms import decode_image


def captions(source) -> list[tuple[str, ...]]:
    return [source[i]["captions"] for i in range(len(source))]


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


# Folders


def test_pictures_of_every_suffix_are_read_and_the_rest_is_counted_by_suffix(tmp_path):
    picture = jpeg(0)
    names = ["0.jpg", "1.jfif", "2.jpe", "3.JPEG", "4.TIF", "5.avif", "6.jp2", "7.ppm"]
    others = ["a.pdf", "b.PDF", "c.xmp", "README", ".DS_Store", "@eaDir/0.jpg", "__MACOSX/._0.jpg", "0.heic"]
    source = make_source("folder", str(put(tmp_path, dict.fromkeys([*names, *others], picture))))
    assert [source[i]["id"] for i in range(len(source))][:8] == sorted(names)
    unread = source.unread
    for kind, count in {".pdf": 2, ".xmp": 1, "without a suffix": 1, "hidden": 1, "@eaDir/": 1, "__MACOSX/": 1}.items():
        assert unread[kind] == count
    (line,) = remarks(SubsetSource(source, 0, 2))
    assert line.startswith("not read: 2 .pdf, 1 .")
    if "HEIF" not in FORMATS:
        assert "1 .heic (pip install 'jax-clip[heic]' for them)" in line
    assert Mixture({"photos": source}).unread[".pdf beside photos"] == 2


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "PPM", "JPEG"])
def test_each_format_decodes(form):
    if form not in FORMATS:
        pytest.skip(f"Pillow was built without {form}")
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(buffer, form)
    assert decode_image(buffer.getvalue()).getpixel((8, 8))[0] > 150


def test_captions_of_any_case_and_unicode_form(tmp_path):
    composed, split = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    files = {"0.JPG": jpeg(0), "0.TXT": "a cat", f"{split}.jpg": jpeg(1), f"{composed}.txt": "a café"}
    files |= {"b.png": jpeg(2), "b.txt": "this", "b.TXT": "not this", "lost.txt": "no picture"}
    source = FolderSource(str(put(tmp_path, files)))
    found = {source[i]["id"]: source.captions(i) for i in range(len(source))}
    assert found == {"0.JPG": ("a cat",), f"{split}.jpg": ("a café",), "b.png": ("this",)}
    assert source.unread == {".txt": 2}


def test_a_table_in_a_folder_without_captions_is_named(tmp_path):
    put(tmp_path, {"0.jpg": jpeg(0), "captions.csv": "image,caption\n0.jpg,a\n"})
    source = FolderSource(str(tmp_path))
    assert "captions.csv lies there: if it holds them, read it as source=table" in remarks(source)[0]
    assert source.unread == {".csv": 1}
    with pytest.raises(ValueError, match=r"data.path=.*no picture has captions beside it: .*captions.csv lies there"):
        make_sources(data_config(source="folder", path=str(tmp_path)), image_size=8)
    put(tmp_path, {"0.txt": "a"})
    assert FolderSource(str(tmp_path)).notes == []


def test_links_are_followed_below_the_allowed_root_alone_and_never_in_circles(tmp_path):
    put(tmp_path, {"store/dogs/0.jpg": jpeg(0), "data/cat/0.jpg": jpeg(1), "else/x.jpg": jpeg(2)})
    data = tmp_path / "data"
    (data / "dog").symlink_to("../store/dogs")
    (tmp_path / "store" / "dogs" / "round").symlink_to(data)
    source = FolderSource(str(data))
    assert (len(source), [name for name, _ in source.broken]) == (1, ["dog"])
    source = FolderSource(str(data), link_root=str(tmp_path / "store"))
    assert [source[i]["id"] for i in range(len(source))] == ["cat/0.jpg", "dog/0.jpg"]
    assert source.broken == [("dog/round", "a link to a folder that goes round in circles")]
    (data / "far").symlink_to("../else")
    assert "leads out of" in dict(FolderSource(str(data), link_root=str(tmp_path / "store")).broken)["far"]
    with pytest.raises(ValueError, match=r"link_root=.*nowhere is no folder"):
        FolderSource(str(data), link_root=str(tmp_path / "nowhere"))


def test_classes_are_folders_with_pictures_and_none_is_lost(tmp_path):
    files = {"cat/0.jpg": jpeg(0), "fox/0.jpg": jpeg(1), "__MACOSX/0.jpg": jpeg(2), "notes/a.md": "text"}
    put(tmp_path / "a", files)
    source = FolderSource(str(tmp_path / "a"), class_folders=True)
    assert (source.class_names, len(source)) == (("cat", "fox"), 2)
    assert source.notes == ["the folder notes holds no picture, so it is no class"]
    put(tmp_path / "store", {"dogs/0.jpg": jpeg(3)})
    link = tmp_path / "a" / "dog"
    link.symlink_to("../store/dogs")
    with pytest.raises(ValueError, match=r"the class folder .*dog is a link to a folder: --link_root=DIR"):
        FolderSource(str(tmp_path / "a"), class_folders=True)
    allowed = FolderSource(str(tmp_path / "a"), class_folders=True, link_root=str(tmp_path / "store"))
    assert allowed.class_names == ("cat", "dog", "fox")
    link.unlink()
    link.symlink_to("nowhere")
    with pytest.raises(ValueError, match="dog is a link to nowhere, which does not exist"):
        FolderSource(str(tmp_path / "a"), class_folders=True)
    link.unlink()
    link.write_text("../store/dogs")
    with pytest.raises(ValueError, match=r"dog is a link to ../store/dogs that was stored as text"):
        FolderSource(str(tmp_path / "a"), class_folders=True)
    link.unlink()
    put(tmp_path / "a", {"owl/0.heic": "x"})
    if "HEIF" not in FORMATS:
        with pytest.raises(ValueError, match=r"no picture of the class folder .*owl can be used: 1 .heic \(pip"):
            FolderSource(str(tmp_path / "a"), class_folders=True)


# Tables


@pytest.fixture
def folder(tmp_path) -> Path:
    return put(tmp_path, {f"img/{i}.jpg": jpeg(i) for i in range(6)})


def table(folder: Path, text: str | bytes, name: str = "t.csv", **settings) -> TableSource:
    put(folder, {name: text})
    return TableSource(str(folder / name), **settings)


ROWS = "img/0.jpg,a cat\nimg/1.jpg,a dog\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("T.CSV", "image,caption\n" + ROWS),
        ("t.tsv", "image\tcaption\n" + ROWS.replace(",", "\t")),
        ("t.csv", "image;caption\n" + ROWS.replace(",", ";")),
        ("t.txt", "filepath\ttitle\n" + ROWS.replace(",", "\t")),
        ("t.csv", "Image, Caption \n" + ROWS),
        ("t.csv", "file_name,text\r\n" + ROWS.replace("\n", "\r\n")),
        ("t.csv", "\ufeffimage,caption\n" + ROWS),
        ("t.csv", "sep=;\nimage;caption\n" + ROWS.replace(",", ";")),
        ("t.csv", ("image,caption\n" + ROWS).encode("utf-16")),
        ("t.parquet", "image,caption\n" + ROWS),  # the content says what it is
    ],
)
def test_a_text_table_is_read_by_its_content(folder, name, text):
    source = table(folder, text, name)
    assert captions(source) == [("a cat",), ("a dog",)]
    assert source.broken == []


def test_columns_and_separator_that_are_named(folder):
    text = "where#image#about\nimg/0.jpg#9#a cat\n"
    source = table(folder, text, captions_field="about", image_field="where", separator="#")
    assert captions(source) == [("a cat",)]
    with pytest.raises(ValueError, match=r"needs where and one of about, label; its columns are where#image#about"):
        table(folder, text, captions_field="about", image_field="where")
    with pytest.raises(ValueError, match=r"separator='ab' must be one character, or one of tab, "):
        table(folder, text, separator="ab")
    config = data_config(source="table", path=str(folder / "t.csv"), num_validation=1, image_field="where")
    put(folder, {"t.csv": "where\tcaption\nimg/0.jpg\ta\nimg/1.jpg\tb\n"})
    assert [len(part) for part in make_sources(config, image_size=8)] == [1, 1]
    with pytest.raises(ValueError, match="separator=';' is for a table, not for folder"):
        make_source("folder", str(folder), separator=";")


STRAY = (
    'img/0.jpg,a cat\nimg/1.jpg,"15 inch tyre\nimg/2.jpg,a dog\nimg/3.jpg,a fox\nimg/4.jpg,says "hi"\nimg/5.jpg,hen\n'
)


def test_a_stray_quote_swallows_no_row(folder):
    source = table(folder, "image,caption\n" + STRAY)
    assert captions(source)[1:5] == [('"15 inch tyre',), ("a dog",), ("a fox",), ('says "hi"',)]
    assert (len(source), source.broken) == (6, [])
    assert "the quote opened on line 3 is closed within text" in source.notes[0]
    closed = 'img/0.jpg,"a 15"\nimg/1.jpg,"a\nimg/2.jpg,b\nimg/3.jpg,c"\nimg/4.jpg,d\n'  # by a quote at a line's end
    source = table(folder, "image,caption\n" + closed)
    assert captions(source) == [("a 15",), ('"a',), ("b",), ('c"',), ("d",)]
    assert "line 3 swallows 2 lines that read as rows" in source.notes[0]
    never = 'img/0.jpg,"a, b"\nimg/1.jpg,"open, as it is\nimg/2.jpg,c\n'
    with pytest.raises(ValueError, match=r"t.csv .*the quote opened on line 3 is not closed: write a quote within"):
        table(folder, "image,caption\n" + never)
    whole = 'img/0.jpg,"two\nlines, and ""quotes"""\nimg/1.jpg,b\n'
    assert captions(table(folder, "image,caption\n" + whole)) == [('two\nlines, and "quotes"',), ("b",)]


def test_encodings_that_cannot_be_read_are_named_with_file_and_line(folder):
    source = table(folder, b"image,caption,other\nimg/0.jpg,caf\xe9,x\nimg/1.jpg,a,\xff\n")
    assert source.broken == [("t.csv, line 2", "text is not valid UTF-8")]
    assert captions(source) == [("a",)]
    for data, message in {
        ("image,caption\n" + ROWS).encode("utf-16-le"): "zero bytes, as UTF-16 without a byte order mark",
        b"\xff\xfe" + b"i\0\0\xdc": "byte order mark says UTF-16, which byte",
        b"\x1f\x8b\x08": "packed as gzip: unpack it",
        b"PK\x03\x04": "a zip archive, or a spreadsheet",
        b'{"image": "0.jpg"}\n': "it is JSON: write a CSV or Parquet",
        b"": "the file is empty",
    }.items():
        with pytest.raises(ValueError, match=rf"t.csv is not a readable CSV or Parquet file: .*{message}"):
            table(folder, data)


def test_long_captions_and_columns_that_occur_twice(folder):
    long = "x" * (3 * 2**20)
    assert captions(table(folder, f'image,caption\nimg/0.jpg,"{long}"\nimg/1.jpg,b\n')) == [(long,), ("b",)]
    with pytest.raises(ValueError, match=r"t.csv.*column 'caption' occurs twice"):
        table(folder, "image,caption,caption\nimg/0.jpg,a,b\n")
    assert len(table(folder, "image,caption,x,x\nimg/0.jpg,a,b,c\n")) == 1
    twice = pa.table([pa.array(["img/0.jpg"]), pa.array(["a"]), pa.array(["b"])], names=["image", "caption", "caption"])
    pq.write_table(twice, folder / "t.parquet")
    with pytest.raises(ValueError, match="column 'caption' occurs twice"):
        TableSource(str(folder / "t.parquet"))


def test_paths_of_a_table_stay_below_its_folder_unless_allowed(tmp_path):
    put(tmp_path, {"out/x.jpg": jpeg(0), "t/a.jpg": jpeg(1), "t/in/b.jpg": jpeg(2)})
    (tmp_path / "t" / "link.jpg").symlink_to(tmp_path / "out" / "x.jpg")
    names = ["a.jpg", "in/../in/b.jpg", "../out/x.jpg", str(tmp_path / "out" / "x.jpg"), "link.jpg"]
    text = "image,caption\n" + "".join(f"{name},c\n" for name in names)
    source = table(tmp_path / "t", text)
    assert (len(source), len(source.broken)) == (2, 3)
    assert "'../out/x.jpg' leads out of the folder of the table: --link_root=DIR" in source.broken[0][1]
    assert "is a link that leads out" in source.broken[2][1]
    allowed = table(tmp_path / "t", text, link_root=str(tmp_path / "out"))
    assert (len(allowed), allowed.broken, allowed[2]["image"]) == (5, [], jpeg(0))


def write_parquet(folder: Path, columns: dict, metadata: dict | None = None) -> TableSource:
    written = pa.table(columns)
    pq.write_table(written.replace_schema_metadata(metadata), folder / "t.parquet")
    return TableSource(str(folder / "t.parquet"))


def test_pictures_as_the_hub_stores_them(folder):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = [
        {"bytes": jpeg(0), "path": "x.jpg"},
        {"bytes": None, "path": "img/1.jpg"},
        {"bytes": None, "path": None},
    ]
    columns = {"image": pa.array(pictures, struct), "label": pa.array([1, 0, 1])}
    features = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}
    source = write_parquet(folder, columns, {"huggingface": json.dumps({"info": {"features": features}})})
    assert (source.class_names, source[0]["image"], source[1]["image"]) == (("ant", "bee"), jpeg(0), jpeg(1))
    assert [source[i]["path"] for i in range(2)] == ["x.jpg", "img/1.jpg"]
    with pytest.raises(ValueError, match="empty image"):
        source[2]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.binary()),
    ],
)
def test_lists_of_captions_of_every_kind(folder, kind):
    columns = {"image": [jpeg(0), jpeg(1)], "captions": pa.array([["a", "b"], ["c", "d"]], kind)}
    assert captions(write_parquet(folder, columns)) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (pa.array([2, 1, None]), [2, 1], None),
        (pa.array([2.0, 1.0, float("nan")]), [2, 1], None),
        (pa.array([True, False, None]), [1, 0], ("False", "True")),
        (pa.array(["b", "a", None]), [1, 0], ("a", "b")),
        (pa.array(["b", "a", None]).dictionary_encode(), [1, 0], ("a", "b")),
    ],
)
def test_labels_of_every_kind(folder, labels, expected, names):
    source = write_parquet(folder, {"image": [jpeg(i) for i in range(3)], "label": labels})
    assert ([source[i]["label"] for i in range(len(source))], source.class_names) == (expected, names)
    assert source.broken == [("t.parquet, row 2", "label is missing")]


def test_files_beside_tables_that_no_row_names_are_counted(tmp_path):
    put(tmp_path, {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "t.csv": "image,caption\na.jpg,x\n", "stats.json": "{}"})
    source = TableSource(str(tmp_path))
    assert source.unread == {".jpg": 1, ".json": 1}
    assert TableSource(str(tmp_path / "t.csv")).unread == {}


@pytest.mark.parametrize(("name", "kind"), [("x.CSV", "table"), ("x.tsv", "table"), ("x.TAR", "webdataset")])
def test_the_form_is_guessed_whatever_the_case(tmp_path, name, kind):
    put(tmp_path, {name: "x"})
    assert guess_kind(str(tmp_path)) == guess_kind(str(tmp_path / name)) == kind


# Tars


@pytest.mark.parametrize("content", [b"[1, 2]", b"null", b"{}", b'"a"', b"{", b"", b'{"captions": 3}', b"\xff"])
def test_a_json_without_captions_does_not_beat_a_text(tmp_path, content):
    members = [("0.jpg", jpeg(0)), ("0.json", content), ("0.txt", b"\xef\xbb\xbfa cat"), ("0.xmp", b"x"), ("1.md", b"")]
    source = WebDatasetSource(str(write_tar(tmp_path / "a.tar", members)))
    assert (captions(source), source.broken) == ([("a cat",)], [])
    assert source.unread[".xmp"] == source.unread[".md"] == 1
    assert source.find_image_size(0) == (13, 11)


def test_json_with_a_byte_order_mark(tmp_path):
    members = [("0.jpg", jpeg(0)), ("0.json", b'\xef\xbb\xbf{"caption": "a", "width": 5, "height": 4}')]
    source = WebDatasetSource(str(write_tar(tmp_path / "a.tar", members)))
    assert (captions(source), source.find_image_size(0)) == ([("a",)], (5, 4))


def test_labels_in_tars_are_numbers_or_names(tmp_path, monkeypatch):
    numbers = [("0.jpg", jpeg(0)), ("0.cls", b"3\n"), ("1.jfif", jpeg(1)), ("1.cls", b"0"), ("2.jpg", jpeg(2))]
    path = str(write_tar(tmp_path / "a.tar", [*numbers, ("2.txt", b"no label"), ("3.cls", b"1"), ("4.jpg", b"x")]))
    for _ in range(2):  # made, and from the index that is kept
        source = WebDatasetSource(path)
        assert [source[i].get("label") for i in range(3)] == [3, 0, None]
        assert (captions(source), source.class_names) == ([(), (), ("no label",)], None)
        assert source.broken == [
            ("a/3", "label without image"),
            ("a/4", "image without caption: no .txt and no .json"),
        ]
    named = [("0.jpg", jpeg(0)), ("0.cls", b"fox"), ("1.jpg", jpeg(1)), ("1.cls", b"cat")]
    source = WebDatasetSource(str(write_tar(tmp_path / "b.tar", named)))
    assert (source.class_names, [source[i]["label"] for i in range(2)]) == (("cat", "fox"), [1, 0])


def test_pictures_without_captions_are_read_where_none_are_needed(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1)), ("1.txt", b"\xff")])
    put(tmp_path, {"0.jpg": jpeg(0), "t.csv": "image\n0.jpg\n\n"})
    for kind, path, count in (("webdataset", tar, 2), ("table", tmp_path / "t.csv", 1)):
        source = make_source(kind, str(path), require_captions=False)
        assert [source[i]["captions"] for i in range(len(source))] == [()] * count
        with pytest.raises(ValueError, match=r"no usable record|needs image and one of"):
            make_source(kind, str(path))


def test_unread_kinds_are_listed_by_number_and_cut():
    counts = {f".{i:02d}": i for i in range(1, 12)}
    assert describe_unread(Counter(counts)).startswith("11 .11, 10 .10, 9 .09")
    assert describe_unread(Counter(counts)).endswith("4 .04 and 3 other kinds")


def test_a_csv_parsed_as_the_library_writes_it(folder, tmp_path):
    texts = ['a "quoted" word', "one, two", "line\nbreak", "plain", "'single'", "tab\there"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([("image", "caption"), *((f"img/{i}.jpg", text) for i, text in enumerate(texts))])
    assert captions(table(folder, buffer.getvalue())) == [(text,) for text in texts]
