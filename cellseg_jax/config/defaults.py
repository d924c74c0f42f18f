"""The default config: every key with its unit and meaning, and which keys are values."""

from ml_collections import ConfigDict

from cellseg_jax import augment, losses, normalize

LOSSES = (*losses.LOSSES, *losses.REGRESSION)
# Hyper-parameters that the compiled step takes as arrays: {key: (name in the step, dtype)}; dtype
# None is that of the parameters. They are values, not structure: the program must not depend on
# them, but for whether they are 0 (step.spec.Spec.inactive).
TRACED = {
    "seed": ("seed", "uint32"),
    **{f"optimizer.{name}": (name, None) for name in (
        "lr", "weight_decay", "momentum", "b1", "b2", "rms_decay", "warmup", "clip", "ema")},
    "optimizer.schedule_power": ("power", None),
    "optimizer.schedule_gamma": ("gamma", None),
    "optimizer.schedule_every": ("every", None),
    "train.prune": ("prune", None),
    **{f"loss.{name}": (f"loss.{name}", None) for name in LOSSES},
    **{f"augment.{name}": (f"augment.{name}", None)
       for name in sorted((*augment.AUGMENTATIONS, *augment.OPTIONS))},
    "model.dropout": ("dropout", None),
}
# Runs that differ in these keys alone train together in one compiled program: the traced ones and
# those that only the host reads.
VALUE_KEYS = (
    *TRACED,
    "data.split",
    "data.split_by",
    "data.split_seed",
    "data.strata",
    "data.train_fraction",
    "data.keep_blank",
    "data.balance",
    "data.oversample",
    "data.windows",
    "optimizer.plateau_metric",
    "optimizer.plateau_factor",
    "optimizer.plateau_patience",
    "optimizer.plateau_cooldown",
    "optimizer.plateau_min_lr",
    "train.epochs",
    "train.steps",
    "train.weights",
    "train.prune_iterations",
    "train.prune_how",
    "train.early_stopping",
    "train.early_stopping_mode",
)
# A run may be continued with other values of these: they do not change what it computes.
FREE_KEYS = ("data.root", "data.cache", "data.threads", "data.residence", "eval.",
             "train.checkpoint_minutes")


