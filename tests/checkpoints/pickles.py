#!/usr/bin/env python3
"""Writes tests/checkpoints/fixtures/pickles.json: values that Python pickles, in every protocol, and what it imports.

    python3 tests/checkpoints/pickles.py    # nothing but Python

Imports are what Python's own unpickler asks for. Which instructions no pickle uses is printed: those of long values, of
Python 2, of the extension registry and of buffers out of band.
"""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import json
import pathlib
import pickle
import pickletools
import uuid
from pathlib import Path

OUT = Path(__file__).parent / "fixtures" / "pickles.json"


class Keywords:
    """Pickled by `NEWOBJ_EX`."""

    def __new__(cls, *, size=1):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"size": 3}


class Items(dict):
    """A dictionary with state."""


class Level(enum.Enum):
    LOW = 1


def tuple_of(length):
    """A tuple that holds a list that holds it: the pickler throws its parts away again."""
    value = tuple([] for _ in range(length))
    value[0].append(value)
    return value


class Recorder(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file)
        self.imports = set()

    def find_class(self, module, name):
        self.imports.add(f"{module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, pid):
        return ("loaded", pid)


class Persistent(pickle.Pickler):
    def persistent_id(self, value):
        return "storage 7" if value == "storage" else None


def values():
    items = Items(a=1)
    items.note = "state"
    recursive = []
    recursive.append(recursive)
    far = [f"{index}" for index in range(300)]
    namespace = argparse.Namespace(lr=0.1, name="x" * 300, steps=list(range(1100)))
    yield "scalars", [None, True, False, 0, -1, 255, 256, 65536, -70000, 2**40, -2**70, 2**3000, 1.5, float("inf")]
    yield "text", ["", "a", "ü", "\\u0041\n", "x" * 300, "line\r\nend"]
    yield "bytes", [b"", b"\x00\xff\n", b"x" * 300, bytearray(b"abc"), bytearray()]
    yield "containers", [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], {}, {"a": 1}, {"a": 1, 2: ()}, set(),
                         {1, 2}, frozenset(), frozenset([1])]
    yield "shared", [(shared := ["x", ("y",)]), shared, {"z": shared}]
    yield "recursive", recursive
    yield "recursive tuples", [tuple_of(1), tuple_of(4)]
    yield "many", [[f"name {index}" for index in range(300)]] * 2 + [[str(index % 2) for index in range(20)]]
    yield "far", far + far
    yield "ordered", collections.OrderedDict([("conv1.weight", 1), ("conv1.bias", 2)])
    yield "defaults", collections.defaultdict(list, {"a": [1]})
    yield "namespace", namespace
    yield "paths", [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c")]
    yield "times", [datetime.datetime(2020, 1, 2), datetime.timedelta(3)]
    yield "numbers", [decimal.Decimal("1.5"), fractions.Fraction(1, 3), complex(1, 2), range(3), slice(1, 2)]
    yield "partial", functools.partial(int, base=2)
    yield "enum", Level.LOW
    yield "keywords", Keywords()
    yield "items", items
    yield "uuid", uuid.UUID(int=5)
    yield "classes", [int, dict, collections.OrderedDict, Items, len, print]
    yield "persistent", {"weight": "storage", "again": ["storage"]}


def main():
    originals = []
    for what, value in values():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            file = io.BytesIO()
            (Persistent if what == "persistent" else pickle.Pickler)(file, protocol).dump(value)
            data = file.getvalue()
            # Long ones say nothing new but for one protocol each.
            if len(data) > 5000 and protocol not in (0, 4):
                continue
            recorder = Recorder(io.BytesIO(data))
            try:
                recorder.load()
            except pickle.UnpicklingError as error:
                raise SystemExit(f"{what}, protocol {protocol}: {error}")
            last = list(pickletools.genops(data))[-1]
            assert last[0].name == "STOP" and last[2] == len(data) - 1
            originals.append({"what": f"{what}, protocol {protocol}", "hex": data.hex(),
                              "imports": sorted(recorder.imports)})
    OUT.write_text("[\n" + ",\n".join(json.dumps(original) for original in originals) + "\n]\n")
    used = {op.name for original in originals for op, _, _ in pickletools.genops(bytes.fromhex(original["hex"]))}
    print(f"{len(originals)} pickles; not used: {sorted({op.name for op in pickletools.opcodes} - used)}")


if __name__ == "__main__":
    main()
