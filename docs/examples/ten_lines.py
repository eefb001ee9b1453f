"""The best items for a user from a bundle, with pyarrow and numpy alone.

Run it as: python docs/examples/ten_lines.py BUNDLE USER
"""

import sys

import numpy as np
import pyarrow as pa

folder, user = sys.argv[1:]
users, items, seen = (pa.ipc.open_file(f"{folder}/{name}.arrow").read_all() for name in ("users", "items", "seen"))
row = users["id"].cast("string").to_pylist().index(user)
embedding = np.array(users["embedding"][row].as_py(), np.float32)
rows = np.concatenate([chunk.flatten().to_numpy() for chunk in items["embedding"].chunks]).reshape(len(items), -1)
scores = rows @ embedding
scores[seen["item"].to_numpy()[seen["user"].to_numpy() == row]] = -np.inf
for item in np.argsort(-scores, kind="stable")[:20]:
    print(items["id"][item.item()].as_py(), f"{scores[item]:.4f}")
