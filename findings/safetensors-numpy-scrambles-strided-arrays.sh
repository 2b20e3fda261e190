#!/usr/bin/env bash
# safetensors.numpy saves an array that is not contiguous as other numbers in the same shape.
# Seen with safetensors 0.8.0: a transposed matrix comes back with its elements in the order of memory, every second
# element of a vector as its first half. No error is raised; the documentation asks for contiguous tensors.
# Why it matters: x.T, x[::2] and Fortran order are everyday arrays (scipy.linalg.eigh returns one); shape and dtype of
# what is read are right and its content is not. safetensors.torch refuses such a tensor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save, save_file

matrix, vector = np.arange(6.0).reshape(2, 3), np.arange(10.0)
arrays = {"transposed": matrix.T, "every second": vector[::2], "Fortran order": np.asfortranarray(matrix)}
print("safetensors", safetensors.__version__)
wrong = []
for name, array in arrays.items():
    save_file({"x": array}, "x.safetensors")
    found = load(save({"x": array}))["x"]
    assert np.array_equal(found, load_file("x.safetensors")["x"])
    print(f"{name}: saved {array.tolist()}, read {found.tolist()}")
    wrong.append(found.shape == array.shape and not np.array_equal(found, array))
right = load(save({"x": np.ascontiguousarray(matrix.T)}))["x"]
assert all(wrong) and np.array_equal(right, matrix.T), "it no longer does so"
PYTHON
