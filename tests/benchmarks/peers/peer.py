"""Runners of other packages' work, each in the interpreter of an environment that has it."""

import subprocess
import time
from pathlib import Path
from typing import Any

from absl import flags

PEER_PYTHON = flags.DEFINE_string("peer_python", None, "Interpreter that has the packages to compare with.")

# Given name, batch size and image size it answers each line with "done", a step later.
OPEN_CLIP_STEP = """
import sys, torch
library = torch.library.Library("torchvision", "DEF")  # torchvision has no CPU build
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
name, batch_size, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = open_clip.create_model(name, force_quick_gelu=True).train()
loss_fn = open_clip.loss.ClipLoss()
decayed = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
images = torch.randn(batch_size, 3, size, size)
text = torch.randint(1, 49405, (batch_size, 77))
text[:, -1] = 49407
for line in sys.stdin:
    optimizer.zero_grad()
    loss_fn(*model(images, text)).backward()
    optimizer.step()
    print("done", flush=True)
"""


# Given a folder of pictures and a size, each line makes it crop all of them once.
OPEN_CLIP_DECODE = """
import io, sys, torch
from pathlib import Path
torch.set_num_threads(1)
library = torch.library.Library("torchvision", "DEF")  # torchvision has no CPU build
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
from PIL import Image
pictures = [file.read_bytes() for file in sorted(Path(sys.argv[1]).iterdir())]
transform = open_clip.transform.image_transform(int(sys.argv[2]), is_train=True)
for line in sys.stdin:
    for picture in pictures:
        transform(Image.open(io.BytesIO(picture)))
    print("done", flush=True)
"""
# The same squares as ours: at least 0.9 of the shorter side.
TF_DATA_DECODE = """
import os, sys
from pathlib import Path
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
pictures = [file.read_bytes() for file in sorted(Path(sys.argv[1]).iterdir())]
size = int(sys.argv[2])
def crop(picture):
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(picture))
    side = tf.cast(tf.random.uniform([], 0.9, 1.0) * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    top = tf.random.uniform([], 0, height - side + 1, tf.int32)
    left = tf.random.uniform([], 0, width - side + 1, tf.int32)
    image = tf.image.decode_and_crop_jpeg(picture, [top, left, side, side], channels=3)
    image = tf.image.resize(image, [size, size], method="bicubic", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
options = tf.data.Options()
options.threading.private_threadpool_size = 1
options.threading.max_intra_op_parallelism = 1
crops = tf.data.Dataset.from_tensor_slices(pictures).map(crop, num_parallel_calls=1).with_options(options)
for line in sys.stdin:
    for image in crops:
        pass
    print("done", flush=True)
"""
# Given a file of texts as JSON, the digest of their ids and whether every line begins with an empty cache of words.
OPEN_CLIP_TOKENIZE = """
import hashlib, json, sys, torch
library = torch.library.Library("torchvision", "DEF")  # torchvision has no CPU build
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
texts, expected, cold = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3] == "cold"
tokenizer = open_clip.SimpleTokenizer()
digest = hashlib.sha256(json.dumps([tokenizer.encode(text) for text in texts]).encode()).hexdigest()
if digest != expected:
    sys.exit("open_clip gives these captions other ids")
for line in sys.stdin:
    if cold:
        tokenizer.cache = {}
    for text in texts:
        tokenizer.encode(text)
    print("done", flush=True)
"""


class Peer:
    """A runner of another library's work in its own interpreter, once a call; the first call starts it.

    Raises ValueError where the interpreter cannot run the program.
    """

    def __init__(self, python: str, library: str, program: str, arguments: list[str]):
        self._python, self._library = python, library
        self._program = [program, *arguments]
        self._process: Any = None

    def __call__(self) -> float:
        if self._process is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            try:
                self._process = subprocess.Popen([self._python, "-c", *self._program], **pipes)
            except OSError as error:
                raise ValueError(f"--peer_python={self._python} is no interpreter that runs: {error}") from error
        start = time.perf_counter()
        try:
            self._process.stdin.write("go\n")
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer != "done\n":
            raise ValueError(f"--peer_python={self._python} cannot run {self._library}; its message stands above")
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.communicate()


def open_clip_step(python: str, published: str, batch_size: int, image_size: int) -> Peer:
    """One step in float32 on the CPU: random pictures, text of 77 positions, AdamW."""
    name = published.replace("/", "-").removesuffix("@336px")
    return Peer(python, "open_clip", OPEN_CLIP_STEP, [name, str(batch_size), str(image_size)])


def decode_peers(python: str, folder: Path, image_size: int) -> dict[str, Peer]:
    """By name, training crops of all JPEGs of a folder on one thread: open_clip's transform, tf.data's functions."""
    arguments = [str(folder), str(image_size)]
    return {
        "open_clip": Peer(python, "open_clip", OPEN_CLIP_DECODE, arguments),
        "tf.data": Peer(python, "tensorflow", TF_DATA_DECODE, arguments),
    }


def tokenize_peers(python: str, texts: Path, digest: str) -> dict[str, Peer]:
    """By name, open_clip's tokenizer on a file of texts, whose ids must have the digest; with and without its cache."""
    return {
        f"open_clip, {state}": Peer(python, "open_clip", OPEN_CLIP_TOKENIZE, [str(texts), digest, state])
        for state in ("warm", "cold")
    }