def default() -> ConfigDict:
    """The default run: report 0's U-Net with Adam. Model and dataset options join in `complete`."""
    config = ConfigDict(type_safe=False)  # `set_value` checks types and names the key
    config.seed = 0  # of everything random in training: weights, data order, augmentation, dropout
    config.data = dict(
        name="dsb2018",
        root="",  # the unpacked dataset
        only_size=(),  # (height, width): read only images of exactly that many pixels; () = all
        strata=(),  # train and score only on images of these strata (class, modality); () = all
        size=(512, 512),  # height, width of the network's input (grid = 1), pixels
        fit="resize",  # how an image comes to that size: resize | center_crop | random_crop | pad
        # Images and labels are rescaled before they are fitted, each by its own factor, so that
        # the median cell of each has this diameter, in pixels; 0 = as they are. Prediction does not
        # know the cells: it looks twice, the second time with the factor of the cells it has found.
        diameter=0.0,
        # Or so that a pixel has this size, in micrometres: of files that know theirs; 0 = as they
        # are. Not together with data.diameter.
        pixel_size=0.0,
        grid=1,  # patches per side that the fitted image is cut into, without overlap
        # Rotation and the other augment.GEOMETRIC move the pixels of the whole fitted image, which
        # is cut into patches afterwards; False: the pixels of each patch by itself.
        augment_before_grid=False,
        keep_blank=True,  # train on patches and images without foreground too
        channels="rgba",  # gray | rgb | rgba
        # Which channels of a file the network sees, in place of `channels`: numbers from 0 or
        # names, with commas, such as "1" or "0,2" or "DAPI,GFP"; "" = all of gray or RGB. Each is
        # normalised by its own range. Prediction takes the same (predict --channels: others).
        channel_index="",
        # Files with several planes: slices (every plane of Z and time is a sample) | max | mean
        # (over the planes along Z) | the number of one of them, from 0; "" = files have one plane.
        z="",
        normalize="minmax",  # which range of the whole image becomes [0, 1]
        # normalize="percentile": which two become 0 and 1; what lies beyond them is not clipped.
        percentiles=normalize.PERCENTILES,
        target="foreground",  # what the network learns from the label
        num_classes=2,  # with target="classes": classes, background included
        contour_width=2,  # with target="contour": pixels of a cell's rim
        num_rays=32,  # with target="star": rays from each pixel to the edge of its cell
        weight_w0=10.0,  # with target="boundary": how much a gap between touching cells weighs more
        weight_sigma=5.0,  # with target="boundary": width of such gaps, pixels
        # Fractions (train, validation, test); or "official", the dataset's own; or a file with
        # the names of each part, such as another run's split.json; or a fold of a
        # cross-validation, "fold:0/5" (data.folds has its options).
        split=(0.8, 0.1, 0.1),
        # What fractions place as a whole: group (a case stays together) | image. By image, other
        # images of the test cases are trained on, and scores are too high: it shows by how much.
        split_by="group",
        split_seed=0,
        # Share of the training images that is used: 0.5 for a learning curve. Smaller shares lie
        # within larger ones.
        train_fraction=1.0,
        balance=False,  # train on every stratum (class, modality) equally often
        windows=1,  # with fit="random_crop": windows that an epoch draws from each image
        oversample=0.0,  # share of training rows that are sure to hold foreground
        copies=0,  # augmented variants of each training sample, always the same ones; 0 = online
        mix=(),  # other datasets to train on too, as "bbbc039:DIR"
        mix_copies=True,  # with copies: augmented variants of the images of mix too
        blank_images=0,  # background-only images of data.size to train on too: black, never copied
        cache="",  # folder of decoded images; "" = the user's cache folder
        threads=2,  # reader threads of the streamed path
        residence="auto",  # device | host: where the decoded images lie; auto = device if they fit
    )
    # Every augmentation as (probability, strength); then what some of them share.
    config.augment = {name: (0.0, 1.0) for name in augment.AUGMENTATIONS} | augment.OPTIONS
    config.model = dict(name="unet")
    # Every loss as a weight, 0 = off; then the options of the losses. Targets that regress have
    # other default weights (targets.TARGETS[...].losses), taken where these are not changed.
    config.loss = {name: 0.0 for name in LOSSES}
    for name in LOSSES:
        config.loss.update(losses.options(name))
    config.loss.dice = config.loss.focal = 1.0
    config.optimizer = dict(
        name="adam",
        lr=5e-3,
        weight_decay=3e-5,  # added to the gradient (coupled), as torch does; adamw: decoupled
        momentum=0.0,  # sgd, rmsprop
        nesterov=False,  # sgd
        b1=0.9,  # adam, adamw, adamax
        b2=0.999,  # adam, adamw, adamax
        amsgrad=False,  # adam, adamw: keep the largest second moment
        rms_decay=0.99,  # rmsprop: of the squared gradient (torch's alpha)
        schedule="constant",  # constant | polynomial | cosine | exponential | step | plateau
        schedule_power=0.9,  # polynomial: lr * (1 - progress) ** power
        schedule_gamma=0.9,  # exponential: factor each epoch (or step); step: each schedule_every
        schedule_every=30,  # step: epochs (or steps) between two cuts by schedule_gamma
        schedule_per="epoch",  # epoch | step: how often the rate changes, unit of warmup and every
        warmup=0,  # first epochs (or steps) of a linearly rising rate; then the schedule begins
        plateau_metric=("loss", "min"),  # schedule="plateau": validation metric that must improve
        plateau_factor=0.1,  # what the rate is multiplied by when it does not
        plateau_patience=10,  # patience, in validations without improvement
        plateau_cooldown=0,  # validations after a cut that do not count
        plateau_min_lr=0.0,  # the rate is not cut below
        clip=0.0,  # largest norm of the gradient over all parameters; 0 = no limit
        accumulate=1,  # micro-batches that a batch is split into, to save memory
        ema=0.0,  # decay of the averaged weights that are validated and predict; 0 = no averaging
    )
    config.train = dict(
        epochs=100,  # passes over the training images
        steps=0,  # optimiser steps; 0 = epochs decide
        batch_size=16,  # images per step, over all devices
        precision="float32",  # float32 | bfloat16 compute; float64 (with JAX_ENABLE_X64) for proofs
        best=("dice_mean", "max"),  # validation metric that chooses the best checkpoint
        early_stopping=0,  # 0 = never, else see early_stopping_mode
        # patience: that many validations without a better score end the run. minimum: after that
        # many epochs the first validation loss that is not below the one before does.
        early_stopping_mode="patience",
        checkpoint_minutes=10.0,  # between timed saves
        # To start from: a file of PyTorch weights (.pt, .npz, .safetensors), the folder of a run,
        # or in a study row:NAME, the run of the same repeat of another row.
        weights="",
        # Of the weights of the convolutions that it starts from, some are set to 0 and stay 0: the
        # share of what remains that each of prune_iterations takes, as `analyze --analysis=pruning`
        # prunes. 0.25 and 10 leave 0.75 ** 10 = 6 %; whole weights or filters, so small layers
        # keep more.
        prune=0.0,
        prune_iterations=1,
        prune_how="l1_layers",  # which weights: pruning.METHODS; random ones are those of seed
        remat=False,  # keep less of the forward pass for the backward pass: less memory, slower
        log_gradients=False,  # gradients.jsonl: mean absolute gradient of each layer and epoch
    )
    config.eval = dict(
        every=1,  # epochs between validations
        batch_size=16,
        threshold=0.5,  # of the probability
        decode="watershed",  # how a mask becomes instances: components | watershed
        watershed_h=1.0,  # pixels a neck must be thinner than a cell to be cut; larger cuts less
        # Pixels; smaller instances are dropped. -1: half of the 1st percentile of the areas of the
        # training cells, which the run keeps (environment.json, training_cells.least_area).
        min_size=0,
        nms=0.4,  # star: of two outlines that overlap by more than this share, one is dropped
        star_grid=1,  # star: outlines of every 1st, 2nd or 4th row and column only, to save time
        flow_error=0.4,  # flow: cells whose flows differ by more are dropped; 0 keeps all
        smooth=1.0,  # distance: sigma in pixels, by which distances are smoothed
        seed_depth=0.1,  # distance: how much nearer to its centre than around a seed must be
        overlap=0.25,  # of neighbouring tiles, as a fraction of the tile; 0: side by side
        report_compat=False,  # also report 2's scores with its mistakes, labelled; one output only
        # Also Hausdorff distance, surface Dice, Rand error and variation of information, which take
        # long: the tolerance of surface Dice in pixels; 0 = none of them.
        surface=0.0,
        panels=12,  # pictures of test predictions: a third each the worst, the median, the best
    )
    config.lock()
    config.data.unlock()  # the options of dataset and model are not known yet
    config.model.unlock()
    return config
