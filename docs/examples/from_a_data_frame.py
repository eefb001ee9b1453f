"""From a table in memory to recommendations.

Run it as: python docs/examples/from_a_data_frame.py FOLDER
"""

import sys

import numpy as np
import pandas as pd

from diffmm_dist import Filter, evaluate, export, prepare, train

folder = sys.argv[1]

# Purchases of 300 people among 120 products of six kinds; everybody likes two kinds, and pictures show the kind.
random = np.random.default_rng(0)
kinds = random.integers(0, 6, 120)
likes = np.array([random.permutation(6) < 2 for _ in range(300)])
people = random.integers(0, 300, 9000)
products = random.integers(0, 120, 9000)
bought = likes[people, kinds[products]] | (random.random(9000) < 0.1)
purchases = pd.DataFrame({"user": [f"person {one}" for one in people[bought]], "item": products[bought]})
pictures = np.eye(6)[kinds] + 0.3 * random.standard_normal((120, 6))
features = pd.DataFrame(pictures, columns=[f"p{place}" for place in range(6)]).assign(item=range(120))

for note in prepare(purchases, f"{folder}/dataset", features={"visual": features}, force=True):
    print("note:", note)

result = train(
    data=f"{folder}/dataset", run=f"{folder}/run",
    model={"name": "diffmm", "embedding_dim": 16, "diffusion": {"denoiser_hidden_dims": [32]}},
    train={"epochs": 4, "batch_size": 256, "learning_rate": 0.01},
)  # fmt: skip
print("validation recall@20:", result["valid"]["recall@20"])
print("test:", evaluate(f"{folder}/run", k=[5, 20]))

recommender = export(f"{folder}/run", f"{folder}/bundle", force=True)
ids, scores = recommender.recommend(purchases["user"].unique()[:3], k=5)
print("recommended:", ids, scores, sep="\n")

in_stock = Filter(allowed=range(60), categories=(list(range(120)), [f"kind {kind}" for kind in kinds]), at_most=2)
print("with rules:", recommender.recommend("person 7", k=5, filter=in_stock).ids)
print("like product 3:", recommender.similar_items(3, k=4).ids)
print("for a visitor who looked at products 3 and 5:", recommender.fold_in([3, 5], k=4).ids)

new = recommender.cold_items(pictures[:2], ids=[1000, 1001])  # as if two products had just arrived
print("new products for person 7:", new.recommend("person 7", k=2, filter=Filter(allowed=[1000, 1001])).ids)
