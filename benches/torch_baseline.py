#!/usr/bin/env python3
"""PyTorch's side of `unfreeze bench compare`: torchvision's ResNets, doing what they are asked on standard input.

Everything is as fast as PyTorch's users know how to have it: channels_last, bf16 autocast or TF32, cuDNN's benchmark
mode, fused SGD, gradients set to none, torch.compile in its modes with CUDA graphs where they have them; forward also
with batchnorm folded into the convolutions; a head on cached features takes its batches by indexing one tensor. Data are
random and lie on the device; four batches take turns.

Variants: eager; graph (eager, the whole step with its optimizer captured as a CUDA graph); compile, reduce-overhead,
max-autotune (torch.compile's modes); of forward alone, folded-… (batchnorm folded, weights in the data type itself,
without autocast); and, of heads on cached features alone, dataloader (eager, batches by DataLoader and TensorDataset).
"""

import contextlib
import json
import pathlib
import tempfile

import torch
import torchvision
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader, TensorDataset

import baseline
from baseline import CLASSES

BATCHES = 4
HIDDEN = 512
CACHED = 8192
LR, MOMENTUM, WD = 1e-4, 0.9, 1e-4
# Steps in which a processor's tensors are counted: the optimizer's buffers are there from the second on.
COUNTED_STEPS = 2
COUNTED = "counted steps"
DATALOADER = "dataloader"
MODES = ["eager", "graph", "compile", "reduce-overhead", "max-autotune"]
GPU_MODES = ["graph", "reduce-overhead"]
DTYPES = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def fold(module):
    """Folds every batchnorm into the convolution before it, in torchvision's blocks and stem."""
    names = {name: child for name, child in module.named_children()}
    for name, child in names.items():
        number = name.removeprefix("conv")
        norm = "1" if name == "0" else f"bn{number}" if name.startswith("conv") else None
        if isinstance(child, torch.nn.Conv2d) and isinstance(names.get(norm), torch.nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, names[norm]))
            setattr(module, norm, torch.nn.Identity())
        else:
            fold(child)


