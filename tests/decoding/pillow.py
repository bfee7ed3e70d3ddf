"""Writes pillow.tsv: what Pillow 9.4 makes of each file in MANIFEST.tsv.

    python3 pillow.py FOLDER > pillow.tsv

A line holds the path, the size and the mean colours of 3 x 3 cells, as hexadecimal bytes: of the image converted to
RGB and turned upright. Grey levels of 16 bits are scaled to 8 here, for Pillow would clip them.
"""
import csv
import sys
import warnings

import numpy as np
from PIL import Image

warnings.simplefilter("ignore")
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def rgb(path):
    image = Image.open(path)
    if image.mode.startswith("I"):
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    pixels = image.convert("RGB")
    try:
        turn = TURN.get(image.getexif().get(0x112))
    except Exception:
        turn = None
    return np.asarray(pixels if turn is None else pixels.transpose(turn), dtype=np.float64)


def span(i, side):
    start = i * side // 3
    return slice(start, max(start + 1, (i + 1) * side // 3))


def main(folder):
    print("path\twidth\theight\tcells")
    for row in csv.DictReader(open(f"{folder}/MANIFEST.tsv"), delimiter="\t"):
        if not row["pillow_9.4_verdict"].endswith("loads"):
            continue
        pixels = rgb(f"{folder}/{row['path']}")
        height, width, _ = pixels.shape
        means = [pixels[span(j, height), span(i, width)].mean((0, 1)) for j in range(3) for i in range(3)]
        cells = bytes(np.round(np.concatenate(means)).astype(np.uint8))
        print(row["path"], width, height, cells.hex(), sep="\t")


main(sys.argv[1])
