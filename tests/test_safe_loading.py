"""Files from strangers: only allowed globals are called, and no stated size is believed."""

import argparse
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers import Command

from utils.system.errors import InputError
from utils.system.safe_load import CHECKPOINT_GLOBALS, SETTINGS, WEIGHT_GLOBALS, Inert, load_archive


def write_zip(path, pickled, records=None, compression=zipfile.ZIP_STORED):
    """Write an archive in the layout of `torch.save` with any data.pkl."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/data/{name}", data)
    return path


def refused(path, *words):
    """Assert that the file is refused in one sentence that names it, and return the sentence."""
    with pytest.raises(InputError) as caught:
        load_archive(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_shell_command_in_a_label_file_does_not_run(protocol, tmp_path):
    """`os.system` (pickled under its home module) is named in the refusal, and has not run."""
    trace = tmp_path / "ran"
    payload = pickle.dumps([Command(trace)], protocol=protocol)
    path = tmp_path / "batch_0.tar"
    assert "refused" in refused(write_zip(path, payload), "system")
    assert not trace.exists()
    pickle.loads(payload)  # plain pickle runs the command
    assert trace.exists()


def test_torch_save_of_a_command_is_refused(tmp_path):
    """The same through `torch.save` itself, as an attacker would write it."""
    trace, path = tmp_path / "ran", tmp_path / "batch_0.tar"
    torch.save([Command(trace)], path)
    refused(path, "refused", "system")
    assert not trace.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93X\x01\x00\x00\x001\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02c__builtin__\neval\n.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x0b__dict__.os\x93.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02cutils.archive\nload_archive\n.",
    ],
)
def test_names_outside_the_list_are_refused(pickled, tmp_path):
    """Every opcode that can name a global is covered."""
    refused(write_zip(tmp_path / "f", pickled), "refused")


def test_a_numpy_object_scalar_is_refused(tmp_path):
    """A numpy dtype `O` contains pickles of its own."""
    pickled = pickle.dumps(np.float64(1), protocol=2).replace(b"f8", b"O8")
    refused(write_zip(tmp_path / "f", pickled), "refused", "O8")


@pytest.mark.parametrize("opcode", "BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER EXT1 EXT2 EXT4 INST OBJ".split())
def test_dangerous_opcodes_are_refused(opcode, tmp_path):
    """Opcodes that allocate a stated size or bypass the allow-list are removed."""
    pickled = b"\x80\x05(" + getattr(pickle, opcode) + (2**40).to_bytes(8, "little") + b"os\nsystem\n."
    refused(write_zip(tmp_path / "f", pickled), "damaged")


@pytest.mark.parametrize("text", ["a\nb", "a" * 5000])
def test_a_reason_that_quotes_the_file_is_one_short_line(text, tmp_path):
    """Python's own message about a call quotes text of the file."""
    pickled = b"\x80\x02X" + len(text).to_bytes(4, "little") + text.encode() + b"K\x01R."
    assert len(refused(write_zip(tmp_path / "f", pickled), "damaged")) < 1000


