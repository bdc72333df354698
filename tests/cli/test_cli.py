"""The command line as a user meets it. One process imports everything once and forks for each command."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from processes import Processes

from clip_jax.ablations.jobs import record_sweep
from clip_jax.ablations.spec import load_ablation, questions
from clip_jax.cli.bench import KINDS
from clip_jax.cli.common_flags import HOST_FLAGS
from clip_jax.config.experiment import make_config
from clip_jax.config.record import record_config
from clip_jax.distributed.sharding import make_abstract_mesh
from clip_jax.planning.params import as_table, param_table
from clip_jax.pretrained import load_pretrained
from clip_jax.training.training import Training
from configs.tiny import get_config
from input_pipeline.vocabulary import train_sentencepiece

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
RUNNER = """
import json, os, signal, sys, traceback
from pathlib import Path
# What takes long; the commands define flags of the same names.
import clip_jax.evaluation.suite.runner, clip_jax.runs.setup
from clip_jax.cli import command

for number, argv in enumerate(json.loads(sys.argv[2])):
    if os.fork() == 0:
        signal.alarm(20)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[1]}/{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = ["/usr/bin/clip-jax", *argv]
        code = 0
        try:
            command.main()
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # to take down a process that has imported so much lasts longer than all the rest
    _, status = os.wait()
    Path(f"{sys.argv[1]}/{number}.code").write_text(str(os.waitstatus_to_exitcode(status)))
"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def run_all(folder: Path, commands: dict[str, list[str]]) -> dict[str, Outcome]:
    arguments = [str(folder), json.dumps(list(commands.values()))]
    with Processes() as processes:
        code, _, err = processes.run([sys.executable, "-c", RUNNER, *arguments], 200, cwd=ROOT)
    assert code == 0, err

    def outcome(number: int) -> Outcome:
        code, out, err = ((folder / f"{number}.{name}").read_text() for name in ("code", "out", "err"))
        return Outcome(int(code), out, err)

    return {name: outcome(number) for number, name in enumerate(commands)}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """empty: a folder without data. photo: one picture. tokenizer.model: 60 pieces. other: a run of configs/tiny.py.
    captioned: a picture with captions, and a table of it. sweeps: an ablation that was begun. weights.pt: a pickle."""
    place = tmp_path_factory.mktemp("cli")
    (place / "empty").mkdir()
    (place / "other").mkdir()
    (place / "photo").mkdir()
    (place / "captioned").mkdir()
    Image.new("RGB", (11, 13)).save(place / "captioned" / "a.png")
    (place / "captioned" / "a.txt").write_text("a red cat and a blue dog\nthe quick brown fox jumps\n" * 20)
    (place / "captioned" / "a.csv").write_text(
        "image,caption,alt\n" + "a.png,a cat,the quick brown fox jumps over the lazy dog\n" * 20
    )
    (place / "weights.pt").write_bytes(b"\x80\x04N.")
    Image.new("RGB", (11, 13)).save(place / "photo" / "a.png")
    train_sentencepiece(["a red cat and a blue dog", "the quick brown fox jumps"] * 20, 60, place / "tokenizer.model")
    record_config(get_config().to_dict(), place / "other")
    record_sweep(load_ablation("loss", "mini"), place / "sweeps" / "loss")
    return place


def commands(place: Path) -> dict[str, list[str]]:
    def train(*flags: str) -> list[str]:
        return ["train", "--config=tiny", f"--workdir={place / 'new'}", *flags]

    def embed(*flags: str) -> list[str]:
        return ["embed", "--model=nowhere/model", f"--path={place / 'photo'}", f"--output={place / 'new'}", *flags]

    def classify(*arguments: str, labels: str = "a cat,a dog") -> list[str]:
        return ["classify", *arguments, "--model=nowhere/model", f"--labels={labels}"]

    photo = f"{place / 'photo' / 'a.png'}"
    tokenizer = f"--config.data.tokenizer_file={place / 'tokenizer.model'}"
    web = "--config.data.source=webdataset"
    return {
        "nothing": [],
        "help": ["--help"],
        "train help": ["train", "--help"],
        "evaluate help": ["evaluate", "-h"],
        "embed help": ["embed", "--help"],
        "classify help": ["classify", photo, "--help"],
        "prepare help": ["prepare", "--help"],
        "inspect help": ["inspect", "scenes", "--help"],
        "ablate help": ["ablate", "loss", "--help"],
        "bench help": ["bench", "step", "--help"],
        "models help": ["models", "--help"],
        "models": ["models", "siglip2-base", "--json"],
        "models of no name": ["models", "alexnet"],
        "topology": ["plan", "--config=tiny", "--topology=v9:2x2", f"--output={place / 'plan'}"],
        "devices of a step": ["plan", "--config=tiny", "--num_devices=4"],
        "kinds": ["bench"],
        "kinds help": ["bench", "--help"],
        "command": ["trian"],
        "kind": ["bench", "stp"],
        "word after a kind": ["bench", "step", "loss"],
        "setting": ["bench", "step", "--variants=remt=full"],
        "value": ["bench", "step", "--variants=remat=full,remat=all"],
        "no number": ["bench", "step", "--variants=block_size=full"],
        "positions": ["bench", "step", "--variants=text=99"],
        "no patches": ["bench", "step", "--published=RN50", "--variants=patch_dropout=0.5"],
        "variant twice": ["bench", "step", "--variants=remat=full,remat=full"],
        "batch of pairs": ["bench", "step", "--batch_size=many"],
        "batch of parts": ["bench", "step", "--batch_size=36", "--variants=num_microbatches=2,num_microbatches=3"],
        "two models": ["bench", "step", "--published=RN50", "--config=tiny"],
        "unknown key to bench": ["bench", "step", "--config.train.sead=1"],
        "json": ["bench", "loss", f"--json={place / 'nowhere' / 'a.json'}"],
        "packed to encode": ["bench", "encode", "--variants=text=packed"],
        "nothing to time": ["bench", "input", "--num_runs=0"],
        "flag": train("--nonsense=1"),
        "flag misspelt": train("--wrkdir=x"),
        "word": train("more"),
        "key": train("--config.optimizer.learning_rat=1"),
        "other section": train("--config.train.learning_rate=1"),
        "key that is none": train("--config.train.global_batch_size=99999999999999999999"),
        "no number in a config": train("--config.optimizer.b1=nan"),
        "empty workdir": ["train", "--config=tiny", "--workdir="],
        "flag that is no number": embed("--max_broken_share=nan"),
        "section": train("--config.optimiser.learning_rate=1"),
        "key of a key": train("--config.train.seed.x=1"),
        "type": train("--config.train.total_steps=many"),
        "fraction": train("--config.train.total_steps=1.5"),
        "shipped config": ["train", "--config=tinny", "--workdir=w"],
        "shipped config apart": ["train", "--config", "tinny", "--workdir=w"],
        "config file": ["train", "--config=configs/tinny.py", "--workdir=w"],
        "config without value": ["train", "--workdir=w", "--config"],
        "no config": ["train", "--workdir=w"],
        "no workdir": ["train", "--config=tiny"],
        "no workdir to evaluate": ["evaluate"],
        "path": train(web, "--config.data.path=/nowhere/at.tar"),
        "no path": train(web),
        "empty path": train(web, f"--config.data.path={place / 'empty'}"),
        "remote path": train(web, "--config.data.path=nowhere://bucket/a.tar"),
        "batch": train("--config.train.global_batch_size=12"),
        "batch below": train("--config.train.global_batch_size=5"),
        "devices": train("--config.sharding.fsdp=3"),
        "heads over devices": [*train("--config.sharding.tensor=8"), f"--workdir={place / 'untouched'}"],
        "image size": train("--config.vision.image_size=33", "--config.vision.patch_size=8"),
        "heads": train("--config.text.width=128", "--config.text.num_heads=7"),
        "warm-up": train("--config.optimizer.warmup_steps=7", "--config.train.total_steps=7"),
        "vocabulary": train("--config.text.vocab_size=50", tokenizer),
        "source": train("--config.data.source=photographs"),
        "tokenizer file": train("--config.data.tokenizer_file=/nowhere/a.model"),
        "labelled set": train("--config.evaluation.zero_shot=scenes/cats", tokenizer),
        "apart": ["train", "--config", "tiny", "--workdir=w", "--config.train.global_batch_size=12"],
        "any order": ["train", "--config.train.global_batch_size=12", "--workdir=w", "--config=tiny"],
        "any order, apart": ["train", "--config.train.global_batch_size=12", "--config", "tiny", "--workdir=w"],
        "path of a config": ["train", "--config=configs/tiny.py", "--workdir=w", "--config.train.global_batch_size=12"],
        "other config": ["train", "--config=tiny", f"--workdir={place / 'other'}", "--config.train.seed=333"],
        "no run": ["evaluate", f"--workdir={place / 'empty'}"],
        "no checkpoint": ["evaluate", f"--workdir={place / 'other'}", "--num_examples=1"],
        "suite of no model": ["evaluate", "--config=suites/scenes"],
        "suite of two models": ["evaluate", "--config=suites/scenes", "--workdir=w", "--model=m"],
        "suite nowhere to put": ["evaluate", "--config=suites/scenes", "--model=m"],
        "unknown suite": ["evaluate", "--config=suites/everything", "--workdir=w"],
        "no suite": ["evaluate", "--config=tiny", "--workdir=w"],
        "old flag with a suite": ["evaluate", "--config=suites/scenes", "--workdir=w", "--zero_shot=scenes/shape"],
        "key of a suite": ["evaluate", "--config=suites/scenes", "--workdir=w", "--config.suite.seeds=1"],
        "suite of no run": ["evaluate", "--config=configs/suites/scenes.py", f"--workdir={place / 'empty'}"],
        "no suite for a model": ["evaluate", "--model=m"],
        "suite to train": ["train", "--config=suites/scenes", "--workdir=w"],
        "word to embed": embed(photo),
        "nothing to embed": ["embed", "--model=m", "--output=o"],
        "nowhere to embed to": ["embed", "--model=m", "--path=p"],
        "no model to embed with": ["embed", "--path=p", "--output=o"],
        "folder to embed": embed(f"--path={place / 'photos'}"),
        "empty folder to embed": embed(f"--path={place / 'empty'}"),
        "source to embed": embed("--source=scenes"),
        "tfds to embed": embed("--source=tfds"),
        "tar to embed": embed("--source=webdataset", "--path=/nowhere/at.tar"),
        "part": embed("--part=2/2"),
        "shard size": embed("--shard_size=0"),
        "broken share": embed("--max_broken_share=7"),
        "form of embeddings": embed("--format=csv"),
        "no pictures": classify(),
        "no labels": ["classify", photo, "--model=m"],
        "one label": classify(photo, labels="a cat"),
        "equal labels": classify(photo, labels="a cat,a dog, a cat "),
        "empty label": classify(photo, labels="a cat,,a dog"),
        "template": classify(photo, "--template=a photo"),
        "no model to classify with": ["classify", photo, "--labels=a cat,a dog"],
        "missing picture": classify(photo, "b.png"),
        "no picture": classify("README.md", photo),
        "folder to classify": classify(photo, f"{place / 'photo'}"),
        "nowhere to prepare to": ["prepare", "--path=p"],
        "nothing to prepare": ["prepare", f"--output={place / 'new'}"],
        "source to prepare": ["prepare", "--source=digits", "--output=o"],
        "nothing to inspect": ["inspect"],
        "data to inspect": ["inspect", "/nowhere"],
        "flag of another command": classify(photo, "--shard_size=5"),
        "shared flag of other commands": embed("--num_records=3"),
        "vocabulary of nothing": ["tokenizer", f"--output={place / 'v.model'}"],
        "vocabulary that exists": ["tokenizer", "--path=p", f"--output={place / 'tokenizer.model'}"],
        "pieces": [
            *("tokenizer", "--source=folder", f"--path={place / 'captioned'}"),
            *("--vocab_size=60", f"--output={place / 'v.model'}"),
        ],
        "captions elsewhere": [
            *("tokenizer", "--source=table", f"--path={place / 'captioned' / 'a.csv'}", "--captions_field=alt"),
            *("--vocab_size=60", f"--output={place / 'alt.model'}"),
        ],
        "nothing to convert": ["convert", "--output=o"],
        "output that exists": ["convert", "--model=m", f"--output={place / 'empty'}"],
        "pickle": ["convert", f"--model={place / 'weights.pt'}", f"--output={place / 'out'}"],
        "ablation": ["ablate", "batchsize", "--workdir=w"],
        "two ablations": ["ablate", "batch_size", "loss"],
        "ablation nowhere": ["ablate", "loss"],
        "shard": ["ablate", "loss", "--workdir=w", "--shard=2/2"],
        "config to ablate": ["ablate", "loss", "--config=tiny", "--workdir=w"],
        "key to ablate": ["ablate", "loss", "--config.train.sead=1", "--workdir=w"],
        "ablation that cannot be": ["ablate", "loss", f"--workdir={place / 'new'}", "--config.optimizer.b1=2"],
        "other sweep": ["ablate", "loss", f"--workdir={place / 'sweeps'}", "--config.model.embed_dim=48"],
        "full scale without data": ["ablate", "loss", "--scale=full", f"--workdir={place / 'new'}"],
        "full scale without devices": ["ablate", "loss", "--scale=full", "--workdir=w", "--config.data.path=tars"],
        "ablations": ["ablate"],
        "dry run": ["ablate", "loss", f"--workdir={place / 'sweeps'}", "--dry_run", "--seeds=1"],
        "devices to plan": ["plan", "--config=tiny", "--params", "--num_devices=7", "--config.sharding.fsdp=2"],
        "converted": ["convert", f"--model={GOLDENS / 'openclip_vit'}", f"--output={place / 'converted'}"],
        "traceback": ["evaluate", f"--workdir={place / 'empty'}", "--traceback"],
        "parameters": ["plan", "--config=tiny", "--params", "--num_devices=64", "--config.sharding.fsdp=2"],
    }


@pytest.fixture(scope="module")
def outcomes(place) -> dict[str, Outcome]:
    outcomes = run_all(place, commands(place))
    assert not (place / "new" / "config.json").exists()  # nothing that was refused binds the workdir
    assert not (place / "untouched").exists()  # nor was anything read or trained before it was refused
    return outcomes


MESSAGES = {
    "topology": "topology 'v9:2x2' is not one to plan for: use the chip and the slice's shape, such as v4:4x4x4 (v4: ",
    "devices of a step": "--num_devices is for --params; a step is compiled for a --topology",
    "command": "unknown command 'trian': did you mean train?\nusage: clip-jax COMMAND [--flags]",
    "kind": "unknown kind 'stp': did you mean step?\nusage: clip-jax bench KIND [--flags]\n  step ",
    "word after a kind": "unexpected argument 'loss': flags begin with --",
    "setting": "--variants: 'remt=full' is not SETTING=VALUE with one of remat, compute_dtype, patch_dropout, ",
    "value": "--variants: 'remat=all' is not possible: model.remat='all' must be one of 'none', 'dots', 'named', "
    "'attention', 'full'",
    "no number": "--variants: 'block_size=full' is not possible: it must be a whole number",
    "positions": "--variants: 'text=99' is not possible: it must be padded, short, packed, or positions, from 2 to 16",
    "no patches": "--variants: 'patch_dropout=0.5' is not possible: a ResNet has no patches",
    "variant twice": "--variants: 'remat=full' is given twice",
    "batch of pairs": "--batch_size=many must be a number of pairs, or auto",
    "batch of parts": "--batch_size=36 is not divisible by 48, the devices that share a batch times the ",
    "two models": "--published=RN50 and --config exclude each other: leave one out",
    "unknown key to bench": "unknown config key 'sead'",
    "json": "--json={place}/nowhere/a.json cannot be written: name a file in a folder that exists",
    "packed to encode": "--variants: the encoder has text=padded and text=short, not text=packed",
    "nothing to time": "--num_runs=0 leaves nothing to do here: the input pipeline compiles nothing",
    "flag": "Unknown command line flag 'nonsense'",
    "flag misspelt": "Unknown command line flag 'wrkdir'. Did you mean: workdir ?",
    "word": "unexpected argument 'more': flags begin with --",
    "key": 'unknown config key \'learning_rat\'. Did you mean "learning_rate" instead of "learning_rat"?',
    "other section": "unknown config key 'learning_rate'. It is a key of another section: optimizer.learning_rate\n",
    "key that is none": "train.global_batch_size=99999999999999999999 must be at most 16777216",
    "no number in a config": "optimizer.b1=nan must be a finite number",
    "empty workdir": "--workdir is empty: leave it out, or give it a value",
    "flag that is no number": "--max_broken_share=nan must be a finite number",
    "section": 'unknown config key \'optimiser\'. Did you mean "optimizer" instead of "optimiser"?',
    "key of a key": "unknown config key Attribute <class 'int'>.x does not exist",
    "type": "flag --config.train.total_steps=many: invalid literal for int() with base 10: 'many'",
    "fraction": "flag --config.train.total_steps=1.5: invalid literal for int()",
    "shipped config": "there is no shipped config 'tinny' (did you mean tiny?): use one of ",
    "shipped config apart": "there is no shipped config 'tinny' (did you mean tiny?): use one of ",
    "config file": "there is no config file configs/tinny.py",
    "config without value": "there is no shipped config ''",
    "no config": "--config is missing: for instance --config=tiny",
    "no workdir": "--workdir is missing: for instance --workdir=runs/tiny",
    "no workdir to evaluate": "--workdir is missing: for instance --workdir=runs/tiny",
    "path": "no data at '/nowhere/at.tar', which does not exist: expected a tar",
    "empty path": "no data in the folder '{place}/empty': expected a tar",
    "remote path": "nowhere://bucket/a.tar cannot be opened: Protocol not known: nowhere",
    "batch": "train.global_batch_size=12 is not divisible by the 8 devices that share a batch: use 8 or 16",
    "batch below": "train.global_batch_size=5 is not divisible by the 8 devices that share a batch: use 8",
    "devices": "sharding data=-1, fsdp=3, tensor=1 does not multiply to the 8 devices: set one of them to -1",
    "heads over devices": "sharding.tensor=8 does not divide the 4 of text/transformer/blocks/attn/",
    "image size": "vision.image_size=33 is not divisible by vision.patch_size=8: use an image_size such as 32 or 40",
    "heads": "text.width=128 is not divisible by text.num_heads=7: use width=126 or 133, or num_heads=4 or 8",
    "warm-up": "optimizer.warmup_steps=7 must lie between 0 and train.total_steps=7",
    "vocabulary": "text.vocab_size=50 is smaller than the tokenizer's vocabulary, {pieces}: set text.vocab_size=",
    "no path": "data.path is empty: data.source='webdataset' needs one, as --config.data.path=DIR",
    "source": "data.source='photographs' must be one of 'auto', 'scenes', 'webdataset', 'tfds', 'array_record', "
    "'table', 'folder', 'mixture'",
    "tokenizer file": "cannot read the SentencePiece model /nowhere/a.model: No such file or directory",
    "labelled set": "labelled set 'cats' of the drawn scenes is unknown: choose one of compositions, ",
    "apart": "train.global_batch_size=12 is not divisible",
    "any order": "train.global_batch_size=12 is not divisible",
    "any order, apart": "train.global_batch_size=12 is not divisible",
    "path of a config": "train.global_batch_size=12 is not divisible",
    "other config": "workdir {place}/other holds a run of another config: train.seed was {seed}, is 333. Use another",
    "no run": "{place}/empty is not the workdir of a run: it has no config.json",
    "no checkpoint": "cannot read the SentencePiece model {place}/other/tokenizer.model",
    "suite of no model": "--config needs either --workdir=DIR of a run or --model=NAME_OR_PATH",
    "suite of two models": "--config needs either --workdir=DIR of a run or --model=NAME_OR_PATH",
    "suite nowhere to put": "--output is missing: for instance --output=evaluation",
    "unknown suite": "there is no shipped config 'suites/everything'",
    "no suite": "--config of this command is a suite, as suites/scenes; a run's own config is read from its --workdir",
    "old flag with a suite": "--zero_shot is not for suites: use --config.suite.datasets",
    "key of a suite": "unknown config key 'seeds'. Did you mean",
    "models of no name": "no name or repository has alexnet: `clip-jax models` lists all",
    "suite of no run": "{place}/empty is not the workdir of a run: it has no config.json",
    "no suite for a model": "--model needs a suite, as --config=suites/paper",
    "suite to train": "unknown config.bias, unknown config.few_shot",
    "word to embed": "unexpected argument '{place}/photo/a.png': flags begin with --",
    "nothing to embed": "--path is missing: for instance --path=photos",
    "nowhere to embed to": "--output is missing: for instance --output=embeddings",
    "no model to embed with": "--model is missing: for instance --model=ViT-B/32",
    "folder to embed": "no data at '{place}/photos', which does not exist: expected a folder of pictures",
    "empty folder to embed": "no usable record in {place}/empty: expected pictures (jpg, jpeg, png, webp, jpe, jfif, ",
    "source to embed": "--source=scenes must be one of folder, webdataset, tfds, array_record, table\n",
    "tfds to embed": "tfds needs a path and a split such as train; got path '{place}/photo' and split ''",
    "tar to embed": "no data at '/nowhere/at.tar', which does not exist: expected a tar",
    "part": "--part=2/2 must be i/n with 0 <= i < n: for instance --part=0/4 to --part=3/4",
    "shard size": "flag --shard_size=0: 0 is not a positive integer",
    "broken share": "flag --max_broken_share=7: 7.0 is not a number in the range [0, 1]",
    "form of embeddings": "flag --format=csv: value should be one of <parquet|npy>",
    "no pictures": "no images: for instance clip-jax classify cat.jpg --labels='a cat,a dog'",
    "no labels": "--labels is missing: for instance --labels='a cat,a dog'",
    "one label": "at least two labels are needed, not 1: for instance --labels='a cat,a dog'",
    "equal labels": "'a cat' is given twice among the labels: each one must differ",
    "empty label": "label 2 of 3 is empty",
    "template": "the template 'a photo' has no {{}} where the label goes",
    "no model to classify with": "--model is missing: for instance --model=ViT-B/32",
    "missing picture": "b.png does not exist",
    "no picture": "README.md: not an image of a known format",
    "folder to classify": "{place}/photo is a folder: clip-jax embed is for folders, this command for single pictures",
    "nowhere to prepare to": "--output is missing: for instance --output=data_256",
    "nothing to prepare": "--path is missing: for instance --path=photos",
    "source to prepare": "--source=digits must be one of folder, webdataset, tfds, array_record, table, scenes\n",
    "nothing to inspect": "give one data set, not 0: for instance clip-jax inspect photos",
    "data to inspect": "no data at '/nowhere': give a folder, tars, ArrayRecord files, a .csv or .parquet, or scenes",
    "flag of another command": "Unknown command line flag 'shard_size'",
    "shared flag of other commands": "--num_records is not a flag of this command\n--help lists the flags",
    "vocabulary of nothing": "--path is missing: for instance --path=DIR",
    "vocabulary that exists": "--output={place}/tokenizer.model exists: a run may depend on it, so name another file",
    "nothing to convert": "--model is missing: for instance --model=runs/tiny",
    "output that exists": "--output={place}/empty exists already: remove it or choose another folder",
    "pickle": "{place}/weights.pt is a pickle, which can run any code when it is opened, so clip_jax does not read it",
    "ablation": "ablation 'batchsize' is unknown: choose from augmentation, batch_size, ",
    "two ablations": "one ablation at a time, or all: batch_size loss",
    "ablation nowhere": "--workdir is missing: for instance --workdir=runs/ablations",
    "shard": "--shard=2/2 must be i/n with 0 <= i < n: for instance --shard=0/2 and --shard=1/2",
    "config to ablate": "--config={root}/configs/tiny.py is not for this command, whose configs are its own",
    "key to ablate": "unknown config key 'sead'",
    "ablation that cannot be": "ablation loss, run 'softmax': optimizer.b1=2.0 must lie in [0, 1)",
    "other sweep": "{place}/sweeps/loss holds the sweep of another config: model.embed_dim was 64, is 48. Use another ",
    "full scale without data": "--scale=full of loss needs data, and its run 'softmax' has none: give --config.data.pa",
    "full scale without devices": "--scale=full needs accelerators, and JAX sees none here: --dry_run --topology=v5e:",
    "devices to plan": "sharding data=-1, fsdp=2, tensor=1 does not multiply to the 7 devices: set one of them to -1",
}


@pytest.mark.parametrize("mistake", MESSAGES)
def test_a_mistake_ends_in_one_message_before_long_work(mistake, outcomes, place):
    outcome = outcomes[mistake]
    message = MESSAGES[mistake].format(place=place, root=ROOT, pieces=60, seed=get_config().train.seed)
    assert outcome.err.startswith(f"clip-jax: error: {message}")
    assert outcome.code == 1
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error:") == 1


def test_every_mistake_is_tried(outcomes):
    assert set(outcomes) - set(MESSAGES) == {
        "nothing",
        "help",
        "train help",
        "evaluate help",
        "embed help",
        "classify help",
        "prepare help",
        "inspect help",
        "ablate help",
        "ablations",
        "dry run",
        "bench help",
        "models help",
        "models",
        "kinds",
        "kinds help",
        "converted",
        "parameters",
        "pieces",
        "captions elsewhere",
        "traceback",
    }


def test_a_vocabulary_is_trained_and_shown(outcomes, place):
    outcome = outcomes["pieces"]
    assert (outcome.code, outcome.err) == (0, "")
    cells = dict(re.split(r" {2,}", row.strip()) for row in outcome.out.splitlines()[2:7])
    assert (cells["captions"], cells["pieces"]) == ("40", "60")
    assert (place / "v.model").read_bytes() == (place / "tokenizer.model").read_bytes()
    assert outcome.out.splitlines()[7] == "a red cat and a blue dog"
    assert outcome.out.splitlines()[8].replace(" ", "").replace("\u2581", " ").strip() == "a red cat and a blue dog"


def test_a_vocabulary_learns_from_the_captions_that_are_named(outcomes, place):
    outcome = outcomes["captions elsewhere"]
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[7] == "the quick brown fox jumps over the lazy dog"


def test_convert_tells_what_it_wrote(outcomes, place):
    outcome = outcomes["converted"]
    assert outcome.code == 0
    assert "does not say how pixels were normalised in training, so the default of this kind of model is" in outcome.err
    header, _, *rows = outcome.out.splitlines()
    assert header.split() == [str(place / "converted"), "huggingface"]
    cells = dict(re.split(r" {2,}", row.strip()) for row in rows)
    written, read = (load_pretrained(folder) for folder in (place / "converted", GOLDENS / "openclip_vit"))
    assert cells["parameters"] == f"{sum(leaf.size for leaf in jax.tree.leaves(read.variables)):,}"
    assert cells["files"] == "config.json, model.safetensors, preprocessor_config.json"
    assert written.config == read.config
    jax.tree.map(np.testing.assert_array_equal, written.variables, read.variables)


def test_plan_lists_every_parameter(outcomes):
    outcome = outcomes["parameters"]
    assert (outcome.code, outcome.err) == (0, "")
    config = make_config(get_config().to_dict())
    mesh = make_abstract_mesh(dataclasses.replace(config.sharding, fsdp=2), 64)
    assert outcome.out == as_table(param_table(Training(config, mesh).abstract())) + "\n"


def test_help_lists_the_commands(outcomes):
    for name in ("help", "nothing"):
        assert (outcomes[name].code, outcomes[name].err) == (0, "")
        assert outcomes[name].out.splitlines()[0] == "usage: clip-jax COMMAND [--flags]"
        assert [line.split()[0] for line in outcomes[name].out.splitlines()[1:]] == [
            "plan",
            "train",
            "evaluate",
            "ablate",
            "embed",
            "prepare",
            "inspect",
            "classify",
            "tokenizer",
            "models",
            "convert",
            "bench",
            "clip-jax",
        ]


def test_models_are_listed_with_their_repositories(outcomes):
    outcome = outcomes["models"]
    assert (outcome.code, outcome.err) == (0, "")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert {row["repository"] for row in rows} >= {"google/siglip2-base-patch16-224"}
    assert all("siglip2-base" in row["name"] for row in rows)


def test_bench_lists_its_kinds_and_each_is_a_module(outcomes):
    for name in ("kinds", "kinds help"):
        assert (outcomes[name].code, outcomes[name].err) == (0, "")
        assert outcomes[name].out.splitlines()[0] == "usage: clip-jax bench KIND [--flags]"
        assert [line.split()[0] for line in outcomes[name].out.splitlines()[1:-1]] == list(KINDS)
    assert {importlib.util.find_spec(f"clip_jax.cli.bench.{kind}") is not None for kind in KINDS} == {True}
    assert outcomes["bench help"].out.startswith("Time and memory of a training step.\n")
    flags = {line.split(":")[0] for line in outcomes["bench help"].out.split("\n\nflags:\n")[1].splitlines()}
    own = {"variants", "batch_size", "memory_gib"}
    shared = {"config", "published", "num_devices", "num_runs", "max_minutes", "json", "traceback"}
    assert flags == {f"  --{flag}" for flag in own | shared}


def test_ablate_lists_what_there_is_and_its_runs(outcomes, place):
    asked = [re.split(r" {2,}", line, maxsplit=1) for line in outcomes["ablations"].out.splitlines()[2:-2]]
    assert dict(asked) == questions()
    lines = outcomes["dry run"].out.splitlines()
    assert lines[::2] == ["softmax, seed 0: to do", "sigmoid, seed 0: to do"]
    for line in lines[1::2]:
        config, workdir = re.fullmatch(r"  clip-jax train --config=(\S+) --workdir=(\S+)", line).groups()
        assert config == f"{workdir}/config.py"
        assert Path(config).is_file()


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", {"config", "workdir", "traceback", *HOST_FLAGS}),
        (
            "evaluate",
            {"workdir", "output", "zero_shot", "templates", "data_dir", "data_path", "num_examples", "traceback"}
            | {"config", "model", "activation", "strict"}
            | set(HOST_FLAGS),
        ),
        (
            "embed",
            {
                *(
                    "activation",
                    "model",
                    "source",
                    "path",
                    "split",
                    "output",
                    "format",
                    "dtype",
                    "shard_size",
                    "part",
                    "batch_size",
                ),
                *(
                    "texts",
                    "captions_field",
                    "image_field",
                    "separator",
                    "link_root",
                    "max_broken_share",
                    "traceback",
                    *HOST_FLAGS,
                ),
            },
        ),
        ("classify", {"activation", "model", "labels", "template", "top", "json", "traceback"}),
        (
            "prepare",
            {"source", "path", "split", "output", "num_scenes", "seed", "name", "image_size", "quality", "shard_size"}
            | {"captions_field", "image_field", "separator", "link_root", "orient"}
            | {"num_workers", "max_broken_share", "min_side", "max_aspect", "min_caption_length", "max_caption_length"}
            | {"caption_must_match", "caption_must_not_match", "runner", "beam_options", "traceback"},
        ),
        (
            "inspect",
            {"source", "split", "captions_field", "image_field", "separator", "link_root", "output", "num_records"}
            | {"num_tiles", "seed", "captions", "traceback"},
        ),
        ("models", {"json", "traceback"}),
        (
            "ablate",
            {"workdir", "config", "scale", "seeds", "shard", "report_only", "dry_run", "topology", "data_dir"}
            | {"gallery", "traceback"},
        ),
    ],
)
def test_help_of_a_command_shows_its_flags(command, flags, outcomes):
    outcome = outcomes[f"{command} help"]
    assert (outcome.code, outcome.err) == (0, "")
    description, lines = outcome.out.split("\n\nflags:\n")
    assert f"clip-jax {command}" in description.splitlines()[0]
    assert {line.split(":")[0] for line in lines.splitlines()} == {f"  --{flag}" for flag in flags}


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--config=tiny"], "--workdir is missing: for instance --workdir=runs/tiny"),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("prepare", ["--path=p"], "--output is missing: for instance --output=data_256"),
                (
                    "inspect",
                    ["nowhere"],
                    "no data at 'nowhere': give a folder, tars, ArrayRecord files, a .csv or .parquet, or scenes",
                ),
                ("classify", ["none.jpg", "--model=m", "--labels=a,b"], "none.jpg does not exist"),
            )
        ),
    ],
)
def test_each_command_runs_as_a_module(command, arguments, message):
    ran = subprocess.run(
        [sys.executable, "-m", "clip_jax", command, *arguments], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"clip-jax: error: {message}\n")


def test_help_shows_defaults(outcomes):
    lines = outcomes["prepare help"].out.splitlines()
    shown = {
        line.split(":")[0].strip(" -"): re.search(r"\(default (.*)\)$", line) for line in lines if line[:4] == "  --"
    }
    defaults = {name: match[1] for name, match in shown.items() if match}
    assert (defaults["image_size"], defaults["quality"], defaults["runner"]) == ("256", "90", "local")
    assert "output" not in defaults


def test_traceback_shows_where_a_mistake_was_found(outcomes, place):
    outcome = outcomes["traceback"]
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "in load_config" in outcome.err
    assert outcome.err.endswith(f"ValueError: {place / 'empty'} is not the workdir of a run: it has no config.json\n")
