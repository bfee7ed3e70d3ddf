#!/usr/bin/env python3
"""Writes tests/checkpoints/fixtures: small files of every format that `convert` reads, by the programs they come from.

    pip install torch torchvision timm safetensors numpy fastai    # processor only
    python3 tests/checkpoints/fixtures.py

The networks are torchvision's and timm's own classes, made a thirty-second as wide, so that writers and names are real
and the files small. `expected.json` says what PyTorch has in each file under torchvision's names: type, shape, and the
CRC-32 of the elements. `architectures.json` has, per architecture, the CRC-32 of names and shapes of torchvision and of
timm, at full width. The same versions give the same values.
"""

import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy
import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub import save_torch_state_dict
from torch import nn

FOLDER = Path(__file__).parent / "fixtures"
NARROWER = 32
CLASSES = 3

expected = {}


def narrow(module):
    """Replaces the layers of `module` by ones of fewer channels; ends of one class or colour stay as they are."""
    cut = lambda n: n if n == 3 else max(1, n // NARROWER)
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            new = nn.Conv2d(cut(child.in_channels), cut(child.out_channels), child.kernel_size, child.stride,
                            child.padding, bias=child.bias is not None)
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            new = type(child)(cut(child.num_features))
        elif isinstance(child, nn.Linear):
            outputs = CLASSES if child.out_features == CLASSES else cut(child.out_features)
            new = nn.Linear(cut(child.in_features), outputs, bias=child.bias is not None)
        else:
            narrow(child)
            continue
        setattr(module, name, new)
    return module


def randomised(module):
    """Statistics and counters that are not what a new network has."""
    for name, buffer in module.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(1234567890123)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        else:
            buffer.normal_()
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.data.normal_()
    return module


def describe(tensor):
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64"}
    flat = tensor.detach().contiguous()
    bits = flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
    return [names[flat.dtype], list(flat.shape), zlib.crc32(bits.numpy().tobytes())]


def file(name, state, names=None):
    """Notes what `name` holds: `state` is under torchvision's names, or `names` says those of its keys."""
    expected[name] = {(names(key) if names else key): describe(tensor) for key, tensor in state.items()}
    return FOLDER / name


def renamed(state, names):
    return OrderedDict((names(key), value) for key, value in state.items())


def cast(state, dtype):
    return OrderedDict((key, value.to(dtype) if value.is_floating_point() else value) for key, value in state.items())


def body(network):
    return [child for name, child in network.named_children() if name not in ("avgpool", "fc")]


# torchvision's name of what fastai calls by position.
STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def of_fastai_07(name):
    position, rest = name.split(".", 1)
    return f"{STAGES[position]}.{rest}" if position in STAGES else f"head.{int(position) - 9}.{rest}"


def of_fastai_2(name):
    part, position, rest = name.split(".", 2)
    return f"{STAGES[position]}.{rest}" if part == "0" else f"head.{int(position) - 1}.{rest}"


class AdaptiveConcatPool2d(nn.Module):
    """Of fastai 0.7, layers.py."""


def fastai_07_head(features):
    """ConvnetBuilder.get_fc_layers of fastai 0.7, conv_learner.py: xtra_fc=[512], ps=[0.25, 0.5]."""
    return [AdaptiveConcatPool2d(), nn.Flatten(), nn.BatchNorm1d(2 * features), nn.Dropout(0.25),
            nn.Linear(2 * features, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, CLASSES),
            nn.LogSoftmax(dim=1)]


def write_files():
    network = randomised(narrow(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1],
                                                          num_classes=CLASSES)))
    state = network.state_dict()

    # Containers.
    torch.save(state, file("torchvision.pth", state))
    torch.save(state, file("legacy.pth", state), _use_new_zipfile_serialization=False)
    half, bfloat = cast(state, torch.float16), cast(state, torch.bfloat16)
    torch.save(half, file("half.pth", half))
    torch.save(bfloat, file("bfloat16.bin", bfloat))
    safetensors.torch.save_file(dict(state), file("torchvision.safetensors", state), metadata={"format": "pt"})
    save_torch_state_dict(dict(state), FOLDER / "sharded", max_shard_size="10KB")
    file("sharded/model.safetensors.index.json", state)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    numpy.savez_compressed(file("compressed.npz", state), **arrays)
    # In Fortran's order where there is one to choose.
    fortran = {name: numpy.asarray(tensor.numpy(), order="F") for name, tensor in half.items()}
    numpy.savez(file("fortran.npz", half), **fortran)

    # Wrappers and prefixes.
    epoch = {"epoch": 3, "arch": "resnet10", "best_acc1": torch.tensor(0.5), "optimizer": torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9).state_dict()}
    parallel = renamed(state, lambda name: "module." + name)
    torch.save({**epoch, "state_dict": parallel}, file("imagenet_example.pth.tar", parallel, lambda n: n[7:]))
    mm = renamed(half, lambda name: "head." + name if name.startswith("fc.") else "backbone." + name)
    torch.save({"meta": {"epoch": 1}, "state_dict": mm}, file("mmpretrain.pth", half))

    # timm: its own class, and the names that a deep stem has.
    other = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    other = cast(randomised(narrow(other)).state_dict(), torch.float16)
    torch.save(other, file("timm.pth", other))
    deep = narrow(timm.create_model("resnet50d", num_classes=CLASSES)).state_dict()
    few = {name: tensor for name, tensor in deep.items() if not name.startswith(("layer2", "layer3", "layer4"))}
    torch.save(cast(few, torch.float16), FOLDER / "resnet50d.pth")

    # fastai 0.7 saved under PyTorch 0.3: its torch_imports.save_model is torch.save of the state dict.
    old = nn.Sequential(*body(network), *fastai_07_head(16))
    old = cast(randomised(old).state_dict(), torch.float16)
    torch.save(old, file("fastai_07.h5", old, of_fastai_07), _use_new_zipfile_serialization=False)

    # fastai 2: its own head, and learn.save's dict (learner.py, save_model).
    from fastai.vision.learner import create_head
    new = nn.Sequential(nn.Sequential(*body(network)), create_head(16, CLASSES, lin_ftrs=[16]))
    optimizer = {"hypers": [{"lr": 0.1}], "state": [{"mom": torch.zeros(3)}]}
    new = cast(randomised(new).state_dict(), torch.float16)
    torch.save({"model": new, "opt": optimizer}, file("fastai_2.pth", new, of_fastai_2))


