#!/usr/bin/env python3
"""Development script for ONNX: what other programs write, and what they make of what this one writes.

    pip install torch torchvision onnx onnxscript onnxruntime      (CPU)

    onnx.py fixtures FOLDER        graphs that PyTorch exported, as committed in tests/checkpoints/onnx
    onnx.py export KIND OUT.onnx   torchvision's ResNet-18 with the weights of tests/common/formula.rs; KIND below
    onnx.py run FILE.onnx INPUT OUTPUT      checks FILE, runs it by onnxruntime; raw float32 files, [N, 3, size, size]

The fixtures have no values: each tensor says where in `weights.data` its values would be, a file that the test makes
up. expected.json says which of torchvision's tensors must be found where. It is told by values, not by the graph:
folded tensors are compared with what torch.nn.utils.fusion makes of each layer.
"""
import json, math, os, pathlib, sys, tempfile

KINDS = {
    "torchscript-folded": dict(dynamo=False),
    "torchscript-kept": dict(dynamo=False, do_constant_folding=False),
    "torchscript-training": dict(dynamo=False, do_constant_folding=False, training="TRAINING"),
    "dynamo": dict(dynamo=True),
    "dynamo-unoptimised": dict(dynamo=True, optimize=False),
}


def export(model, kind, path):
    import torch

    options = dict(KINDS[kind])
    if "training" in options:
        options["training"] = getattr(torch.onnx.TrainingMode, options["training"])
    torch.onnx.export(model, (torch.zeros(1, 3, 64, 64),), path, **options)


def random_network(arch):
    import torch, torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, arch)(weights=None)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for value in [layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var]:
                torch.nn.init.uniform_(value, 0.5, 1.5)
    return model.eval()


def with_fastai_2_head(network):
    """The network with the head of fastai 2 (vision/learner.py, create_head; layers.py, LinBnDrop), made smaller."""
    import torch
    from torch import nn

    class AdaptiveConcatPool2d(nn.Module):
        def forward(self, x):
            pools = [nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)]
            return torch.cat(pools, 1)

    class Network(nn.Module):
        """Names as this engine has them."""

        def __init__(self):
            super().__init__()
            self.body = network
            features = network.fc.in_features
            network.avgpool = network.fc = nn.Identity()
            self.head = nn.Sequential(
                AdaptiveConcatPool2d(), nn.BatchNorm1d(2 * features), nn.Dropout(0.25), nn.Linear(2 * features, 24, bias=False),
                nn.ReLU(), nn.BatchNorm1d(24), nn.Dropout(0.5), nn.Linear(24, 3, bias=False))
            # This engine counts dropout and ReLU alike: head.1, head.3, head.5, head.7.
            for layer in self.head:
                if isinstance(layer, nn.BatchNorm1d):
                    for value in [layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var]:
                        nn.init.uniform_(value, 0.5, 1.5)

        def forward(self, x):
            for name, layer in self.body.named_children():
                x = layer(x)
            pool, *rest = self.head
            return nn.Sequential(*rest)(pool(x).flatten(1))

    return Network().eval()


def state_of(model):
    """Under this engine's names."""
    return {name.removeprefix("body."): tensor for name, tensor in model.state_dict().items()}


