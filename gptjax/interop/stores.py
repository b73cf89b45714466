"""Files of tensors by name: safetensors, whole or in shards, and GGUF.

A store knows the shape and the kind of every tensor when it is opened, and reads blocks of them.
Pickles (.bin, .pth, .pt, .ckpt of PyTorch) are refused: loading one runs whatever code it holds.
"""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gptjax.errors import BadInput, did_you_mean
from gptjax.interop.ggufheader import check_header
from gptjax.interop.layouts import Range

KINDS = ("F64", "F32", "F16", "BF16")
QUANTISED = ("Q8_0", "Q4_0", "Q4_1")
PICKLES = (".bin", ".pth", ".pt", ".pkl", ".ckpt")
SINGLE, SHARDED = "model.safetensors", "model.safetensors.index.json"


@contextlib.contextmanager
def reading(source: str | Path) -> Iterator[None]:
    """What the file system refuses meanwhile becomes BadInput that names the file."""
    try:
        yield
    except OSError as error:
        where = error.filename or source
        raise BadInput(f"{where} cannot be read: {error.strerror or error}") from None


class Store(ABC):
    """Tensors by name. `source` is how messages call it."""

    source: str
    shapes: Mapping[str, tuple[int, ...]]

    @abstractmethod
    def kind(self, name: str) -> str | None:
        """None for a dtype that is read, else its name."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """What numbers a tensor holds, as its file calls them."""

    @abstractmethod
    def read(self, name: str, ranges: tuple[Range, ...]) -> np.ndarray:
        """A block of a tensor."""


class SafetensorsStore(Store):
    """One or more files in the format of safetensors; BadInput for what is damaged or missing."""

    def __init__(self, files: list[Path], source: str):
        self.source = source
        self.shapes, self._where, self._kinds = {}, {}, {}
        for path in files:
            handle = _opened(path)
            for name in handle.keys():  # noqa: SIM118 a handle is no mapping
                if name in self._where:
                    raise BadInput(f"{source} has the tensor {name!r} in two files")
                part = handle.get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                self._where[name], self._kinds[name] = handle, part.get_dtype()

    def kind(self, name: str) -> str | None:
        found = self._kinds[name]
        return None if found in KINDS else found

    def dtype(self, name: str) -> str:
        return self._kinds[name]

    def read(self, name: str, ranges: tuple[Range, ...]) -> np.ndarray:
        if not ranges:
            return self._where[name].get_tensor(name)
        return self._where[name].get_slice(name)[tuple(slice(*span) for span in ranges)]


class GgufStore(Store):
    """A GGUF file; rows of quantised tensors become float32 as they are read."""

    def __init__(self, path: Path, source: str):
        try:
            import gguf
        except ImportError:
            raise BadInput(f"{source} needs the package gguf: pip install 'gptjax[hf]'") from None
        self.source = source
        check_file(path)
        check_header(path, {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()})
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:  # the reader has no error of its own
            raise BadInput(f"{path} is damaged or cut short: {_words(error)}") from None
        self.fields = {}
        for name, field in reader.fields.items():
            try:
                self.fields[name] = field.contents()
            except ValueError:
                raise BadInput(f"{path} is damaged: its field {name!r} is not UTF-8") from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._dequantize = gguf.dequantize
        self.shapes = {
            name: tuple(int(n) for n in reversed(tensor.shape.tolist()))
            for name, tensor in self._tensors.items()
        }

    def kind(self, name: str) -> str | None:
        found = self._tensors[name].tensor_type.name
        return None if found in (*KINDS, *QUANTISED) else found

    def dtype(self, name: str) -> str:
        return self._tensors[name].tensor_type.name

    def read(self, name: str, ranges: tuple[Range, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        *rows, columns = (slice(*span) for span in ranges)
        block = tensor.data[tuple(rows)]
        if tensor.tensor_type.name in ("F32", "F64", "F16"):
            return block[..., columns]
        return self._dequantize(np.ascontiguousarray(block), tensor.tensor_type)[..., columns]


def open_safetensors(folder: Path, source: str) -> SafetensorsStore:
    """The weights in a folder as transformers writes it; BadInput where there are none to read."""
    if not folder.is_dir():
        what = "is a file; give the folder it stands in" if folder.exists() else "does not exist"
        raise BadInput(f"{source} {what}")
    if (folder / SINGLE).exists():
        return SafetensorsStore([folder / SINGLE], source)
    if (folder / SHARDED).exists():
        tree = read_json(folder / SHARDED)
        names = tree.get("weight_map")
        if not isinstance(names, dict) or not all(_plain(file) for file in names.values()):
            raise BadInput(f"{folder / SHARDED} has no weight_map of tensors to files beside it")
        files = [folder / file for file in sorted(set(names.values()))]
        store = SafetensorsStore(files, source)
        for name in names:
            if name not in store.shapes:
                raise BadInput(f"{source} lacks the tensor {name!r}, which its index names")
        return store
    return any_safetensors(folder, source)


def any_safetensors(folder: Path, source: str) -> SafetensorsStore:
    """All files of a folder that end in .safetensors; BadInput, with the reason, for pickles."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return SafetensorsStore(files, source)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise refused_pickle(folder / pickles[0])
    raise BadInput(f"{source} holds no weights: it has no {SINGLE}")


def refused_pickle(path: Path) -> BadInput:
    """The error for a file that would run code on loading."""
    return BadInput(
        f"{path} is a pickle, which may run any code when it is loaded, so it is not read; save "
        "the same weights as safetensors"
    )


def read_json(path: Path) -> dict:
    """The object in a JSON file; BadInput names the file."""
    check_file(path)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is no JSON: {_words(error)}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{path} holds a {type(tree).__name__}, not an object")
    return tree


def check_file(path: Path) -> None:
    """BadInput that says what stands where a file is wanted."""
    if path.is_symlink() and not path.exists():
        raise BadInput(f"{path} is a link to what is not there, or to itself")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no plain file"
        raise BadInput(f"{path} is {what}; a file is wanted there")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        raise BadInput(f"{path} is missing{did_you_mean(path.name, near)}")
    with reading(path), path.open("rb"):
        pass  # the libraries that read it say of one without permission that it is not there


def _opened(path: Path):
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise BadInput(f"{path} needs the package safetensors: pip install 'gptjax[hf]'") from None
    check_file(path)
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path} is damaged or cut short: {_words(error)}") from None


def _plain(file) -> bool:
    """Whether it is a name of a file in the same folder."""
    return isinstance(file, str) and file == Path(file).name and file not in ("", ".", "..")


def _words(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
