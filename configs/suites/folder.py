"""Your own pictures: a folder a class, or a CSV or Parquet with the columns image and label.

    clip-jax evaluate --config=suites/folder --config.suite.datasets="('folder:photos',)" --model=ViT-B/32 --output=out

DIR holds a folder a class, or test/, and for probes train/ and val/, with a folder a class each. `table:FILE`
takes a table, `table:DIR` a folder of test.csv, train.csv and validation.csv. The sets of the other suites may be
added: `tfds/NAME/TEST/TRAIN`, `sklearn/digits`, `cifar10`, `scenes/shape`.
"""

from ml_collections import ConfigDict

from configs.suites import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.suite.name = "Own pictures"
    config.suite.datasets = ("folder:photos",)
    return config
