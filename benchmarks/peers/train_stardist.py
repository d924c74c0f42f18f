"""StarDist (TensorFlow) from scratch on an exported split, for a budget of CPU time.

    python benchmarks/peers/train_stardist.py --data=DIR --out=OUT --minutes=30

As its documentation trains nuclei: 32 rays, grid (2, 2), batches of 4 crops, Adam at 3e-4, halved
where the validation loss stalls for a tenth of the epochs, images scaled by percentiles 1 to
99.8, flips, right angles, intensity and noise; best weights by validation loss; both thresholds
by its optimize_thresholds on the validation images.
"""

import common

EPOCHS = 40  # its 400, fewer as time is short: each ends with a validation


def augmenter(rng):
    """Flips and right angles of image and label; intensity and noise of the image."""
    def augment(image, label):
        turns, flip = rng.integers(4), rng.integers(2)
        image, label = (a[::-1] if flip else a for a in (image, label))
        image, label = (rot90(a, turns) for a in (image, label))
        image = image * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2)
        return image + rng.normal(0, 0.02 * rng.uniform(), image.shape), label

    from numpy import rot90

    return augment


def watch(keras, clock, steps, validations):
    """Callback that stops in time and notes the CPU time of each step and validation."""
    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(clock.used())
            if clock.left() <= 0:
                self.model.stop_training = True

        def on_test_begin(self, logs=None):
            self.start = clock.used()

        def on_test_end(self, logs=None):
            validations.append(clock.used() - self.start)

    return Watch()


def main():
    args = common.arguments(__doc__)
    import keras
    import numpy as np
    import stardist
    import tensorflow as tf
    from csbdeep.utils import normalize
    from stardist.models import Config2D, StarDist2D

    keras.utils.set_random_seed(args.seed)
    scale = lambda image: normalize(image, 1, 99.8, axis=(0, 1))
    parts = {}
    for part in ("train", "val"):
        images, labels = common.read(args.data, part)
        parts[part] = [scale(x) for x in images], [stardist.fill_label_holes(y) for y in labels]
    config = Config2D(
        n_rays=32, grid=(2, 2), n_channel_in=3 if parts["train"][0][0].ndim == 3 else 1,
        train_patch_size=(common.CROP, common.CROP), train_tensorboard=False)
    model = StarDist2D(config, name="model", basedir=str(args.out))

    clock, steps, validations = common.Clock(args.minutes), [], []

    def train(epochs, steps_per_epoch):
        config.train_reduce_lr["patience"] = max(1, round(epochs / 10))
        model.prepare_for_training()
        model.callbacks.append(watch(keras, clock, steps, validations))
        model.train(*parts["train"], validation_data=parts["val"], seed=args.seed,
                    augmenter=augmenter(np.random.default_rng(args.seed)), epochs=epochs,
                    steps_per_epoch=steps_per_epoch)

    train(2, 5)  # how long do steps and validations take? These weights are trained on.
    step, validation = common.median_gap(steps[1:5]), validations[-1]
    epochs, per_epoch = common.schedule(clock.left(), step, validation, EPOCHS)
    print(f"{step:.2f} CPU s a step, {validation:.1f} a validation: {epochs} epochs of "
          f"{per_epoch} steps", flush=True)
    train(epochs, per_epoch)
    training = clock.result()
    thresholds = model.optimize_thresholds(*parts["val"])
    predicting = common.predict(args, lambda x: model.predict_instances(scale(x))[0])
    common.finish(
        args, peer="stardist", version=stardist.__version__, tensorflow=tf.__version__,
        parameters=model.keras_model.count_params(), batch=config.train_batch_size,
        steps=len(steps), epochs=epochs, **training, predict_cpu_seconds=predicting,
        thresholds={name: float(value) for name, value in thresholds.items()})


if __name__ == "__main__":
    main()
