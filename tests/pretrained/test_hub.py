"""The Hub by a small one on this machine: what is fetched, and what is said of repositories that cannot be read."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
from safetensors.numpy import load_file

from clip_jax.pretrained import load_pretrained
from clip_jax.pretrained.files import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories as {name: {file: bytes}} over the Hub's protocol; a file in `cut` breaks off in its middle."""

    def __init__(self):
        self.repos, self.cut, self.served = {}, set(), []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, *, whole, headers=(), status=200):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body, status = body[start:], 206 if start else status
        self.send_response(status)
        for name, value in {
            "Connection": "close",
            "Content-Length": len(body),
            "X-Repo-Commit": COMMIT,
            **dict(headers),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if whole else body[: len(body) // 2])
        self.close_connection = True

    def do_GET(self):
        kind, *words = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(words[1:3] if kind == "api" else [kind, words[0]])
        files = self.server.repos.get(name)
        if files is None:
            missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self.answer(b"{}", whole=True, headers=missing, status=404)
        elif kind == "api" and "tree" in words:
            tree = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in files.items()]
            self.answer(json.dumps(tree).encode(), whole=True, headers={"Content-Type": "application/json"})
        elif kind == "api":
            siblings = [{"rfilename": file} for file in files]
            info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self.answer(json.dumps(info).encode(), whole=True, headers={"Content-Type": "application/json"})
        elif words[-1] in files:
            self.server.served.append((self.command, words[-1]))
            self.answer(files[words[-1]], whole=words[-1] not in self.server.cut, headers={"ETag": f'"{words[-1]}"'})
        else:
            self.answer(b"", whole=True, headers={"X-Error-Code": "EntryNotFound"}, status=404)

    do_HEAD = do_GET  # noqa: N815, the names are the base class's


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    constants = huggingface_hub.constants  # read from the environment, HF_ENDPOINT, when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refusal(name):
    with pytest.raises(ValueError) as error:  # noqa: PT011, each caller compares the message
        load_pretrained(name)
    return str(error.value)


def test_weights_and_what_lies_beside_them_are_fetched_and_no_more(hub, goldens):
    given = {name: data for name, data in files_of(goldens / "hf_clip").items() if name.endswith(("json", "tensors"))}
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7], "size": 32}
    given["processor_config.json"] = json.dumps({"image_processor": images}).encode()
    hub.repos["someone/clip"] = given | {"pytorch_model.bin": b"pickle", "README.md": b"#"}
    config = load_pretrained("someone/clip").config
    assert (config.image_mean, config.image_std) == ((0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    assert {name for _, name in hub.served} == set(given)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"pytorch_model.bin": b"pickle", "config.json": b"{}"},
            "the repository a/b has its weights as pickles only (pytorch_model.bin), which can run any code when they "
            "are opened, so clip_jax does not read them. If you trust them, `hf download a/b pytorch_model.bin`, and",
        ),
        (
            {"open_clip_pytorch_model.bin": b"pickle", "open_clip_config.json": b"{}"},
            "the repository a/b has its weights as pickles only (open_clip_pytorch_model.bin), which can run any code",
        ),
        (
            {"README.md": b"#", "flax_model.msgpack": b""},
            "the repository a/b has no open_clip_model.safetensors or model.safetensors: it holds README.md, flax_mod",
        ),
        ({}, "the repository a/b has no open_clip_model.safetensors or model.safetensors: it holds nothing"),
        (None, "cannot get a/b from the Hugging Face Hub, and it is not in the local cache: "),
    ],
)
def test_repositories_without_weights_that_can_be_read(hub, files, reason):
    if files is not None:
        hub.repos["a/b"] = files
    assert f"As a Hub repository: {reason}" in refusal("a/b")
    assert not [name for _, name in hub.served if name.endswith(".bin")]


def test_a_download_that_breaks_off_leaves_no_weights(hub, goldens, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its own tries
    hub.repos["someone/clip"] = files_of(goldens / "hf_clip")
    hub.cut.add("model.safetensors")
    assert "cannot get someone/clip from the Hugging Face Hub, and it is not in the local cache: " in refusal(
        "someone/clip"
    )
    hub.cut.clear()
    folder = download("someone/clip")
    assert load_file(folder / "model.safetensors").keys() == load_file(goldens / "hf_clip/model.safetensors").keys()
