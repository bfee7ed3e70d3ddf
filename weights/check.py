#!/usr/bin/env python3
"""Compares catalog.toml with what torchvision and timm say of the same weights, and names what it leaves out:

    pip install --no-deps --target packages timm torchvision && python3 weights/check.py packages

Of the packages nothing but their tables of weights is run. Accuracies of timm's weights are in the cards of the models
alone, and not compared.
"""

import ast
import math
import re
import sys
import tomllib
from pathlib import Path

LICENCES = {"apache-2.0": "Apache-2.0", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0"}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def torchvision(source):
    """Facts of each entry by its name."""
    facts = {}
    for arch, body in re.findall(r"class (\w+)_Weights\(WeightsEnum\):(.*?)\n    DEFAULT", source, re.S):
        for version, text in re.findall(r"IMAGENET1K_(V\d) = Weights\((.*?)\n    \)", body, re.S):
            def number(key):
                return float(re.search(key + r"\D*?([\d.]+)", text)[1])

            url = re.search(r'url="([^"]+)"', text)[1]
            resize = number("resize_size=") if "resize_size=" in text else 256
            facts[f"{arch.lower()}.{version.lower()}"] = {
                "url": url,
                "sha256": re.search(r"-([0-9a-f]{8})\.pth$", url)[1],
                "mib": number('"_file_size": '),
                "top1": number('"acc@1": '),
                "transforms": {"resize": resize, "crop": number("crop_size="), "interpolation": "bilinear"},
            }
    return facts


def timm(source, archs):
    """Facts of each entry of these architectures by its name, and why others are left out."""
    names = {"IMAGENET_DEFAULT_MEAN": IMAGENET["mean"], "IMAGENET_DEFAULT_STD": IMAGENET["std"]}
    names |= {"generate_default_cfgs": dict, "Dict": dict, "Any": object}
    for node in ast.parse(source).body:
        defines = isinstance(node, ast.FunctionDef) and node.name.endswith("cfg")
        if defines or isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "default_cfgs":
            exec(compile(ast.Module([node], []), "timm", "exec"), names)
    facts, left_out = {}, {}
    for name, config in names["default_cfgs"].items():
        if name.partition(".")[0] not in archs:
            continue
        if config["num_classes"] != 1000:
            left_out[name] = "no classifier of ImageNet's classes"
            continue
        share = config["crop_pct"] if config["input_size"][1] == 224 else config["test_crop_pct"]
        transforms = {"resize": math.floor(224 / share), "crop": 224, "interpolation": config["interpolation"]}
        for key in IMAGENET:
            if list(config[key]) != IMAGENET[key]:
                transforms[key] = list(config[key])
        facts[name] = {
            "url": f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors",
            "licence": LICENCES[config["license"]],
            "transforms": transforms,
        }
    return facts, left_out


def main():
    packages = Path(sys.argv[1])
    catalogue = tomllib.loads((Path(__file__).parent / "catalog.toml").read_text())["weights"]
    entries = {entry["name"]: entry for entry in catalogue}
    known = torchvision((packages / "torchvision/models/resnet.py").read_text())
    others, left_out = timm((packages / "timm/models/resnet.py").read_text(), {entry["arch"] for entry in catalogue})
    known |= others
    wrong = [f"{name}: neither package has it" for name in entries.keys() - known.keys()]
    for name in known.keys() & entries.keys():
        for key, value in known[name].items():
            if entries[name].get(key) != value:
                wrong.append(f"{name}: {key} is {entries[name].get(key)}, and {value} in the package")
    left_out |= {name: "not in the catalogue" for name in known.keys() - entries.keys()}
    print("\n".join(sorted(wrong) + [f"left out: {name}: {why}" for name, why in sorted(left_out.items())]))
    print(f"{len(entries)} entries, {len(wrong)} differences")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
