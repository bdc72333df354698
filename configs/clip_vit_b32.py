"""ViT-B/32 as in the paper, and the base of every other config here: each key, its unit and where it comes from.

    clip-jax train --config=clip_vit_b32 --config.data.path='TARS/{00000..39999}.tar' --workdir=runs/vit_b32

Hardware and time: the paper gives those of its largest models (sec. 2.5): RN50x64 took 18 days on 592 V100 GPUs,
ViT-L/14 12 days on 256.
Result, the paper's and not ours: zero-shot ImageNet top-1 63.2 % of the released weights, with 80 prompts ensembled.
The 400M pairs are not public, and data.path has to name others.
"""

from ml_collections import ConfigDict, config_dict

from configs.model_sizes import MODEL_SIZES


def get_config() -> ConfigDict:
    config, sizes = ConfigDict(), MODEL_SIZES["ViT-B/32"]

    config.model = ConfigDict()
    config.model.embed_dim = sizes["model"]["embed_dim"]  # channels of the joint space; table 20
    config.model.activation = "quick_gelu"  # of the released weights
    config.model.text_activation = ""  # of the text tower where it is another; "": the same
    config.model.decoder_depth = 0  # blocks of a decoder of captions, for loss.caption_weight; 0: none
    config.model.layer_norm_eps = 1e-5
    config.model.projection = "linear"  # sec. 2.3; "mlp" is non-linear
    config.model.logit_scale_init = 1 / 0.07  # sec. 2.5
    config.model.logit_bias_init = config_dict.placeholder(float)  # None: only the sigmoid loss has a bias
    config.model.image_mean = (0.48145466, 0.4578275, 0.40821073)  # of pixels in [0, 1]; the released weights'
    config.model.image_std = (0.26862954, 0.26130258, 0.27577711)
    config.model.compute_dtype = "bfloat16"  # mixed precision, sec. 2.5; there it was float16
    config.model.param_dtype = "float32"
    config.model.remat = "full"  # gradient checkpointing, sec. 2.5; "named", "dots" and "none" take more memory

    config.vision = ConfigDict()  # table 20
    config.vision.image_size = sizes["vision"]["image_size"]  # pixels
    config.vision.patch_size = sizes["vision"]["patch_size"]  # pixels
    config.vision.pooling = "class_token"
    config.vision.has_class_token = True
    config.vision.pool_heads = 0  # of a learned query that pools; 0: as in the blocks
    config.vision.pool_mlp_dim = 0  # channels, of that query's MLP; 0: as in the blocks
    config.vision.rotary_grid = 0  # patches along a side that rotary positions count in; 0: those of image_size
    config.vision.position_init_scale = 1.0  # times width^-0.5
    config.vision.patch_dropout = 0.0  # share of patches left out in training; 0.5 in Li et al. 2022 (FLIP)
    config.vision.width = sizes["vision"]["width"]  # channels
    config.vision.depth = sizes["vision"]["depth"]  # blocks
    config.vision.num_heads = sizes["vision"]["num_heads"]
    config.vision.mlp_dim = 4 * config.vision.get_ref("width")  # channels

    config.text = ConfigDict()  # table 20; sec. 2.4
    config.text.context_length = sizes["text"]["context_length"]  # tokens, start and end included
    config.text.vocab_size = sizes["text"]["vocab_size"]  # table 18
    config.text.causal = True
    config.text.pooling = "eot"
    config.text.projection_bias = False  # sec. 2.3
    config.text.width = sizes["text"]["width"]  # channels
    config.text.depth = sizes["text"]["depth"]  # blocks
    config.text.num_heads = sizes["text"]["num_heads"]
    config.text.mlp_dim = 4 * config.text.get_ref("width")  # channels

    config.loss = ConfigDict()
    config.loss.kind = "contrastive"  # sec. 2.3; "sigmoid" is SigLIP's, "bag_of_words" and "language_model" fig. 2's
    config.loss.block_size = 0  # rows of similarities at once, 0 for all of a device's; 256 where they do not fit

    config.loss.caption_weight = 0.0  # of a caption loss beside it, as in Yu et al. 2022 (CoCa); 0: none

    config.data = ConfigDict()
    config.data.source = "auto"  # the kind that the files at the path have; or "webdataset", "folder", "table", ...
    config.data.path = ""  # of the data: --config.data.path=DIR, a file or a pattern
    config.data.split = ""  # of a tfds data set
    config.data.num_examples = 0  # of a drawn epoch
    config.data.scene_kinds = ()  # kinds of drawn scenes
    config.data.image_field = ""  # a table's column of pictures; "" is the usual one
    config.data.separator = ""  # of a text table, as tab; "" is what its header says
    config.data.link_root = ""  # folder below which links and a table's paths may lead; "" for their own folder
    config.data.captions_field = ""  # a column, feature or JSON key; "" is the usual one
    config.data.caption_weights = ()  # of several captions_field with commas, as (0.3, 0.7); () for one field
    config.data.mixture = ()  # sources of data.source="mixture": dicts of kind, name, path, weight, ...
    config.data.min_side = 0  # pixels: smaller images are left out
    config.data.max_aspect = 0.0  # longer over shorter side; 0: any
    config.data.min_caption_length = 0  # characters
    config.data.max_caption_length = 0  # characters; 0: any
    config.data.caption_must_match = ""  # regular expression
    config.data.caption_must_not_match = ""  # regular expression
    config.data.num_validation = 10_000  # last records, held out; not in the paper
    config.data.validation_path = ""  # or data of its own to validate on, with num_validation=0
    config.data.repeat = False  # True allows a batch larger than the data
    config.data.min_crop_scale = 1.0  # of the shorter side: a random square crop is the only augmentation, sec. 2.4
    config.data.orient = False  # True turns pictures upright by their EXIF tag; evaluation ignores it, as the reference
    config.data.decode = "fast"  # of JPEGs to train on; "exact" is Pillow, as in the evaluation
    config.data.tokenizer = "clip_bpe"  # sec. 2.4
    config.data.tokenizer_file = ""  # the file in the Hub's cache
    config.data.pack_text = False  # one caption a row, as in the paper; True gives the same result faster
    config.data.num_workers = 8  # processes
    config.data.max_broken_share = 0.01
    config.data.seed = 0

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-4  # the peak; table 20
    config.optimizer.weight_decay = 0.2  # times the learning rate; table 18
    config.optimizer.b1 = 0.9  # table 18
    config.optimizer.b2 = 0.98  # table 18, of ViTs
    config.optimizer.eps = 1e-6  # table 18, of ViTs
    config.optimizer.warmup_steps = 2000  # table 18
    config.optimizer.max_logit_scale = 100.0  # sec. 2.5
    config.optimizer.learn_logit_scale = True  # sec. 2.3; False keeps model.logit_scale_init
    config.optimizer.first_moment_dtype = "param_dtype"  # "bfloat16" halves it; sec. 2.5 has a half-precision Adam
    config.optimizer.ema_decay = 0.0  # of the average that is evaluated and exported; 0: none, as in the paper
    config.optimizer.frozen = ()  # towers: ("visual",) in Zhai et al. 2021 (LiT)

    config.sharding = ConfigDict()
    config.sharding.data = -1  # all devices; each computes its rows of the similarities, sec. 2.5
    config.sharding.fsdp = 1
    config.sharding.tensor = 1

    config.train = ConfigDict()
    config.train.global_batch_size = 32_768  # pairs; table 18
    config.train.num_microbatches = 1  # parts in which the towers see a batch; all pairs remain negatives
    config.train.total_steps = 390_625  # 32 epochs of 400M pairs, 12.8e9 samples; table 18 and sec. 2.2
    config.train.checkpoint_every = 1000  # steps
    config.train.evaluate_every = 10_000  # steps
    config.train.keep_checkpoints = 3
    config.train.hang_timeout_s = 1800  # seconds without a step, after which the run ends
    config.train.init_from = ""  # random parameters
    config.train.init_towers = ("visual", "text")  # that init_from gives
    config.train.seed = 0

    config.evaluation = ConfigDict()
    config.evaluation.zero_shot = ()  # labelled sets: scenes/NAME or tfds/NAME/SPLIT
    config.evaluation.data_dir = ""  # folder of prepared tfds sets
    config.evaluation.link_root = ""  # folder below which links and paths in labelled sets may lead; "" for none
    config.evaluation.templates = ""  # the labelled set's own
    config.evaluation.num_examples = 0  # all
    config.evaluation.batch_size = 1024  # over all devices
    return config
