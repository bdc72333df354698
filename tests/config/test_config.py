import copy
import dataclasses
import importlib
import json
import re
import subprocess
from pathlib import Path

import jax
import pytest

import configs
from clip_jax.config.experiment import make_config, with_data_path, with_found_data, with_mixture, with_tokenizer
from clip_jax.config.record import environment, load_config, record_config
from configs import clip_rn50
from configs.tiny import get_config
from input_pipeline.tokenizers import Tokenizer

NO_CONFIGS = ("__init__", "model_sizes")
CONFIG_FILES = sorted(file.stem for file in Path(configs.__path__[0]).glob("*.py") if file.stem not in NO_CONFIGS)


def sections(**changes) -> dict:
    """configs/tiny.py with section__key=value in place of its own."""
    result = get_config().to_dict()
    for name, value in changes.items():
        section, _, key = name.partition("__")
        result[section][key] = value
    return result


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_every_shipped_config_is_accepted_and_keeps_its_values(name):
    given = importlib.import_module(f"configs.{name}").get_config().to_dict()
    config = make_config(given)
    for section, keys in given.items():
        made = getattr(config.model if section in ("vision", "text") else config, section)
        for key, value in keys.items():
            assert getattr(made, key) == value, f"{section}.{key}"


def test_config_files_were_found():
    assert {"clip_rn50", "clip_vit_b32", "flickr8k", "tiny"} < set(CONFIG_FILES)


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_the_width_of_a_tower_takes_that_of_its_mlps_along(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    for tower in (config.text, config.vision):
        if "mlp_dim" in tower:
            tower.width = 17
            assert tower.mlp_dim == 4 * 17


@pytest.mark.parametrize(
    ("first", "second", "differing"),
    [
        ("clipa_vit_b16", "clipa_vit_b16_tune", {"vision.image_size", "text.context_length"}),
        ("flip_vit_b16", "flip_vit_b16_unmasked", set()),
    ],
)
def test_a_schedule_of_two_parts_trains_one_model(first, second, differing):
    before, after = (importlib.import_module(f"configs.{name}").get_config() for name in (first, second))
    assert after.train.init_from == f"runs/{first}"
    differences = make_config(before.to_dict()).model.differences(make_config(after.to_dict()).model)
    assert {difference.split(" is ")[0] for difference in differences} == differing
    assert after.optimizer.learning_rate <= before.optimizer.learning_rate / 10


def test_a_logit_bias_can_be_asked_for_as_a_number():
    config = get_config()
    assert make_config(config.to_dict()).model.logit_bias_init is None
    config.model.logit_bias_init = -10
    config.loss.kind = "sigmoid"
    assert make_config(config.to_dict()).model.logit_bias_init == -10.0
    with pytest.raises(TypeError):
        get_config().model.logit_bias_init = "none"


@pytest.mark.parametrize(
    ("kind", "bias", "fix"), [("contrastive", -10.0, "leave it None"), ("sigmoid", None, "at -10")]
)
def test_a_bias_goes_with_the_sigmoid_loss_and_with_no_other(kind, bias, fix):
    config = get_config()
    config.loss.kind, config.model.logit_bias_init = kind, bias
    with pytest.raises(ValueError, match=rf"model.logit_bias_init={bias} with loss.kind='{kind}': .*{fix}"):
        make_config(config.to_dict())


def test_numbers_become_what_their_section_declares():
    config = make_config(sections(optimizer__learning_rate=1, evaluation__zero_shot=["scenes/digit"]))
    assert (config.optimizer.learning_rate, type(config.optimizer.learning_rate)) == (1.0, float)
    assert config.evaluation.zero_shot == ("scenes/digit",)
    assert config.model.text.eot_token == config.model.text.vocab_size - 1  # until the tokenizer is known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer__learning_rat": 1e-3},
            "unknown optimizer.learning_rat (did you mean learning_rate?); optimizer has b1, b2, ema_decay",
        ),
        ({"train__learning_rate": 1e-3}, "unknown train.learning_rate: did you mean optimizer.learning_rate?"),
        ({"model__patch_size": 7}, "unknown model.patch_size: did you mean vision.patch_size?"),
        ({"loss__seed": 7}, "unknown loss.seed: did you mean data.seed or train.seed?"),
        ({"text__eot_token": 5}, "unknown text.eot_token; text has causal, context_length, depth"),
        ({"model__vision": {}}, "unknown model.vision; model has activation, compute_dtype"),
        ({"train__total_steps": "7"}, "train.total_steps='7' must be int, not str"),
        ({"train__total_steps": 7.0}, "train.total_steps=7.0 must be int, not float"),
        ({"train__seed": True}, "train.seed=True must be int, not bool"),
        ({"optimizer__b1": "x"}, "optimizer.b1='x' must be float, not str"),
        ({"optimizer__b1": True}, "optimizer.b1=True must be float, not bool"),
        ({"data__path": 3}, "data.path=3 must be str, not int"),
        ({"data__path": None}, "data.path=None must be str, not NoneType"),
        ({"text__vocab_size": "many"}, "text.vocab_size='many' must be int, not str"),
        ({"evaluation__zero_shot": "scenes/digit"}, "evaluation.zero_shot='scenes/digit' must be a tuple"),
        ({"data__scene_kinds": (1, 2)}, "data.scene_kinds[0]=1 must be str, not int"),
        ({"model__image_mean": (0.5, "x", 0.5)}, "model.image_mean[1]='x' must be float, not str"),
        (
            {"model__image_std": (0.5, 0.5)},
            "model.image_mean=(0.48145466, 0.4578275, 0.40821073) and image_std=(0.5, 0.5)",
        ),
        ({"model__logit_bias_init": "x"}, "model.logit_bias_init='x' must be float, not str"),
        ({"text__causal": 1}, "text.causal=1 must be bool, not int"),
        (
            {"vision__pooling": "max"},
            "vision.pooling='max' must be one of 'class_token', 'mean', 'mean_then_norm', 'attention', 'perception'",
        ),
        ({"model__remat": "half"}, "model.remat='half' must be one of 'none', 'dots', 'named', 'attention', 'full'"),
        ({"model__compute_dtype": 16}, "model.compute_dtype=16 must be one of 'float32', 'bfloat16', 'float64'"),
        (
            {"vision__image_size": 33, "vision__patch_size": 8},
            "vision.image_size=33 is not divisible by vision.patch_size=8: use an image_size",
        ),
        ({"vision__patch_dropout": 1}, "vision.patch_dropout=1.0 must lie in [0, 1)"),
        ({"vision__patch_dropout": 0.99}, "vision.patch_dropout=0.99 must leave at least one of the 16 patches"),
        ({"optimizer__frozen": ("image",)}, "optimizer.frozen[0]='image' must be one of 'visual', 'text'"),
        ({"optimizer__first_moment_dtype": 16}, "optimizer.first_moment_dtype=16 must be one of 'param_dtype', 'bf"),
        ({"train__num_microbatches": 0}, "train.num_microbatches=0 must be at least 1"),
        ({"train__init_towers": ()}, "train.init_towers=() must be ('visual', 'text') or one of them"),
        (
            {"optimizer__frozen": ("visual",)},
            "optimizer.frozen=('visual',) would keep a random tower: name its weights in train.init_from, and 'visual' "
            "in train.init_towers",
        ),
        (
            {"optimizer__frozen": ("text",), "train__init_from": "runs/a", "train__init_towers": ("visual",)},
            "optimizer.frozen=('text',) would keep a random tower",
        ),
        (
            {"optimizer__frozen": ("visual",), "train__init_from": "runs/a", "vision__patch_dropout": 0.5},
            "vision.patch_dropout=0.5 has no effect on a frozen image tower, which sees all patches: set it to 0",
        ),
        ({"train__global_batch_size": 0}, "train.global_batch_size=0 must be at least 1"),
        ({"evaluation__batch_size": 0}, "evaluation.batch_size=0 must be at least 1"),
        ({"evaluation__num_examples": -1}, "evaluation.num_examples=-1 must be at least 0"),
    ],
)
def test_a_wrong_key_type_or_value_is_named_with_its_section(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_config(sections(**change))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "patch_size",
            32,
            "unknown vision.patch_size; vision has batch_norm, image_size, num_heads, stages, stem_width",
        ),
        ("stages", 3, "vision.stages=3 must be a tuple"),
        ("stages", (3, 4.0, 6, 3), "vision.stages[1]=4.0 must be int, not float"),
        ("stages", (3, 4, 6), "vision.stages=(3, 4, 6) must be the number of blocks"),
        ("image_size", 230, "vision.image_size=230 is not a multiple of 32, the stride of a ResNet: use 224 or 256"),
        ("stem_width", 63, "vision.stem_width=63 must be even"),
        ("batch_norm", "none", "vision.batch_norm='none' must be one of 'per_device', 'global'"),
    ],
)
def test_the_vision_section_of_a_resnet_has_keys_of_its_own(key, value, message):
    given = clip_rn50.get_config().to_dict()
    given["vision"][key] = value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_config(given)


