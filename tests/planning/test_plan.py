import dataclasses
import json
import subprocess
import sys

import jax
import pytest
from PIL import Image

from clip_jax.config.experiment import make_config
from clip_jax.models import ResNetConfig
from clip_jax.planning.fit import Setting
from clip_jax.planning.plan import as_record, describe
from clip_jax.planning.step import compile_step
from clip_jax.planning.topology import CHIPS
from configs import tiny

TINY = make_config(tiny.get_config().to_dict())


@pytest.fixture(scope="module")
def step():
    return compile_step(TINY, jax.devices()[:1])


def test_the_command_writes_what_it_prints(tmp_path, compile_once):
    flags = ["--config=tiny", "--config.sharding.fsdp=2", f"--output={tmp_path / 'new' / 'plan'}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "clip_jax", "plan", *flags], capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "new" / "plan" / "plan.json").read_text())
    assert sorted(file.name for file in (tmp_path / "new" / "plan").iterdir()) == ["memory.png", "plan.json"]
    with Image.open(tmp_path / "new" / "plan" / "memory.png") as picture:
        assert picture.width > 600
    assert record["settings"] == {"remat": "full", "fsdp": 2, "num_microbatches": 1}
    assert (record["num_devices"], record["parameters"], record["samples"]) == (8, 322_113, 128)
    assert record["mfu"] is record["hours"] is None  # of a CPU's peak nothing is known
    assert done.stderr.startswith("compiling for 8 cpu --config.model.remat=full --config.sharding.fsdp=2")


def test_the_table_has_three_digits(step):
    step = dataclasses.replace(
        step, chip=CHIPS["TPU v5 lite"], executed_flops=123_456 * 10**12, bytes_moved=819 * 10**6
    )
    rows = [line.rsplit("  ", 1) for line in describe(TINY, "here", Setting.of(TINY), step).splitlines()]
    table = {row[0].strip(): row[1].strip() for row in rows[2:] if len(row) == 2}
    assert table["TFLOPs of a step, all devices"] == "123,456"
    assert table["GB to and from a device's memory in a step"] == "0.819"
    assert table["lower bound of a step, s: compute, memory, network"].startswith("627, 0.00100, ")


@pytest.mark.parametrize(("num_microbatches", "said"), [(1, False), (4, True)])
def test_settings_of_a_resnet_that_change_what_is_learned_say_so(step, num_microbatches, said):
    vision = ResNetConfig(image_size=64, stages=(1, 1, 1, 1), stem_width=8, num_heads=4)
    resnet = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, vision=vision))
    setting = Setting("full", 1, num_microbatches)
    assert as_record(resnet, "here", setting, step)["changes_what_is_learned"] == said
    assert ("smaller parts" in describe(resnet, "here", setting, step)) == said
