"""How far PyTorch's own bf16 gradients are from float64: the measure for ours (tests/golden_networks.rs).

    python errors.py > pytorch.json          (needs torch and torchvision; a CPU is enough)

ResNet-18 with torchvision's names, weights, images and labels from the formula of tests/common/formula.rs, in train
mode, one cross entropy; bf16 by autocast, channels last. Per parameter: |bf16 - f64| / |f64|, Frobenius norms.
"""
import json
import math

import numpy as np
import torch
import torchvision

IMAGES, SIZE, CLASSES = 4, 64, 1000
MASK = (1 << 64) - 1


def sequence(name, shape):
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = ((start ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        x = np.uint64(start) + np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) / 2.0**53 * 2 - 1).reshape(shape)


def network():
    model = torchvision.models.resnet18(weights=None)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        u = sequence(name, tuple(value.shape))
        if name.endswith("running_var"):
            u = 1 + 0.5 * u
        elif value.dim() > 1:
            fan_in = math.prod(value.shape[1:])
            u = math.sqrt((6 if value.dim() == 4 else 3) / fan_in) * u
        elif name.endswith("weight"):
            u = 1 + 0.1 * u
        else:
            u = 0.1 * u
        value.copy_(u.float())
    return model.train()


def gradients(bf16):
    model = network().to(memory_format=torch.channels_last)
    images = 2 * sequence("input", (IMAGES, 3, SIZE, SIZE)).float()
    labels = torch.tensor([(7 * n + 3) % CLASSES for n in range(IMAGES)])
    if not bf16:
        model, images = model.double(), images.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(images.to(memory_format=torch.channels_last))
    loss = torch.nn.functional.cross_entropy(logits.float() if bf16 else logits, labels)
    loss.backward()
    return loss.item(), {name: value.grad.double() for name, value in model.named_parameters()}


exact_loss, exact = gradients(bf16=False)
loss, rounded = gradients(bf16=True)
errors = {name: float(f"{((rounded[name] - grad).norm() / grad.norm()).item():.4g}") for name, grad in exact.items()}
record = {"torch": torch.__version__, "loss": exact_loss, "loss_bf16": loss, "errors": errors}
print(json.dumps(record, indent=1))