@pytest.mark.parametrize("section", ["text", "data", "evaluation"])
def test_every_missing_key_is_named(section):
    for key in sections()[section]:
        given = sections()
        del given[section][key]
        with pytest.raises(ValueError, match=rf"^missing {section}\.{key}; {section} has "):
            make_config(given)


def test_unknown_and_missing_sections_are_named_together():
    given = sections()
    given["optimiser"] = given.pop("optimizer")
    with pytest.raises(
        ValueError, match=r"^unknown config.optimiser \(did you mean optimizer\?\), missing config.optimizer; "
    ):
        make_config(given)


class Silent(Tokenizer):
    """A tokenizer of which only the sizes matter."""

    def token_ids(self, text: str) -> list[int]:
        return []

    def files(self) -> dict[str, bytes]:
        return {}


def test_the_tokenizer_decides_the_end_token_and_must_fit():
    model = make_config(sections(text__vocab_size=300)).model
    tokenizer, larger = (Silent(8, vocab_size=size, sot_token=16, eot_token=17, vocabulary=b"") for size in (300, 301))
    assert with_tokenizer(model, tokenizer).text.eot_token == 17
    message = "text.vocab_size=300 is smaller than the tokenizer's vocabulary, 301: set text.vocab_size=301 or more"
    with pytest.raises(ValueError, match=f"^{message}$"):
        with_tokenizer(model, larger)


