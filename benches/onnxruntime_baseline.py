#!/usr/bin/env python3
"""onnxruntime's side of `unfreeze bench compare --work forward`, by the ONNX files that unfreeze exports.

The weights that logits are compared by are converted by `unfreeze convert`, batchnorm folded; the program is named by
UNFREEZE, as `bench compare` sets it. Images are `[N, 3, H, W]`, as the files take them; four batches take turns.
"""

import os
import subprocess
import tempfile

import numpy
import onnxruntime

import baseline

BATCHES = 4


class Task:
    """A session at work: `step` runs the next batch."""

    def __init__(self, session, cell):
        self.session, self.count = session, 0
        self.input = session.get_inputs()[0].name
        shape = (cell["batch_size"], 3, cell["size"], cell["size"])
        random = numpy.random.default_rng(0)
        self.batches = [random.uniform(-2, 2, shape).astype(numpy.float32) for _ in range(BATCHES)]

    def step(self):
        batch = self.batches[self.count % BATCHES]
        self.count += 1
        return self.session.run(None, {self.input: batch})[0]


class Server(baseline.Server):
    def __init__(self, threads, folder):
        super().__init__()
        self.threads, self.folder = threads or len(os.sched_getaffinity(0)), folder

    def hello(self):
        software = f"onnxruntime {onnxruntime.__version__}"
        return {"device": f"cpu, {self.threads} threads", "software": software, "variants": ["folded"]}

    def logits(self, cell, weights, images):
        expect_f32(cell)
        command = [os.environ.get("UNFREEZE", "unfreeze"), "convert", weights, self.file(cell), "--size", str(cell["size"])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"no ONNX file: {done.stderr.strip()}")
        session = self.session(cell)
        found = session.run(None, {session.get_inputs()[0].name: baseline.pixels(images, cell["size"])})[0]
        return {"logits": found.flatten().tolist()}

    def make(self, cell, variant):
        expect_f32(cell)
        if cell["work"] != "forward" or variant != "folded":
            raise ValueError(f"onnxruntime is asked for the frozen network alone, folded, not {cell['work']}, {variant}")
        if not os.path.exists(self.file(cell)):
            raise ValueError(f"there is no ONNX file of {cell['arch']}: logits are asked for first")
        return Task(self.session(cell), cell)

    def file(self, cell):
        return os.path.join(self.folder, f"{cell['arch']}-{cell['size']}.onnx")

    def session(self, cell):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(self.file(cell), options, providers=["CPUExecutionProvider"])


def expect_f32(cell):
    if cell["dtype"] != "f32":
        raise ValueError(f"the files hold f32, not {cell['dtype']}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as files:
        baseline.serve(__doc__.splitlines()[0], lambda arguments: Server(arguments.threads, files))
