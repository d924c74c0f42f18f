"""torch-em's distance U-Net from scratch on an exported split, for a budget of CPU time.

    python benchmarks/peers/train_torch_em.py --data=DIR --out=OUT --minutes=30

As its own experiments train it: UNet2d with three sigmoid outputs (foreground, distance to the
centre, distance to the edge), its PerObjectDistanceTransform, Dice of all three with distances
masked in the background, its default loader (standardised images, flips and right angles) and
trainer (AdamW at 1e-3, halved where the validation stalls); best weights by validation loss;
decoded by its seeded watershed, whose three thresholds have the best accuracy at IoU 0.5 (elf's
matching) on the validation images. Its experiments take 64 features, which few steps fit into the
time of one core: the default here is UNet2d's own, 32.
"""

import copy
import itertools

import common

EPOCHS = 50
BATCH = 4
FOREGROUND = (0.4, 0.5, 0.6)
CENTRE = (0.3, 0.4, 0.5, 0.6)
EDGE = (0.4, 0.5, 0.6, 0.7)


def tune(outputs, labels, segment):
    """(accuracy at IoU 0.5, thresholds), the best of the grid."""
    from elf.evaluation import matching

    def accuracy(chosen):
        scores = [matching(segment(output, *chosen), label, threshold=0.5)["segmentation_accuracy"]
                  for output, label in zip(outputs, labels, strict=True)]
        return sum(scores) / len(scores)

    scores = {c: accuracy(c) for c in itertools.product(CENTRE, EDGE, FOREGROUND)}
    best = max(scores, key=scores.get)
    return float(scores[best]), best


def seconds_of_a_step(network, loss, loader, steps):
    """CPU seconds of a step, by a copy of the network whose weights stay as they are."""
    network = copy.deepcopy(network)
    steps.watch(network)
    while len(steps.cpu) < 4:
        for image, target in loader:
            loss(network(image), target).backward()
            if len(steps.cpu) >= 4:
                break
    seconds = steps.seconds()
    steps.cpu.clear()
    return seconds


def main():
    def extra(parser):
        parser.add_argument("--features", type=int, default=32)
        parser.add_argument("--lr", type=float, default=1e-3)

    args = common.arguments(__doc__, extra)
    import numpy as np
    import torch
    import torch_em
    from torch_em.loss import DiceBasedDistanceLoss
    from torch_em.model import UNet2d
    from torch_em.transform.label import PerObjectDistanceTransform
    from torch_em.transform.raw import standardize
    from torch_em.util.prediction import predict_with_padding
    from torch_em.util.segmentation import watershed_from_center_and_boundary_distances

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    colours = common.read(args.data, "val")[0][0].ndim == 3
    network = UNet2d(in_channels=3 if colours else 1, out_channels=3, final_activation="Sigmoid",
                     initial_features=args.features)
    loss = DiceBasedDistanceLoss(mask_distances_in_bg=True)

    def loader(part, count):
        files = {kind: [str(path) for path in common.paths(args.data, part, kind)]
                 for kind in ("images", "labels")}
        return torch_em.default_segmentation_loader(
            files["images"], None, files["labels"], None, batch_size=BATCH,
            patch_shape=(common.CROP, common.CROP), label_transform=PerObjectDistanceTransform(),
            is_seg_dataset=False, ndim=2, n_samples=count, shuffle=part == "train",
            pin_memory=False)

    clock = common.Clock(args.minutes)
    steps = common.Steps(clock)
    val = loader("val", None)
    step = seconds_of_a_step(network, loss, loader("train", None), steps)
    epochs, per_epoch = common.schedule(clock.left(), step, len(val) * step / 3, EPOCHS)
    print(f"{step:.2f} CPU s a step: {epochs} epochs of {per_epoch} steps", flush=True)
    steps.watch(network)
    trainer = torch_em.default_segmentation_trainer(
        name="model", model=network, train_loader=loader("train", per_epoch * BATCH),
        val_loader=val, loss=loss, metric=loss, learning_rate=args.lr, device="cpu", logger=None,
        compile_model=False,  # it would compile in other processes, which no clock sees
        scheduler_kwargs={"mode": "min", "factor": 0.5, "patience": max(1, epochs // 10)},
        save_root=str(args.out))
    try:
        trainer.fit(epochs=epochs)
    except common.TimeUp:
        print("stopped: the time is used up", flush=True)
    trainer.load_checkpoint("best")
    training = clock.result()

    network.eval()

    def outputs_of(image):
        image = standardize(image.astype("float32"))
        image = image.transpose(2, 0, 1) if colours else image
        with torch.no_grad():
            return predict_with_padding(network, image, min_divisible=(16, 16), device="cpu",
                                        with_channels=colours).squeeze()

    def segment(output, centre, edge, foreground):
        return watershed_from_center_and_boundary_distances(
            output[1], output[2], output[0], centre, edge, foreground)

    images, labels = common.read(args.data, "val")
    accuracy, thresholds = tune([outputs_of(image) for image in images], labels, segment)
    predicting = common.predict(args, lambda image: segment(outputs_of(image), *thresholds))
    common.finish(
        args, peer="torch_em", version=torch_em.__version__, torch=torch.__version__,
        parameters=sum(p.numel() for p in network.parameters()), batch=BATCH,
        steps=len(steps.cpu), epochs=epochs, validation_accuracy=accuracy,
        thresholds=dict(zip(("centre", "edge", "foreground"), thresholds, strict=True)),
        **training, predict_cpu_seconds=predicting)


if __name__ == "__main__":
    main()
