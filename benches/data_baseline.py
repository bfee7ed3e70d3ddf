#!/usr/bin/env python3
"""`unfreeze bench data` beside torchvision with Pillow, and beside OpenCV, on the same files.

Sides take turns from round to round, in an order that turns too. All go from a file to a normalised float tensor:

evaluation   short side 256, centre crop of 224
training     short side 256, three times in four up to 1.1 times that; rotation by up to 10 degrees, three times in
             four; brightness and contrast; a random crop of 224; mirrored every other time
resized crop 8 to 100 % of the area, squashed to 224; mirrored every other time

unfreeze and Pillow resize with an antialiasing filter, OpenCV by area or, for rotations and where it enlarges, linearly.
Only what cannot be matched differs: unfreeze and OpenCV reflect the border of a rotated image, Pillow fills it with black.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

SIZE, RESIZE = 224, 256
ZOOM, DEGREES, LIGHT = 1.1, 10, 0.05
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 16
# Flags of `unfreeze bench data` for each training recipe; evaluation comes with the first.
RECIPES = {
    "training": [],
    "resized crop": ["--crop", "googlenet", "--augment", "flip", "--max-zoom", "1"],
}


class Pillow:
    """torchvision's transforms of Pillow's images."""

    name = "torchvision"

    def __init__(self):
        import PIL
        import torch
        import torchvision
        from torchvision import transforms as t

        torch.set_num_threads(1)
        self.version = f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
        to_tensor = [t.ToTensor(), t.Normalize(MEAN, STD)]
        rotate = t.RandomRotation(DEGREES, interpolation=t.InterpolationMode.BILINEAR)
        zoomed = lambda image: t.functional.resize(image, int(RESIZE * zoom()))
        self.pipelines = {
            "evaluation": t.Compose([t.Resize(RESIZE), t.CenterCrop(SIZE), *to_tensor]),
            "training": t.Compose(
                [
                    t.Lambda(zoomed),
                    t.RandomApply([rotate], 0.75),
                    t.ColorJitter(LIGHT, LIGHT),
                    t.RandomCrop(SIZE),
                    t.RandomHorizontalFlip(),
                    *to_tensor,
                ]
            ),
            "resized crop": t.Compose([t.RandomResizedCrop(SIZE), t.RandomHorizontalFlip(), *to_tensor]),
        }

    def decode(self, path):
        from PIL import Image

        with open(path, "rb") as file:
            return Image.open(file).convert("RGB")


class OpenCV:
    """What users of OpenCV write; arrays `[3, H, W]` of f32."""

    name = "OpenCV"

    def __init__(self):
        import cv2
        import numpy

        cv2.setNumThreads(1)
        self.cv2, self.numpy = cv2, numpy
        self.version = f"OpenCV {cv2.__version__}"
        self.scale = numpy.float32(1 / (255 * numpy.array(STD)))
        self.shift = numpy.float32(numpy.array(MEAN) / numpy.array(STD))
        self.pipelines = {"evaluation": self.evaluation, "training": self.training, "resized crop": self.resized_crop}

    def decode(self, path):
        return self.cv2.cvtColor(self.cv2.imread(path, self.cv2.IMREAD_COLOR), self.cv2.COLOR_BGR2RGB)

    def resize(self, image, width, height):
        larger = width > image.shape[1] or height > image.shape[0]
        way = self.cv2.INTER_LINEAR if larger else self.cv2.INTER_AREA
        return self.cv2.resize(image, (width, height), interpolation=way)

    def short_side(self, image, side):
        height, width = image.shape[:2]
        short = min(height, width)
        return self.resize(image, side * width // short, side * height // short)

    def normalise(self, image):
        return self.numpy.ascontiguousarray((image * self.scale - self.shift).transpose(2, 0, 1))

    def evaluation(self, image):
        image = self.short_side(image, RESIZE)
        top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
        return self.normalise(image[top : top + SIZE, left : left + SIZE])

    def training(self, image):
        image = self.short_side(image, int(RESIZE * zoom()))
        height, width = image.shape[:2]
        if random.random() < 0.75:
            matrix = self.cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-DEGREES, DEGREES), 1)
            image = self.cv2.warpAffine(image, matrix, (width, height), borderMode=self.cv2.BORDER_REFLECT)
        gain, offset = random.uniform(1 - LIGHT, 1 + LIGHT), 255 * random.uniform(-LIGHT, LIGHT)
        image = self.cv2.convertScaleAbs(image, alpha=gain, beta=offset)
        top, left = random.randint(0, height - SIZE), random.randint(0, width - SIZE)
        return self.normalise(self.flipped(image[top : top + SIZE, left : left + SIZE]))

    def resized_crop(self, image):
        height, width = image.shape[:2]
        for _ in range(10):
            area = random.uniform(0.08, 1) * height * width
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < across <= width and 0 < down <= height:
                break
        else:
            across = down = min(height, width)
        top, left = random.randint(0, height - down), random.randint(0, width - across)
        part = image[top : top + down, left : left + across]
        return self.normalise(self.flipped(self.resize(part, SIZE, SIZE)))

    def flipped(self, image):
        return self.cv2.flip(image, 1) if random.random() < 0.5 else image


def zoom():
    return random.uniform(1, ZOOM) if random.random() < 0.75 else 1


class Files:
    """A data set for torch's loader."""

    def __init__(self, side, pipeline, files, length):
        self.side, self.pipeline, self.files, self.length = side, side.pipelines[pipeline], files, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.pipeline(self.side.decode(self.files[index % len(self.files)]))


