"""Writes models_torch.safetensors: weights and logits of tiny U-Nets that torch ran.

Run it where torch and MONAI are: PYTHONPATH=tests python tests/golden/models_torch.py
"""

import json
import pathlib

import numpy as np
import torch
from reference.torch_unets import (
    TorchBrainUNet,
    TorchSmallUNet,
    TorchUNet,
    keras_variables,
    randomise,
)

CHANNELS = (2, 4, 4)
# Options of unet_classic; odd="pad_up" is milesial's and the default of TorchUNet.
CASES = {
    "milesial": {},
    "bilinear": dict(up="bilinear"),
    "batch": dict(norm="batch"),
    "double_instance": dict(norm="double_instance"),
    "group": dict(norm="group", groups=2),
    "layer_bias": dict(norm="layer", bias="always"),
    "none_add": dict(norm="none", skip="add"),
    "drop_skips": dict(drop_skips=(0,), odd="resize_up"),
    "no_skip": dict(skip="none"),
}


def main():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 11, 14)
    arrays = {"image": image.movedim(1, -1).numpy()}

    def store(name, network, image, convert=dict):
        with torch.no_grad():
            arrays[f"{name}/logits"] = network.eval()(image).movedim(1, -1).numpy()
        for key, array in convert(network.state_dict()).items():
            if "num_batches" not in key:
                arrays[f"{name}/{key}"] = np.asarray(array)

    def flat(state, prefix=""):
        for key, value in state.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    for name, options in CASES.items():
        store(name, randomise(TorchUNet(1, 2, channels=CHANNELS, **options)), image)
    even = torch.nn.functional.pad(image, (0, 2, 0, 5))
    store("brain", randomise(TorchBrainUNet(1, 2, features=1)), even)
    network = randomise(TorchSmallUNet(1, 2, channels=(2, 3, 3), dense=False))
    convert = lambda state: dict(flat(keras_variables("small_unet", state)))  # noqa: E731
    store("small_unet", network, even, convert)
    write_safetensors(pathlib.Path(__file__).with_suffix(".safetensors"), arrays)


def write_safetensors(path, arrays):
    """float32 arrays; a .npz of so many small ones is three times as large."""
    header, numbers = {}, b""
    for name, array in arrays.items():
        data = array.astype("<f4").tobytes()
        offsets = [len(numbers), len(numbers) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        numbers += data
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


if __name__ == "__main__":
    main()
