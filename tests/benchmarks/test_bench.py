"""Each kind of `clip-jax bench`, and the scripts beside, on tiny sizes; one process imports everything and forks."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import QUICK, Processes

from input_pipeline.tokenizers.clip_bpe import CLIP_NUM_MERGES
from input_pipeline.vocabulary import train_sentencepiece

ROOT = Path(__file__).parent.parent.parent
RUNNER = """
import json, os, runpy, sys
import clip_jax.runs.setup, clip_jax.inference.encoder
from clip_jax.cli import command

for argv in json.loads(sys.argv[1]):
    if os.fork() == 0:
        if argv[0].endswith(".py"):
            sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
            try:
                runpy.run_path(argv[0], run_name="__main__")
            except SystemExit as ended:
                os._exit(ended.code or 0)
        sys.argv = ["/usr/bin/clip-jax", "bench", *argv]
        command.main()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, argv
"""
SMALL = [
    "--config.vision.depth=1",
    "--config.vision.width=16",
    "--config.text.width=16",
    "--num_runs=2",
    "--max_minutes=0",
]
SMALL_WORDS = ["--vocab_size=60", "--num_runs=2", "--max_minutes=0"]

PARTS = "remat=full+num_microbatches=2+block_size=8"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """By kind, what was written as JSON."""
    folder = tmp_path_factory.mktemp("bench")
    train_sentencepiece(["a red cat and a blue dog", "the quick brown fox jumps"] * 20, 60, folder / "tokenizer.model")
    # As many merges as the released vocabulary, of bytes that UTF-8 never uses; a picture with two captions.
    parts = (
        part for length in itertools.count(2) for part in itertools.product("\u00c0\u00c1\u00f5\u00f6", repeat=length)
    )
    merges = [f"{''.join(start)} {end}" for *start, end in itertools.islice(parts, CLIP_NUM_MERGES)]
    (folder / "merges").write_text("\n".join(["#version: 0.2", *merges]))
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / "a.txt").write_text("a red cat\nthe quick brown fox jumps over\n" * 20)
    tokenizer = f"--config.data.tokenizer_file={folder / 'tokenizer.model'}"
    variants = f"--variants=remat=none,{PARTS},text=packed"
    kinds = {
        "step": [*SMALL, "--config.text.context_length=32", "--batch_size=32", variants, "--num_devices=2"],
        "encode": [*SMALL, "--batch_size=16", "--num_devices=1"],
        "loss": [
            "--num_pairs=64",
            "--embed_dim=8",
            "--block_size=16",
            "--num_runs=2",
            "--max_minutes=0",
            "--num_devices=2",
        ],
        "input": [*SMALL, tokenizer, "--batch_size=4", "--num_batches=2", "--num_records=5", "--images_per_s=700"],
        "peers/tokenization.py": [
            "--source=folder",
            f"--path={folder}",
            f"--vocabulary={folder / 'merges'}",
            *SMALL_WORDS,
        ],
        "decode": [
            f"--path={folder / 'pictures'}",
            "--image_size=24",
            "--longer_side=40",
            "--num_runs=2",
            "--max_minutes=0",
        ],
    }
    (folder / "pictures").mkdir()
    for number, side in enumerate((150, 31)):
        noise = np.random.default_rng(number).integers(0, 256, (side, side + 4, 3), np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{number}.jpg")
    (folder / "peers").mkdir()
    commands = [
        [str(Path(__file__).parent / kind) if kind.endswith(".py") else kind, *flags, f"--json={folder / kind}.json"]
        for kind, flags in kinds.items()
    ]
    flags = {"XLA_FLAGS": QUICK}  # the devices are the commands' own
    with Processes() as processes:
        command = [sys.executable, "-c", RUNNER, json.dumps(commands)]
        code, _, err = processes.run(command, 600, cwd=ROOT, env={**os.environ, **flags})
    assert code == 0, err
    return {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in kinds}


@pytest.mark.nightly
def test_a_step_is_measured_for_every_variant(reports):
    report = reports["step"]
    assert (report["batch_size"], report["devices"]) == (32, ["cpu"] * 2)
    assert report["settings"]["variants"] == ["remat=none", PARTS, "text=packed"]
    assert report["config"]["model"]["vision"]["width"] == 16
    (table,) = report["tables"]
    figures = table["figures"]
    assert set(figures) == set(report["settings"]["variants"])
    assert set(table["seconds"]) == {*figures, "product, float32"}
    assert {len(series) for series in table["seconds"].values()} == {2}
    assert table["verdict"] == "too few runs to judge the noise: 2 rounds, and 8 are needed"
    flops = {name: row["model GFLOP a pair"] for name, row in figures.items()}
    assert flops["remat=none"] == flops[PARTS] > flops["text=packed"]
    again = {name: row["executed over model"] for name, row in figures.items()}
    assert again["remat=none"] == 1.0
    assert 1.4 < again[PARTS] < 1.7  # two more forward passes of blocks, one of the rest
    assert figures[PARTS]["temporaries, MiB"] < figures["remat=none"]["temporaries, MiB"]
    for name, row in figures.items():
        peak = report["peaks"]["float32"]["TFLOP/s"]
        tflops = row["model GFLOP a pair"] * 32 / 1e3
        assert row["MFU"] == pytest.approx(tflops / (min(table["seconds"][name]) * 2 * peak), rel=1e-9)


@pytest.mark.nightly
def test_encoding_is_measured_for_images_and_texts(reports):
    images, texts = reports["encode"]["tables"]
    assert (images["rates"], texts["rates"]) == ({"images": 32}, {"texts": 32})
    # An image is 17 positions of 16 channels in one block: 24 D² + 4 L D each; patches of 192 numbers; the projection.
    products = 17 * (24 * 16**2 * 0 + 2 * 16 * (4 * 16 + 2 * 64)) + 17 * 4 * 17 * 16 + 16 * 2 * 192 * 16 + 2 * 16 * 64
    assert images["figures"]["text=short"]["GFLOP an image"] == pytest.approx(products / 1e9, rel=1e-9)
    assert list(texts["seconds"]) == ["text=short", "text=padded"]
    assert texts["ratios"]["text=padded"]["fastest"] == min(texts["seconds"]["text=padded"]) / min(
        texts["seconds"]["text=short"]
    )


@pytest.mark.nightly
def test_a_loss_is_measured_in_both_forms(reports):
    (table,) = reports["loss"]["tables"]
    assert list(table["seconds"]) == ["full", "streamed, 16 rows"]
    assert table["title"] == "64 pairs, 8 channels, 2 devices"


@pytest.mark.nightly
def test_the_input_has_stages_and_cores(reports):
    stages, pipeline = reports["input"]["tables"]
    other = "the same, data.decode=exact"
    assert list(stages["figures"]) == ["read", "decode, crop", "tokenise", "stack", other, "the rest"]
    own = [row["share"] for name, row in stages["figures"].items() if name != other]
    assert sum(own) == pytest.approx(1, abs=1e-9)
    assert list(pipeline["seconds"]) == ["no workers", "1 worker"]
    assert pipeline["rates"] == {"images": 8}
    ((_, needs),) = reports["input"]["needs"].items()
    seconds = sum(pipeline["seconds"]["1 worker"]) / 2  # the median of two
    assert needs == {"images/s": 700.0, "cores": pytest.approx(700 * seconds / 8)}


@pytest.mark.nightly
def test_tokenizers_are_compared_on_equal_captions(reports):
    (table,) = reports["peers/tokenization.py"]["tables"]
    assert table["title"] == "40 captions, one core"
    assert list(table["seconds"]) == ["byte pairs, warm", "byte pairs, cold", "byte pairs, no cache", "SentencePiece"]
    assert table["rates"] == {"captions": 40}


@pytest.mark.nightly
def test_both_decoders_are_measured_with_the_difference_of_the_pixels(reports):
    (table,) = reports["decode"]["tables"]
    assert table["title"].endswith("KiB, median 40 x 37, to 24, one core")
    assert table["rates"] == {"images": 2}
    assert list(table["seconds"]) == ["fast", "exact"]
    (speeds,) = reports["decode"]["speed of fast over that of"].values()
    exact, fast = (np.array(table["seconds"][name]) for name in ("exact", "fast"))
    assert speeds == {"exact": pytest.approx(np.median(exact / fast))}
    (pixels,) = reports["decode"]["pixels, of 255"].values()
    assert 0 < pixels["mean"] < pixels["mean of the worst"] < 0.3


MEMORY = """
import json, numpy as np
from clip_jax.benchmarks.input import watch_memory

held = []
def batches():
    while True:
        held.append(np.ones(2**20, np.uint8))  # 1 MiB a batch
        yield held[-1]

print(json.dumps(watch_memory(batches(), 397, 4)))
"""


def test_memory_is_reported_at_ten_points_on_the_way():
    """In a process of its own: this one frees what other tests held."""
    ran = subprocess.run([sys.executable, "-c", MEMORY], check=True, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(ran.stdout)
    assert list(found) == [f"{count} records" for count in range(40, 401, 40)]
    sizes = [row["process"] for row in found.values()]
    assert 85 < sizes[-1] - sizes[0] < 110  # 90 batches
    assert {row["workers"] for row in found.values()} == {0}
