"""Run the GPU kernels without a GPU, in Triton's interpreter, and print what came out as JSON.

Triton decides for its interpreter when kernels are defined, so this is a process of its own, with
TRITON_INTERPRET=1 in its environment.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import packs
import torch
import triton.language as tl
from triton.runtime import interpreter

from tune_softmax.config import Config
from tune_softmax.engine import gpu_check
from tune_softmax.engine import pack as packed
from tune_softmax.engine.gpu_group import GpuGroup
from tune_softmax.engine.pack import Pack

CONFIGS = {
    3: Config(batch_size=13, num_epochs=2, learning_rate=0.1, weight_decay=0.01, momentum=0.5),
    5: Config(batch_size=32, num_epochs=2, learning_rate=0.2, learning_rate_schedule="linear"),
    6: Config(batch_size=64, num_epochs=2, learning_rate=0.3, l1=0.01, momentum=0.9),
    8: Config(batch_size=100, num_epochs=2, learning_rate=0.4, learning_rate_schedule="cosine"),
}
DATA = {
    "small": packs.random_data(60, 20),
    "tiles": packs.random_data(150, 70, image_shape=(6, 13), num_classes=5),
    "slices": packs.random_data(700, 20, image_shape=(1, 3)),
}


def numbers(handle):
    """Return a tensor of the interpreter as float32."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)


def create_dot(_self, a, b, sums, *_options):
    """Multiply; Triton 3.9's own takes bfloat16 as the integers that its bits are."""
    product = np.matmul(numbers(a), numbers(b), dtype=sums.data.dtype)
    return interpreter.TensorHandle(product + sums.data, sums.dtype.scalar)


def differences(configs, data, **options):
    """Return how far weights, relative to their norm, and curves are from training alone."""
    precision = {"precision": options.pop("precision", "float32")}
    together = packs.train_packed(configs, data, **options, **precision)
    alone = packs.train_alone(configs, data, **options)
    return {
        "weights": max(packs.difference(together[n], alone[n]) for n in configs),
        "curves": max(float((together[n].curves - alone[n].curves).abs().max()) for n in configs),
    }


def neighbours():
    """Say whether trials beside one that diverges are, to the last bit, what they are alone."""
    lost = replace(CONFIGS[3], learning_rate=1e30)
    together = packs.train_packed({3: lost, 6: CONFIGS[6], 8: CONFIGS[8]}, DATA["small"])
    alone = [packs.train_packed({n: CONFIGS[n]}, DATA["small"])[n] for n in (6, 8)]
    return {
        "same": all(
            torch.equal(together[n].weights, one.weights)
            for n, one in zip((6, 8), alone, strict=True)
        ),
        "diverged": not bool(torch.isfinite(together[3].curves).all()),
    }


def going_on():
    """Say whether trials that go on in another pack end as they would have without that."""
    data = DATA["small"]
    first = Pack(CONFIGS, data, seed=0)
    first.train_epoch()
    first.drop([5])
    states = {number: first.state(number) for number in first.numbers}
    second = Pack({n: CONFIGS[n] for n in states}, data, seed=0, epoch=1, states=states)
    second.train_epoch()
    whole = packs.train_packed(CONFIGS, data)
    return {
        "same": all(
            torch.equal(packs.flat_weights(second.weights(n)), whole[n].weights) for n in states
        )
    }


def kinds():
    """Return the kinds of a pack's groups, where some trials are not plain softmax regression."""
    hidden, moved = replace(CONFIGS[3], hidden_units=4), replace(CONFIGS[5], augmentation=0.5)
    configs = {**CONFIGS, 10: hidden, 11: moved}
    pack = Pack(configs, DATA["small"], seed=0)
    return {
        "kinds": [type(group).__name__ for group in pack._groups],
        **differences({10: hidden, 11: moved, 6: CONFIGS[6]}, DATA["small"]),
    }


def main():
    """Print all of it."""
    interpreter.InterpreterBuilder.create_dot = create_dot
    packed._has_gpu_kernels = lambda _data, precision: precision != "tf32"
    torch.set_num_threads(2)  # the CPU kernels train on one
    assert isinstance(Pack(CONFIGS, DATA["small"], seed=0)._groups[0], GpuGroup)
    whole = {n: replace(config, batch_size=600, num_epochs=1) for n, config in CONFIGS.items()}
    once = {n: replace(config, num_epochs=1) for n, config in CONFIGS.items()}
    summed = {n: replace(c, learning_rate=c.learning_rate / 100) for n, c in once.items()}
    two = {number: once[number] for number in (3, 5)}
    results = {
        "small": differences(CONFIGS, DATA["small"]),
        "tiles": differences(once, DATA["tiles"]),
        "slices": differences(whole, DATA["slices"]),
        "summed": differences(summed, DATA["small"], reduction="sum"),
        "bfloat16x2": differences(two, DATA["small"], precision="bfloat16x2"),
        "bfloat16": differences(two, DATA["small"], precision="bfloat16"),
        "neighbours": neighbours(),
        "going on": going_on(),
        "kinds": kinds(),
        "check": gpu_check.disagreement(torch.device("cpu")),
    }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