def rate(work, count, seconds):
    """How often a second `work` is done on one of `count` things after the other, for about `seconds`."""
    start, done = time.perf_counter(), 0
    while done < count or time.perf_counter() - start < seconds:
        work(done % count)
        done += 1
    return done / (time.perf_counter() - start)


def loader_rate(side, pipeline, files, workers, seconds, alone):
    """Images per second of torch's loader; `alone` are those of one process, by which their number is chosen."""
    from torch.utils.data import DataLoader

    length = max(2 * BATCH * workers, int(alone * workers * seconds))
    loader = DataLoader(Files(side, pipeline, files, length), BATCH, num_workers=workers, persistent_workers=True)
    # Processes are started before the first batch.
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    done = sum(len(batch) for batch in batches)
    return done / (time.perf_counter() - start)


def measure(side, files, threads, seconds):
    """Images per second of each row of the table."""
    rates = {("decode", 1): rate(lambda at: side.decode(files[at]), len(files), seconds)}
    for pipeline, transform in side.pipelines.items():
        alone = rate(lambda at: transform(side.decode(files[at])), len(files), seconds)
        rates[pipeline, 1] = alone
        if side.name == "torchvision" and threads > 1:
            rates[pipeline, threads] = loader_rate(side, pipeline, files, threads, seconds, alone)
    return rates


def measure_unfreeze(program, folder, count, threads, seconds, seed):
    rates = {}
    for recipe, flags in RECIPES.items():
        command = [program, "bench", "data", folder, "--json", "--rounds", "1", "--seconds", str(seconds)]
        command += ["--warm-up", str(seconds / 4), "--images", str(count), "--threads", str(threads)]
        command += ["--size", str(SIZE), "--resize", str(RESIZE), "--seed", str(seed), *flags]
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            row = json.loads(line)
            name = recipe if row["stage"] == "training" else row["stage"]
            rates.setdefault((name, row["threads"]), row["images_per_second"])
    return rates


def table(rounds, others):
    """Markdown: medians, and the median of each round's ratio with the least and the most."""
    yield "| | threads | unfreeze | " + " | ".join(f"{side.name} | ratio" for side in others) + " |"
    yield "|---" * (3 + 2 * len(others)) + "|"
    for row in rounds[0]["unfreeze"]:
        if not any(row in rounds[0][side.name] for side in others):
            continue
        ours = [one["unfreeze"][row] for one in rounds]
        cells = [row[0], str(row[1]), f"{statistics.median(ours):.0f}"]
        for side in others:
            theirs = [one[side.name].get(row) for one in rounds]
            if None in theirs:
                cells += ["-", "-"]
                continue
            ratios = [a / b for a, b in zip(ours, theirs)]
            cells.append(f"{statistics.median(theirs):.0f}")
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        yield "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="folder of images [default: pictures that unfreeze draws]")
    parser.add_argument("--unfreeze", default="unfreeze", help="the program")
    parser.add_argument("--images", type=int, default=64, help="the first so many by name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    others = []
    for side in (Pillow, OpenCV):
        try:
            others.append(side())
        except ImportError as error:
            print(f"{side.name} is not compared: {error}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as drawn:
        folder = arguments.folder
        if folder is None:
            folder, draw = drawn, ["--draw", drawn, "--rounds", "1", "--seconds", "0", "--warm-up", "0"]
            command = [arguments.unfreeze, "bench", "data", "--images", str(arguments.images), *draw]
            subprocess.run(command, check=True, capture_output=True)
        compare(arguments, folder, others)


def compare(arguments, folder, others):
    names = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    pictures = (name for name in names if name.lower().endswith((".jpg", ".jpeg", ".png")))
    # In the order of `unfreeze bench data`.
    files = sorted(pictures, key=lambda name: name.split(os.sep))[: arguments.images]
    sides = [None, *others]
    rounds = []
    for number in range(arguments.rounds):
        found = {}
        for side in sides[:: 1 if number % 2 == 0 else -1]:
            if side is None:
                settings = (folder, len(files), arguments.threads, arguments.seconds, number)
                found["unfreeze"] = measure_unfreeze(arguments.unfreeze, *settings)
            else:
                found[side.name] = measure(side, files, arguments.threads, arguments.seconds)
        rounds.append(found)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    kilobytes = statistics.mean(map(os.path.getsize, files)) / 1e3
    print(f"{len(files)} files of {kilobytes:.1f} kB on average; images per second, medians of {len(rounds)} rounds in")
    print("turn; " + "; ".join(side.version for side in others))
    print()
    print("\n".join(table(rounds, others)))


if __name__ == "__main__":
    main()