def folded(model):
    """torchvision's names of what is left of each layer, and its values."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    modules = {name.removeprefix("body."): module for name, module in model.named_modules()}
    values = {name: tensor for name, tensor in state_of(model).items() if name.startswith(("fc.", "head."))}
    for name, module in modules.items():
        if isinstance(module, torch.nn.Conv2d):
            norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
            fused = fuse_conv_bn_eval(module, modules[norm])
            values[f"{name}.weight"], values[f"{norm}.bias"] = fused.weight, fused.bias
    return values


def fixtures(folder):
    import numpy, onnx

    folder = pathlib.Path(folder)
    expected = {}
    for arch, head, kind in [
        ("resnet18", "", "torchscript-folded"),
        ("resnet18", "", "torchscript-training"),
        ("resnet18", "", "dynamo"),
        ("resnet50", "", "torchscript-folded"),
        ("resnet18", "fastai2-", "torchscript-folded"),
        ("resnet18", "fastai2-", "torchscript-kept"),
        ("resnet18", "fastai2-", "dynamo"),
    ]:
        network = random_network(arch)
        network = with_fastai_2_head(network) if head else network
        with tempfile.TemporaryDirectory() as temporary:
            export(network, kind, f"{temporary}/{arch}.onnx")
            model = onnx.load(f"{temporary}/{arch}.onnx")
        # A head keeps its own: nothing is before it that it could be folded into.
        keeps = sum(node.op_type == "BatchNormalization" for node in model.graph.node) > 2
        values = state_of(network) if keeps else folded(network)
        values = {name: value.detach().numpy() for name, value in values.items() if value.dim() > 0}

        found, transposed = {}, []
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            same = lambda value, array: value.shape == array.shape and numpy.allclose(value, array, rtol=1e-4, atol=1e-6)
            names = [name for name, value in values.items() if same(value, array)]
            turned = [name for name, value in values.items() if array.ndim == 2 and same(value, array.T)]
            assert len(names + turned) <= 1, names + turned
            found.update((name, tensor.name) for name in names + turned)
            transposed += turned
        assert found.keys() == values.keys(), values.keys() - found.keys()

        # Where the exporter ran, and what only readers of the graph need.
        graph = model.graph
        for part in [model, graph, *graph.node, *graph.input, *graph.output]:
            part.ClearField("doc_string")
            part.ClearField("metadata_props")
        del graph.value_info[:]
        name = f"{arch}-{head}{kind}.onnx"
        with tempfile.TemporaryDirectory() as temporary:
            onnx.save(model, f"{temporary}/{name}", save_as_external_data=True, location="weights.data", size_threshold=64)
            length = os.path.getsize(f"{temporary}/weights.data")
            (folder / name).write_bytes(pathlib.Path(f"{temporary}/{name}").read_bytes())
        stored = onnx.load(folder / name, load_external_data=False)
        place = {t.name: int({e.key: e.value for e in t.external_data}["offset"]) for t in stored.graph.initializer
                 if t.name in found.values()}
        expected[name] = {"length": length, "transposed": transposed,
                          "offsets": {ours: place[theirs] for ours, theirs in sorted(found.items())}}
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


def sequence(name, count):
    """As tests/common/formula.rs."""
    import numpy

    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = ((start ^ byte) * 0x100000001B3) % (1 << 64)
    word = numpy.uint64
    with numpy.errstate(over="ignore"):
        x = word(start) + numpy.arange(count, dtype=word) + word(0x9E3779B97F4A7C15)
        z = (x ^ (x >> word(30))) * word(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> word(27))) * word(0x94D049BB133111EB)
        return ((z ^ (z >> word(31))) >> word(11)).astype(float) / 2.0**53 * 2 - 1


def formula_network():
    import torch, torchvision

    model = torchvision.models.resnet18(weights=None)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        offset, factor = 0.0, 0.1
        if value.dim() == 4:
            factor = math.sqrt(6 / value[0].numel())
        elif value.dim() == 2:
            factor = math.sqrt(3 / value[0].numel())
        elif name.endswith("running_var"):
            offset, factor = 1.0, 0.5
        elif name.endswith("weight"):
            offset = 1.0
        value.copy_(torch.from_numpy(offset + factor * sequence(name, value.numel())).reshape(value.shape).float())
    return model.eval()


def run(path, source, target):
    import numpy, onnx, onnxruntime

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    images = numpy.fromfile(source, numpy.float32).reshape(-1, *given.shape[1:])
    (values,) = session.run([result.name], {given.name: images})
    values.astype(numpy.float32).tofile(target)
    model = onnx.load(path)
    told = {"input": [given.name, given.shape], "output": [result.name, result.shape], "ir": model.ir_version,
            "operators": sorted({node.op_type for node in model.graph.node}), "opset": model.opset_import[0].version}
    print(json.dumps(told))


if __name__ == "__main__":
    # This file is called as the package is.
    sys.path = [place for place in sys.path if pathlib.Path(place or ".").resolve() != pathlib.Path(__file__).parent.resolve()]
    match sys.argv[1:]:
        case ["fixtures", folder]:
            fixtures(folder)
        case ["export", kind, path]:
            export(formula_network(), kind, path)
        case ["run", path, source, target]:
            run(path, source, target)
        case _:
            sys.exit(__doc__)