def write_unread():
    """One tensor of each kind that is not read, beside some that are."""
    state = {
        "complex": torch.ones(3, dtype=torch.complex64), "complex128": torch.ones(3, dtype=torch.complex128),
        "chalf": torch.ones(3, dtype=torch.complex32), "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "quantised": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr(),
        "parameter": nn.Parameter(torch.full((2,), 2.0)), "uint16": torch.full((3,), 65535, dtype=torch.uint16),
        "strided": torch.arange(12.0).reshape(3, 4)[:, 1:3].t(),
    }
    torch.save(state, FOLDER / "unread_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({**state, "meta": torch.ones(3, device="meta")}, FOLDER / "unread.pth")


def digest(state):
    """Of lines `name [k, c, r, s]`, by name, of what has four extents; then of everything."""
    lines = sorted(f"{name} {list(tensor.shape)}\n" for name, tensor in state.items())
    convolutions = [line for line in lines if line.count(",") == 3]
    return [zlib.crc32("".join(some).encode()) for some in (convolutions, lines)]


def write_architectures():
    names = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
             "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]
    found = {}
    with torch.device("meta"):
        for name in names:
            makers = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
            found[name] = {program: digest(make(name).state_dict()) for program, make in makers.items()}
    (FOLDER / "architectures.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    (FOLDER / "sharded").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_files()
    write_unread()
    write_architectures()
    (FOLDER / "expected.json").write_text(json.dumps(expected, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}:",
          sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()), "bytes")