class Task:
    """A cell made ready: `step` does its work on the next batch."""

    def __init__(self, cell, variant, device):
        self.cell, self.variant = cell, variant
        self.device, self.batch, self.work = device, cell["batch_size"], cell["work"]
        self.folded, mode = variant.startswith("folded-"), variant.removeprefix("folded-")
        self.cached = self.work.startswith("cached")
        if mode == DATALOADER and not self.cached:
            raise ValueError("a data loader is for cached features; images lie on the device")
        if mode not in [*MODES, DATALOADER]:
            raise ValueError(f"no variant {variant}")
        if self.folded and self.work != "forward":
            raise ValueError("batchnorm can be folded where nothing is trained")
        self.dtype = DTYPES[cell["dtype"]]
        set_tf32(cell["dtype"])
        torch.manual_seed(0)
        self.classes = cell.get("classes", CLASSES)
        model = torchvision.models.get_model(cell["arch"], num_classes=self.classes)
        self.count = 0
        if self.cached:
            self.width = model.fc.in_features * (2 if self.work == "cached-fastai" else 1)
            model = fastai_head(self.width, self.classes) if self.work == "cached-fastai" else model.fc
        model = model.to(device, memory_format=torch.channels_last)
        self.trained = freeze(model, self.work)
        self.model = model
        # Frozen modules keep their running statistics.
        if self.folded:
            fold(model)
            model.to(self.dtype)
        self.marks_steps = mode in ("reduce-overhead", "max-autotune")
        self.forward = model
        if mode not in ("eager", "graph", DATALOADER):
            self.forward = torch.compile(model, mode=None if mode == "compile" else mode)
        if self.trained:
            self.optimizer = torch.optim.SGD(self.trained, LR, momentum=MOMENTUM, weight_decay=WD, fused=True)
        self.data(cell)
        self.loader = self.load() if mode == DATALOADER else None
        self.graph = None
        if mode == "graph":
            self.capture()

    def data(self, cell):
        labels = lambda n: torch.randint(self.classes, (n,), device=self.device)
        if self.cached:
            self.samples = max(CACHED, self.batch)
            self.features = torch.rand(self.samples, self.width, device=self.device)
            self.labels, self.order = labels(self.samples), torch.randperm(self.samples, device=self.device)
            return
        # As stored by the network: nothing is converted on either side.
        shape = (self.batch, 3, cell["size"], cell["size"])
        image = lambda: torch.rand(shape, device=self.device).mul_(4).sub_(2).to(self.dtype, memory_format=torch.channels_last)
        self.batches = [(image(), labels(self.batch)) for _ in range(BATCHES)]

    def load(self):
        """Batches without an end."""
        data = TensorDataset(self.features, self.labels)
        while True:
            yield from DataLoader(data, self.batch, shuffle=True, drop_last=True)

    def step(self):
        inputs, labels = self.next()
        if self.graph is not None:
            self.static[0].copy_(inputs)
            self.static[1].copy_(labels)
            return self.graph.replay()
        if self.marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        return self.work_on(inputs, labels)

    def next(self):
        number = self.count
        self.count += 1
        if self.loader is not None:
            return next(self.loader)
        if not self.cached:
            return self.batches[number % BATCHES]
        start = number % (self.samples // self.batch) * self.batch
        rows = self.order[start : start + self.batch]
        return self.features[rows], self.labels[rows]

    def work_on(self, inputs, labels):
        if self.work != "forward":
            return self.learn(inputs, labels)
        with torch.inference_mode(), self.autocast():
            return self.forward(inputs)

    def capture(self):
        """Records a whole step, on copies of the inputs, after some on a stream of their own as PyTorch asks for."""
        self.static = tuple(tensor.clone() for tensor in self.next())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.work_on(*self.static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.work_on(*self.static)
        self.graph = graph

    def learn(self, inputs, labels):
        self.optimizer.zero_grad(set_to_none=True)
        # The head on cached features is f32 on both sides.
        with contextlib.nullcontext() if self.cached else self.autocast():
            loss = torch.nn.functional.cross_entropy(self.forward(inputs), labels)
        loss.backward()
        self.optimizer.step()

    def autocast(self):
        if self.dtype != torch.bfloat16 or self.folded:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def fastai_head(width, classes):
    """fastai 0.7's head behind its pools."""
    nn = torch.nn
    hidden = [nn.BatchNorm1d(width), nn.Dropout(0.25), nn.Linear(width, HIDDEN), nn.ReLU()]
    return nn.Sequential(*hidden, nn.BatchNorm1d(HIDDEN), nn.Dropout(0.5), nn.Linear(HIDDEN, classes))


def freeze(model, work):
    """Freezes what `work` does not train, in evaluation mode; the parameters that are left."""
    if work.startswith("cached"):
        return list(model.parameters())
    first = {"forward": None, "full": "conv1", "layer3": "layer3", "layer4": "layer4", "head": "fc"}[work]
    names = [name for name, _ in model.named_children()]
    model.train()
    for index, (name, child) in enumerate(model.named_children()):
        frozen = first is None or index < names.index(first)
        child.train(not frozen).requires_grad_(not frozen)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def most_allocated(trace):
    """Most bytes of a processor's tensors at a time in the steps of `trace`, whose sums go on from trace to trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events = sorted(json.loads(path.read_text())["traceEvents"], key=lambda event: event.get("ts", 0))
    start = next(event["ts"] for event in events if event.get("name") == COUNTED)
    sums = [event for event in events if event.get("name") == "[memory]"]
    before = sums[0]["args"]["Total Allocated"] - sums[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in sums if event["ts"] >= start) - before


def set_tf32(dtype):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype != "f32"
    torch.backends.cudnn.benchmark = True


class Server(baseline.Server):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def hello(self):
        gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if gpu else f"cpu, {torch.get_num_threads()} threads"
        cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if gpu else ""
        modes = [mode for mode in MODES if gpu or mode not in GPU_MODES]
        variants = modes + [f"folded-{mode}" for mode in modes] + [DATALOADER]
        return {"device": name, "software": f"PyTorch {torch.__version__}{cuda}", "variants": variants}

    def logits(self, cell, weights, images):
        set_tf32(cell["dtype"])
        model = torchvision.models.get_model(cell["arch"], num_classes=CLASSES)
        tensors = {name: torch.tensor(array) for name, array in baseline.read_safetensors(weights).items()}
        missing = model.load_state_dict(tensors, strict=False)
        if missing.unexpected_keys or any("num_batches" not in key for key in missing.missing_keys):
            raise ValueError(f"weights do not fit: {missing}")
        model = model.eval().to(self.device, memory_format=torch.channels_last)
        pixels = torch.from_numpy(baseline.pixels(images, cell["size"])).to(self.device)
        dtype = DTYPES[cell["dtype"]]
        with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return {"logits": model(pixels).float().flatten().tolist()}

    def make(self, cell, variant):
        return Task(cell, variant, self.device)

    def peak_memory(self):
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # A processor's tensors are counted while the profiler watches: those of the same task, made anew.
        cell, variant, cached = self.task.cell, self.task.variant, self.task.cached
        self.forget()
        if cached:
            return None  # the other side counts no features that lie in the host's memory
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            task = self.make(cell, variant)
            with record_function(COUNTED):
                for _ in range(COUNTED_STEPS):
                    task.step()
        return most_allocated(trace)

    def forget(self):
        super().forget()
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def start(arguments):
    name = arguments.device
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Server(device)


if __name__ == "__main__":
    baseline.serve(__doc__.splitlines()[0], start)
