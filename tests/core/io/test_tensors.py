import numpy as np
import pytest
from safetensors import safe_open

from mixbit.core.errors import InvalidInput
from mixbit.core.io.tensors import safetensors_bytes, save_arrays


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\0" * 8, b"\x07" + b"\0" * 7 + b"{}", b"\x03" + b"\0" * 7 + b"{{}"]
)
def test_what_has_no_header_of_safetensors_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidInput, match="file: not "):
        safetensors_bytes(tmp_path / "file")


def test_arrays_are_the_same_bytes_in_any_order_of_metadata(tmp_path):
    arrays = {"b": np.arange(5, dtype=np.int8), "a": np.ones((2, 3), np.float32), "none": np.zeros((0, 2))}
    metadata = {name: f'{name} ü "' for name in "zyxwvutsrqponm"}
    save_arrays(tmp_path / "one", arrays, metadata)
    save_arrays(tmp_path / "other", arrays, dict(reversed(metadata.items())))
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "other").read_bytes()
    positions = [content.index(f'"{name}":'.encode()) for name in sorted(metadata)]
    assert positions == sorted(positions)
    with safe_open(tmp_path / "one", "np") as file:  # the library's own reader
        assert file.metadata() == metadata
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118 not a dict
            name: array.tolist() for name, array in arrays.items()
        }