def tensor_pickle(numel, offset, size, stride, key="0", more=()):
    """Return a data.pkl with one float32 tensor of the stated layout."""

    class Storage:
        """A storage that is pickled by its persistent id."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, key, "cpu", numel, *more) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(Tensor())
    return buffer.getvalue()


def test_a_valid_tensor_is_read(tmp_path):
    """The file that the next test damages is readable before."""
    data = np.arange(8, dtype=np.float32)
    path = write_zip(tmp_path / "f", tensor_pickle(8, 2, (2, 3), (3, 1)), {"0": data.tobytes()})
    assert load_archive(path).tolist() == [[2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride"),
    [
        (16, 0, (16,), (1,)),  # storage longer than its record
        (4, 0, (4,), (1,)),  # storage shorter than its record
        (8, 0, (9,), (1,)),  # tensor longer than its storage
        (8, 1, (8,), (1,)),
        (8, 0, (2, 2), (7, 7)),
        (8, 0, (2**40,), (0,)),
        (8, 0, (2**40, 2**40), (0, 0)),
        (8, 0, (-1,), (1,)),
        (8, -1, (2,), (1,)),
        (8, 7, (2,), (-1,)),
        (8, 0, (2, 4), (1,)),
        (8, 0, (2.0,), (1,)),
        (8, 0, ("2",), (1,)),
        (-8, 0, (1,), (1,)),
    ],
)
def test_tensors_lie_inside_their_records(numel, offset, size, stride, tmp_path):
    """Sizes, strides, offsets and storage lengths are checked against the bytes that are there."""
    path = write_zip(tmp_path / "f", tensor_pickle(numel, offset, size, stride), {"0": bytes(32)})
    refused(path, "damaged")


@pytest.mark.parametrize("key", ["1", "../data.pkl"])
def test_a_missing_record(key, tmp_path):
    """A storage without its record is refused."""
    refused(write_zip(tmp_path / "f", tensor_pickle(8, 0, (8,), (1,), key), {"0": bytes(32)}), "damaged")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file(share, tmp_path):
    """An incomplete copy is called damaged."""
    path = tmp_path / "batch_0.tar"
    torch.save([torch.zeros(100, 10)], path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "damaged")


def test_other_archives(tmp_path):
    """Compressed records (a possible zip bomb), a missing data.pkl, other files, a missing file and a folder fail."""
    zeros = tensor_pickle(10**6, 0, (10**6,), (1,))
    bomb = write_zip(tmp_path / "bomb", zeros, {"0": bytes(4 * 10**6)}, zipfile.ZIP_DEFLATED)
    refused(bomb, "damaged", "compressed")
    with zipfile.ZipFile(tmp_path / "empty", "w") as archive:
        archive.writestr("a/readme", "nothing")
    refused(tmp_path / "empty", "damaged", "data.pkl")
    (tmp_path / "text").write_text("not a zip")
    refused(tmp_path / "text", "damaged")
    refused(tmp_path / "none", "is missing")
    refused(tmp_path, "cannot be read")


def test_flipped_bytes_are_noticed(tmp_path):
    """The zip's checksums are checked."""
    path = tmp_path / "batch_0.tar"
    torch.save(torch.full((64,), 1.5), path)
    path.write_bytes(path.read_bytes().replace(torch.full((2,), 1.5).numpy().tobytes(), b"\0" * 8, 1))
    refused(path, "damaged")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "dtype",
    "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool".split(),
)
def test_dtypes_round_trip(dtype, legacy, tmp_path):
    """Every allowed storage type is read, also as a shared, offset, transposed and empty view."""
    base = torch.arange(12).view(3, 4).to(getattr(torch, dtype))
    saved = {"whole": base, "part": base[1:], "turned": base.t(), "empty": base[:0], "number": base[2, 3]}
    torch.save(saved, tmp_path / "f", _use_new_zipfile_serialization=not legacy)
    loaded = load_archive(tmp_path / "f")
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_a_checkpoint_round_trips(tmp_path):
    """State dicts of a module and an optimizer, parameters and plain Python values are read."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": model[0].weight,
        "rest": [1, 2.5, None, True, "text", (1, 2), 2**70, b"bytes"],
    }
    torch.save(state, tmp_path / "f")
    loaded = load_archive(tmp_path / "f", WEIGHT_GLOBALS)
    assert loaded["rest"] == state["rest"]
    assert torch.equal(loaded["parameter"], model[0].weight)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded["state_dict"][name], tensor)
    torch.testing.assert_close(loaded["optimizer"], state["optimizer"], rtol=0, atol=0)
    refused(tmp_path / "f", "_rebuild_parameter")  # label files have no parameters


MAGIC = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


def write_legacy(path, pickled, storages, head=MAGIC, keys=None):
    """Write a file like PyTorch before 1.6, with any pickle; `storages` maps name -> (stated length, bytes)."""
    parts = [pickle.dumps(part, protocol=2) for part in head]
    parts += [pickled, pickle.dumps(sorted(storages) if keys is None else keys, protocol=2)]
    parts += [struct.pack("<q", numel) + data for _, (numel, data) in sorted(storages.items())]
    path.write_bytes(b"".join(parts))
    return path


FLOATS = np.arange(8, dtype=np.float32).tobytes()


def test_a_valid_legacy_tensor_is_read(tmp_path):
    """The whole storage and a part of it are readable before the next test damages them."""
    path = write_legacy(tmp_path / "f", tensor_pickle(8, 2, (2, 3), (3, 1), more=(None,)), {"0": (8, FLOATS)})
    assert load_archive(path).tolist() == [[2, 3, 4], [5, 6, 7]]
    part = tensor_pickle(8, 1, (2,), (1,), more=(("1", 4, 3),))  # the last two of elements 4 to 6
    assert load_archive(write_legacy(tmp_path / "f", part, {"0": (8, FLOATS)})).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("numel", "more", "storages", "options"),
    [
        (2**40, (), {"0": (2**40, FLOATS)}, {}),
        (-8, (), {"0": (-8, FLOATS)}, {}),
        ("8", (), {"0": (8, FLOATS)}, {}),
        (8, (), {"0": (7, FLOATS)}, {}),
        (8, (), {"0": (8, FLOATS[:-1])}, {}),
        (8, (), {"0": (8, FLOATS + b"more")}, {}),
        (8, (), {}, {}),
        (8, (), {"0": (8, FLOATS)}, {"keys": ["0", "0"]}),
        (8, (), {"0": (8, FLOATS)}, {"keys": ["1"]}),
        (8, (("1", 0, 9),), {"0": (8, FLOATS)}, {}),
        (8, (("1", -1, 8),), {"0": (8, FLOATS)}, {}),
        (8, (("1", 4, 2),), {"0": (8, FLOATS)}, {}),
        (8, (), {"0": (8, FLOATS)}, {"head": [1, *MAGIC[1:]]}),
        (8, (), {"0": (8, FLOATS)}, {"head": [MAGIC[0], 1002, MAGIC[2]]}),
        (8, (), {"0": (8, FLOATS)}, {"head": [*MAGIC[:2], {"little_endian": False}]}),
        (8, (), {"0": (8, FLOATS)}, {"head": [*MAGIC[:2], []]}),
    ],
)
def test_legacy_sizes_are_not_believed(numel, more, storages, options, tmp_path):
    """Storages that are longer than the file, missing or wrongly stated are refused."""
    path = write_legacy(tmp_path / "f", tensor_pickle(numel, 0, (4,), (1,), more=more), storages, **options)
    refused(path, "damaged")


@pytest.mark.parametrize("allowed", ["labels", "checkpoint"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("subprocess", "Popen"),
        ("pathlib", "os.system"),
        ("argparse", "_sys"),
        ("collections", "_sys.modules"),
        ("torch", "load"),
        ("numpy", "load"),
        ("functools", "partial"),
    ],
)
def test_functions_are_refused_by_name(module, name, legacy, allowed, tmp_path):
    """Checkpoints are covered as well, where classes of settings become `Inert`."""
    text = f"\x8c{chr(len(module))}{module}\x8c{chr(len(name))}{name}".encode("latin1")
    pickled = b"\x80\x04" + text + b"\x93X\x04\x00\x00\x00true\x85R."
    path = tmp_path / "f"
    write_legacy(path, pickled, {}) if legacy else write_zip(path, pickled)
    with pytest.raises(InputError, match=f"f is refused: its pickle asks for {module}.{name}, which"):
        load_archive(path, CHECKPOINT_GLOBALS) if allowed == "checkpoint" else load_archive(path)


def test_settings_become_inert(tmp_path):
    """A pickle may pass arguments, keywords, state and items to a class of settings; nothing is kept."""
    for opcodes in (
        b"X\x01\x00\x00\x00a\x85R",  # REDUCE
        b")\x81}X\x01\x00\x00\x00aK\x01sb",  # NEWOBJ, BUILD
        b")}X\x01\x00\x00\x00aK\x01s\x92",  # NEWOBJ_EX
        b")\x81X\x08\x00\x00\x00__dict__K\x01s",  # SETITEM
        b")\x81(K\x01K\x02u",  # SETITEMS
        b")\x81(K\x01K\x02e",  # APPENDS
        b")\x81K\x01a",  # APPEND
    ):
        value = load_archive(
            write_zip(tmp_path / "f", b"\x80\x04cargparse\nNamespace\n" + opcodes + b"."), CHECKPOINT_GLOBALS
        )
        assert type(value) is Inert
        assert not hasattr(value, "__dict__")
        assert not hasattr(value, "a")
        assert not callable(value)
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "f")
    refused(tmp_path / "f", "argparse.Namespace")  # label files have no settings


def test_no_setting_is_a_function():
    """The list names only classes, except `_reconstruct`, which makes an empty numpy array."""
    import importlib

    for module, names in SETTINGS.items():
        if module in ("builtins", "argparse", "types", "collections", "pathlib", "datetime"):
            assert all(isinstance(getattr(importlib.import_module(module), name), type) for name in names.split())
    assert all(
        CHECKPOINT_GLOBALS[module, name] is Inert
        for module in ("builtins", "pathlib")
        for name in SETTINGS[module].split()
    )


def test_a_truncated_legacy_file(tmp_path):
    """The file is called damaged, wherever it ends."""
    torch.save(
        [torch.arange(6.0), {"a": torch.ones(2, dtype=torch.bool)}],
        tmp_path / "whole",
        _use_new_zipfile_serialization=False,
    )
    content = (tmp_path / "whole").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "f").write_bytes(content[:length])
        refused(tmp_path / "f", "damaged")