def test_a_recorded_config_is_read_back(tmp_path):
    record_config(sections(), tmp_path)
    assert load_config(tmp_path) == make_config(sections())
    record_config(sections(), tmp_path)  # the same again: a run that goes on


def test_a_workdir_of_another_config_names_the_keys_that_differ(tmp_path):
    record_config(sections(train__seed=0, optimizer__learning_rate=1e-3), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    message = (
        f"workdir {tmp_path} holds a run of another config: optimizer.learning_rate was 0.001, is 0.002; "
        "train.seed was 0, is 3. Use another --workdir, or the config it was started with"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        record_config(sections(train__seed=3, optimizer__learning_rate=2e-3, evaluation__num_examples=5), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_key_that_is_new_or_gone_counts_as_a_difference(tmp_path):
    old = sections(train__seed=0)
    old["train"]["forgotten"] = old["train"].pop("seed")
    record_config(old, tmp_path)
    with pytest.raises(ValueError, match=r"train.forgotten was 0, is None; train.seed was None, is 0\. "):
        record_config(sections(train__seed=0), tmp_path)


def test_what_changes_nothing_that_is_learned_may_change(tmp_path):
    record_config(sections(), tmp_path)
    changed = sections(
        data__path="elsewhere",
        data__num_workers=7,
        data__max_broken_share=0.5,
        sharding__fsdp=2,
        model__remat="named",
        train__num_microbatches=2,
        train__checkpoint_every=7,
        train__evaluate_every=7,
        train__keep_checkpoints=7,
        evaluation__zero_shot=(),
    )
    record_config(copy.deepcopy(changed), tmp_path)
    assert load_config(tmp_path) == make_config(changed)


MIXTURE = [
    {"kind": "webdataset", "name": "photos", "path": "DIR", "weight": 3, "min_side": 200},
    {"kind": "scenes", "name": "drawn", "num_examples": 1000, "weight": 1.0, "scene_kinds": ["digit"]},
]


def test_a_mixture_stands_in_the_config_or_in_a_file(tmp_path):
    (tmp_path / "mixture.json").write_text(json.dumps(MIXTURE))
    inline = make_config(sections(data__source="mixture", data__mixture=MIXTURE)).data
    given = sections(data__source="mixture", data__path=str(tmp_path / "mixture.json"))
    assert make_config(given).data == dataclasses.replace(inline, path=str(tmp_path / "mixture.json"))
    photos, drawn = inline.mixture
    assert (photos.weight, photos.min_side, photos.captions_field) == (3.0, 200, "")
    assert (drawn.num_examples, drawn.scene_kinds) == (1000, ("digit",))
    record_config(with_mixture(given), tmp_path)
    (tmp_path / "moved.json").write_text(json.dumps([{**MIXTURE[0], "path": "ELSEWHERE"}, MIXTURE[1]]))
    (tmp_path / "mixture.json").unlink()
    assert load_config(tmp_path).data.mixture == inline.mixture  # the record is whole
    moved = with_data_path(load_config(tmp_path).data, str(tmp_path / "moved.json"))
    assert moved.mixture == (dataclasses.replace(photos, path="ELSEWHERE"), drawn)
    assert with_data_path(make_config(sections()).data, "ELSEWHERE").path == "ELSEWHERE"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data.path=.*mixture.json of a mixture must be a JSON file with its sources: .*No such file"),
        ("[", r"data.path=.*mixture.json of a mixture must be a JSON file with its sources: Expecting value"),
        ("{}", r"data.path=.*mixture.json must hold a list of sources, as data.mixture does$"),
        ("[3]", r"^data.mixture\[0\]=3 must be a dict$"),
        (
            '[{"kind": "table", "nam": "a"}]',
            r"^unknown data.mixture\[0\].nam \(did you mean name\?\), missing data.mixture\[0\].name; data.mixture\[",
        ),
        ('[{"kind": "hdf5", "name": "a"}]', r"^data.mixture\[0\].kind='hdf5' must be one of 'scenes', 'webdataset', "),
        ('[{"kind": "table", "name": "a", "weight": "x"}]', r"^data.mixture\[0\].weight='x' must be float, not str$"),
    ],
)
def test_mistakes_in_the_file_of_a_mixture_are_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "mixture.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        make_config(sections(data__source="mixture", data__path=str(tmp_path / "mixture.json")))


def test_the_sources_of_a_mixture_may_move_and_not_change(tmp_path):
    record_config(sections(data__source="mixture", data__mixture=MIXTURE), tmp_path)
    moved = [{**MIXTURE[0], "path": "ELSEWHERE"}, MIXTURE[1]]
    record_config(sections(data__source="mixture", data__mixture=moved), tmp_path)
    with pytest.raises(ValueError, match=r"another config: data\.mixture\[0\]\.weight was 3, is 4\. Use another"):
        record_config(
            sections(data__source="mixture", data__mixture=[{**MIXTURE[0], "weight": 4}, MIXTURE[1]]), tmp_path
        )


def test_a_run_from_before_filters_and_mixtures_resumes(tmp_path):
    record_config(sections(), tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    for name in ("captions_field", "mixture", "min_side", "max_aspect", "caption_must_match"):
        del record["data"][name]
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "config.copy.json").unlink()
    assert load_config(tmp_path) == make_config(sections())
    record_config(sections(), tmp_path)
    with pytest.raises(ValueError, match=r"data.min_side was 0, is 9\. "):
        record_config(sections(data__min_side=9), tmp_path)


def damaged_config(workdir: Path, damage: str) -> None:
    file = workdir / "config.json"
    text = file.read_text()
    if damage == "missing":
        file.unlink()
    else:
        changes = {
            "cut": text[:99],
            "empty": "",
            "zeros": "\0" * 400,
            "list": "[1]",
            "edited": text.replace("7", "8", 1),
        }
        changes |= {"digit": text.replace("0.001", "0.003"), "key": text.replace("learning_rate", "learnhng_rate")}
        assert changes[damage] != text
        file.write_text(changes[damage])


DAMAGES = {
    "missing": "is missing",
    "cut": "cannot be read",
    "empty": "cannot be read",
    "zeros": "cannot be read",
    "list": "cannot be read",
    "digit": "is not what the run wrote (optimizer.learning_rate was 0.001, is 0.003)",
    "key": "is not what the run wrote (optimizer.learnhng_rate was missing, is 0.001; "
    "optimizer.learning_rate was 0.001, is missing)",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_config_is_named_and_read_from_its_copy_and_written_anew(tmp_path, damage, capsys):
    given = sections(optimizer__learning_rate=1e-3)
    record_config(given, tmp_path)
    whole = (tmp_path / "config.json").read_bytes()
    damaged_config(tmp_path, damage)
    assert load_config(tmp_path) == make_config(given)
    said = f"clip-jax: {tmp_path}/config.json {DAMAGES[damage]}"
    assert capsys.readouterr().err == f"{said}; config.copy.json is read. Remove that to have yours read\n"
    with pytest.raises(ValueError, match=r"optimizer.learning_rate was 0.001, is 0.5\. "):
        record_config(sections(optimizer__learning_rate=0.5), tmp_path)
    record_config(given, tmp_path)
    kept = "" if damage == "missing" else f"; the file as it was is {tmp_path}/config.json.damaged"
    assert capsys.readouterr().err == f"{said}: it is written anew{kept}\n"
    assert (tmp_path / "config.json").read_bytes() == whole
    record_config(given, tmp_path)
    assert capsys.readouterr().err == ""


def test_a_damaged_copy_changes_nothing(tmp_path, capsys):
    record_config(sections(), tmp_path)
    file = tmp_path / "config.copy.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert load_config(tmp_path) == make_config(sections())
    record_config(sections(), tmp_path)
    assert capsys.readouterr().err == ""
    assert json.loads(file.read_text())["config"] == json.loads((tmp_path / "config.json").read_text())


def test_a_damaged_config_without_a_copy_does_not_block_its_run(tmp_path, capsys):
    record_config(sections(), tmp_path)
    (tmp_path / "config.copy.json").unlink()
    damaged_config(tmp_path, "cut")
    with pytest.raises(ValueError, match=r"config\.json is damaged: the command that trained the run writes it anew$"):
        load_config(tmp_path)
    record_config(sections(), tmp_path)
    assert capsys.readouterr().err == (
        f"clip-jax: {tmp_path}/config.json cannot be read and has no copy, so nothing says whether the run was started "
        f"with this command's config: it is written anew from that; the file as it was is "
        f"{tmp_path}/config.json.damaged\n"
    )
    assert load_config(tmp_path) == make_config(sections())


def test_a_refusal_names_the_command_of_a_new_run_from_this_one(tmp_path, monkeypatch):
    workdir = tmp_path / "my runs"
    (workdir / "checkpoints" / "70").mkdir(parents=True)
    record_config(sections(), workdir)
    words = ["clip-jax", "train", "--config=tiny", "--workdir", str(workdir), "--config.train.total_steps=9"]
    monkeypatch.setattr("sys.argv", words)
    command = (
        "A new run that starts from its weights: clip-jax train --config=tiny --config.train.total_steps=9 "
        f"'--config.train.init_from={workdir}' '--workdir={workdir}_from_70'"
    )
    for change in ({"train__total_steps": 9}, {"optimizer__learning_rate": 0.5}):
        with pytest.raises(ValueError, match=f"{re.escape(command)}$"):
            record_config(sections(**change), workdir)
    with pytest.raises(ValueError, match=r"or the config it was started with$"):  # weights of another shape do not fit
        record_config(sections(train__total_steps=9, text__width=256), workdir)


def test_a_folder_that_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"/nowhere is not the workdir of a run: it has no config\.json$"):
        load_config(tmp_path / "nowhere")


def test_the_environment_is_recorded_even_without_git(tmp_path, monkeypatch):
    record_config(sections(), tmp_path)
    recorded = json.loads((tmp_path / "environment.json").read_text())
    assert recorded["versions"]["jax"] == jax.__version__
    assert len(recorded["devices"]) == 8

    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment() == {**recorded, "commit": None}


def test_the_commit_is_that_of_the_code():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    here = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert environment()["commit"] == (here.stdout.strip() or None)


def test_the_path_of_a_drawn_part_of_a_mixture_is_refused(tmp_path):
    parts = [MIXTURE[0], {**MIXTURE[1], "path": "photos"}]
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    for given in ({"data__mixture": parts}, {"data__path": str(tmp_path / "parts.json")}):
        with pytest.raises(ValueError, match=r"data\.mixture\[1\]\.kind='scenes' draws its own pictures"):
            with_found_data(sections(data__source="mixture", **given))


@pytest.mark.parametrize("source", ["auto", "", "scenes"])  # drawn scenes take no path
def test_a_folder_that_is_called_scenes_is_a_folder(source, tmp_path, monkeypatch):
    (tmp_path / "scenes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_found_data(sections(data__source=source, data__path="scenes"))["data"]["source"] == "folder"
