"""The paper's evaluation: its 27 data sets, zero-shot with five sets of prompts, linear probes, few-shot, retrieval.

    clip-jax evaluate --config=suites/paper --model=ViT-B/32 --data_dir=DIR --output=runs/paper

DIR holds sets prepared by tensorflow-datasets and folders of those that it does not have; a missing set is reported
with the command that prepares it. --config.SECTION.KEY=VALUE changes a key. This file is the base of the other suites
and holds every key.

Hardware: any that encodes 1.9 million images in time; `--config.suite.num_examples=1000` takes a sample.
Expected, ImageNet top-1 of the released ViT-B/32 with 80 prompts: 63.2 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.suite = ConfigDict()
    config.suite.name = "The paper's 27 data sets"
    config.suite.datasets = (
        "food101", "cifar10", "cifar100", "birdsnap", "sun397", "stanford_cars", "fgvc_aircraft", "voc2007", "dtd",
        "oxford_pets", "caltech101", "flowers102", "mnist", "fer2013", "stl10", "eurosat", "resisc45", "gtsrb", "kitti",
        "country211", "patch_camelyon", "ucf101", "kinetics700", "clevr_counts", "hateful_memes", "rendered_sst2",
        "imagenet",
    )  # fmt: skip
    config.suite.measures = ("zero_shot", "linear_probe", "few_shot")  # and retrieval, robustness, overlap, bias
    config.suite.data_dir = "data"  # --data_dir replaces it
    config.suite.link_root = ""  # folder below which links and paths in the sets may lead; "" for none
    config.suite.num_examples = 0  # of each split, spread evenly over it; 0 takes all
    config.suite.batch_size = 256  # images or texts encoded at once, over all devices
    config.suite.compute_dtype = "float32"  # or bfloat16
    config.suite.seed = 0  # of bootstrap draws and few-shot draws

    config.zero_shot = ConfigDict()
    config.zero_shot.prompts = ("bare", "one", "own", "imagenet7", "imagenet80")  # "own" are the data set's
    config.zero_shot.headline = "own"  # which of them the tables show (sec. 3.1.4)
    config.zero_shot.templates = ()  # "own" for sets that have none; () is "a photo of a {}."
    config.zero_shot.num_resamples = 1000  # bootstrap draws
    config.zero_shot.confidence = 0.95  # of the intervals
    config.zero_shot.num_mistakes = 12  # pictures of the most confident mistakes, a set

    config.linear_probe = ConfigDict()
    config.linear_probe.features = "pooled"  # before the projection (appendix A); "joint" after it, of unit length
    config.linear_probe.full_sweep = False  # all 97 strengths instead of the paper's search
    config.linear_probe.num_parallel = 1  # strengths fitted at once: more where device memory allows, 1 on a CPU

    config.few_shot = ConfigDict()
    config.few_shot.shots = (1, 2, 4, 8, 16)  # labels a class (sec. 3.1.5)
    config.few_shot.num_seeds = 5  # draws

    config.retrieval = ConfigDict()
    config.retrieval.source = "run"  # the run's held-out pairs; or KIND:PATH, as webdataset:DIR, or tfds:DIR/NAME:SPLIT
    config.retrieval.num_examples = 0  # pictures; 0 takes all
    config.retrieval.prompt_prefix = ""  # before each caption; "a photo of" in the paper (appendix E.1)

    config.robustness = ConfigDict()
    config.robustness.reference = ""  # the set without shift
    config.robustness.shifts = ()  # the sets under shift
    config.robustness.reference_models = ""  # JSON {model: {set: accuracy}} for effective robustness; "" for none
    config.robustness.baseline = ""  # one of them, for relative robustness
    config.robustness.adapt = False  # a probe trained on the reference, under each shift (fig. 14)

    config.overlap = ConfigDict()
    config.overlap.training = "run"  # the run's training images; or KIND:PATH as for retrieval
    config.overlap.num_training = 0  # of them; 0 takes all
    config.overlap.embedding = "perceptual"  # or "model", the evaluated model's own
    config.overlap.threshold = 0.95  # similarity at or above it is a duplicate: inspect the pairs, then choose
    config.overlap.num_pairs = 12  # drawn around the threshold

    config.bias = ConfigDict()
    config.bias.people = ""  # CSV of pictures of people and their groups, your own
    config.bias.image_column = "image"
    config.bias.group_columns = ("group",)
    return config
