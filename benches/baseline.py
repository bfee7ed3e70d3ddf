"""What the other sides of `unfreeze bench compare` have in common: requests, time and memory.

A request is a JSON object on a line, so is its answer (src/cli/bench/protocol.rs).
"""

import argparse
import json
import struct
import sys
import time

import numpy

CLASSES = 1000


def read_safetensors(path):
    """Arrays of a safetensors file of f32 tensors, by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} is {entry['dtype']}, not F32")
        start, end = entry["data_offsets"]
        tensors[name] = numpy.frombuffer(data[start:end], dtype=numpy.float32).reshape(entry["shape"])
    return tensors


def pixels(images, size):
    """The images of the request `logits`, `[N, 3, H, W]`."""
    values = numpy.sin(0.7 * numpy.arange(images * size * size * 3, dtype=numpy.float64)).astype(numpy.float32)
    return values.reshape(images, size, size, 3).transpose(0, 3, 1, 2)


def reset_resident():
    """Lets `peak_resident` start again from what is resident now, where Linux allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak_resident():
    """Most bytes of this process that were resident at a time; none where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
        return int(lines[0][1]) << 10
    except (OSError, IndexError):
        return None


class Server:
    """Answers requests. What differs from side to side: `hello`, `logits`, and `make`, whose result has `step()`."""

    def __init__(self):
        self.task, self.estimate = None, 0.0

    def prepare(self, cell, variant, warm_up):
        self.forget()
        reset_resident()
        self.task = self.make(cell, variant)
        # Steps that compile or choose algorithms; then the time asked for.
        for _ in range(3):
            self.run(1)
        start = time.perf_counter()
        while time.perf_counter() - start < warm_up:
            self.run(self.steps(warm_up / 4))
        return {"ready": True}

    def block(self, seconds):
        if self.task is None:
            raise ValueError("no cell is ready")
        steps = self.steps(seconds)
        return {"steps": steps, "seconds": self.run(steps)}

    def finish(self):
        # In this order: to count tensors may take memory itself, and what fails of it spoils no measurement.
        answer = {"peak_resident": peak_resident(), "peak_memory": None}
        try:
            answer["peak_memory"] = self.peak_memory()
        except Exception as error:
            print(f"tensors were not counted: {error}", file=sys.stderr)
        self.forget()
        return answer

    def forget(self):
        self.task = None

    def peak_memory(self):
        """Most bytes of tensors at a time, where they are counted."""
        return None

    def synchronize(self):
        """Waits for the device."""

    def steps(self, seconds):
        return min(max(1, int(seconds / self.estimate + 0.999)), 10**6)

    def run(self, steps):
        """Seconds of some steps, with one wait before and one after."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.task.step()
        self.synchronize()
        seconds = max(time.perf_counter() - start, 1e-9)
        self.estimate = seconds / steps
        return seconds

    def answer(self, line):
        try:
            request = json.loads(line)
            return getattr(self, REQUESTS[request.pop("request")])(**request)
        except Exception as error:  # whatever a cell does to this side, the next one is asked for all the same
            self.task = None
            return {"error": f"{type(error).__name__}: {error}"}


REQUESTS = {name: name for name in ("hello", "logits", "prepare", "block", "finish")}


def serve(description, start):
    """Answers standard input, line by line, by the server that `start` makes of --device and --threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as the library takes")
    server = start(parser.parse_args())
    # Libraries print; answers alone go to the pipe.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(server.answer(line)), file=answers, flush=True)
