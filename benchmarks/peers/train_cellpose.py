"""Cellpose (version 3 network) from scratch on an exported split, for a budget of CPU time.

    python benchmarks/peers/train_cellpose.py --data=DIR --out=OUT --minutes=30

As its command line trains from scratch: SGD at 0.2, batches of 8 crops, its own warm-up and
final decay, percentiles 1 to 99, random turns and scales, images with fewer than 5 cells left
out, and the mean diameter 17 of its nuclei model. Its epochs are shortened so that about 500, its
default, fill the time. The cell probability and the flow threshold are those of the best AP at
IoU 0.5 (its own function) on the validation images. Its seeds are fixed inside: --seed sets the
initial weights alone.
"""

import itertools

import common

EPOCHS = 500
CELL_PROBABILITIES = (-2.0, -1.0, 0.0, 1.0)
FLOW_ERRORS = (0.4, 0.8)
BATCH = 8
OPTIONS = dict(batch_size=BATCH, bsize=common.CROP, channels=[0, 0], learning_rate=0.2, SGD=True,
               weight_decay=1e-5, min_train_masks=5)


def tune(outputs, labels, masks_of):
    """(AP at IoU 0.5, (cell probability, flow error)), the best pair of thresholds."""
    from cellpose.metrics import average_precision

    scores = {}
    for chosen in itertools.product(CELL_PROBABILITIES, FLOW_ERRORS):
        masks = [masks_of(output, *chosen) for output in outputs]
        scores[chosen] = float(average_precision(labels, masks, threshold=[0.5])[0].mean())
        print(f"cell probability {chosen[0]:g}, flow error {chosen[1]:g}: validation AP50 "
              f"{scores[chosen]:.4f}", flush=True)
    best = max(scores, key=scores.get)
    return scores[best], best


def main():
    args = common.arguments(
        __doc__, lambda p: p.add_argument("--diameter", type=float, default=17.0))
    import cellpose
    import torch
    from cellpose import dynamics, io, models, train

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    io.logger_setup()
    images, labels = common.read(args.data, "train")
    model = models.CellposeModel(gpu=False, pretrained_model=False, diam_mean=args.diameter,
                                 mkldnn=False)  # which is for inference; training is slower by it
    network = model.net

    clock = common.Clock(args.minutes)
    steps = common.Steps(clock)
    steps.watch(network)
    # Flows of all images, once; train_seg would compute them each time that it is called.
    labels = dynamics.labels_to_flows(labels, device=model.device)

    def fit(count, epochs, per_epoch):
        train.train_seg(network, images[:count], labels[:count], n_epochs=epochs,
                        nimg_per_epoch=per_epoch * BATCH, save_path=args.out,
                        model_name="model", **OPTIONS)

    epochs = 0
    try:
        fit(2 * BATCH, 4, 1)  # how long does a step take? These weights are trained on.
        step = steps.seconds()
        total = max(int(clock.left() / step), 1)
        per_epoch = max(round(total / EPOCHS), 1)
        epochs = max(total // per_epoch, 1)
        print(f"{step:.2f} CPU s a step: {epochs} epochs of {per_epoch} steps", flush=True)
        fit(len(images), epochs, per_epoch)
    except common.TimeUp:
        print("stopped: the time is used up", flush=True)
    training = clock.result()

    network.eval()
    model.diam_labels = float(network.diam_labels)
    rounds = int(200 * model.diam_labels / model.diam_mean)  # as its eval has it

    def outputs_of(image):
        flow, probability = model.eval(image, channels=[0, 0], compute_masks=False)[1][1:3]
        return flow, probability

    def masks_of(output, probability, error):
        return dynamics.resize_and_compute_masks(
            *output, niter=rounds, cellprob_threshold=probability, flow_threshold=error,
            device=model.device)

    images, labels = common.read(args.data, "val")
    ap50, thresholds = tune([outputs_of(image) for image in images], labels, masks_of)
    predicting = common.predict(args, lambda image: masks_of(outputs_of(image), *thresholds))
    common.finish(
        args, peer="cellpose", version=cellpose.version, torch=torch.__version__,
        parameters=sum(p.numel() for p in network.parameters()), batch=BATCH,
        steps=len(steps.cpu), epochs=epochs, validation_ap50=ap50,
        thresholds=dict(zip(("cell_probability", "flow_error"), thresholds, strict=True)),
        **training, predict_cpu_seconds=predicting)


if __name__ == "__main__":
    main()
