"""A driver in a process and an environment of its own: python -P served.py DRIVER TASK. Needs numpy alone.

A driver is a file here with `make(task) -> (train, weights)`: train() does all steps of the task and waits for them, weights() gives
(kernel, bias) by layer. Commands come as lines: `train` is answered with seconds, by the clock and of the processor, `weights FILE` with a
file written; the end of the input ends it.
"""

import importlib.util
import pathlib
import sys
import time

import numpy as np


class Task:
    """What all of them train: x [examples, 784], y [examples], index [steps, batch], and the initial weights, (kernel, bias) by layer."""

    def __init__(self, path):
        given = np.load(path)
        self.x, self.y, self.index = given["x"], given["y"], given["index"]
        self.layers = [(given[f"kernel{i}"], given[f"bias{i}"]) for i in range(3)]
        self.target = np.eye(10, dtype=np.float32)[self.y]

    def batches(self):
        """Every step's (x, one-hot y), in order."""
        return [(self.x[rows], self.target[rows]) for rows in self.index]


def main(driver, path):
    """Answer commands."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    spec = importlib.util.spec_from_file_location("driver", pathlib.Path(__file__).with_name(f"{driver}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    train, weights = module.make(Task(path))
    for line in sys.stdin:
        command, *rest = line.split()
        if command == "train":
            begun = time.perf_counter(), time.process_time()
            train()
            print(time.perf_counter() - begun[0], time.process_time() - begun[1], file=answers, flush=True)
        else:
            layers = [zip(("kernel", "bias"), layer, strict=True) for layer in weights()]
            np.savez(rest[0], **{f"{name}{i}": np.asarray(part) for i, layer in enumerate(layers) for name, part in layer})
            print("written", file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
