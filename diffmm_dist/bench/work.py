"""How much DiffMM computes: operations of its large products, an addition being one too, and its sparse products.

Symbols: B rows, I items, h hidden, d embedding, A anchors, N nodes.
"""


def input_flop(rows: float, items: float, width: int, *, hidden_noise: bool) -> float:
    """Return the products over the items that enter the hidden layer: x_t W and its gradient 4 B I h, or 4 I h^2.

    Args:
        rows: B.
        items: I.
        width: h of the first hidden layer.
        hidden_noise: through W^T W (noise.py).
    """
    return 4 * items * width**2 if hidden_noise else 4 * rows * items * width


def output_flop(rows: float, items: float, width: int, dim: int, *, gram: bool) -> float:
    """Return the products over the items of loss and gradients: 6 B I h + 4 B I d, or 4 I h (h + d).

    Args:
        rows: B.
        items: I.
        width: h of the last hidden layer.
        dim: d.
        gram: through W^T W (output.py).
    """
    return 4 * items * width * (width + dim) if gram else 6 * rows * items * width + 4 * rows * items * dim


def product_flop(rows: float, items: float, width: int) -> float:
    """Return the operations of a (B x h) (h x I) product, 2 B I h."""
    return rows * items * width * 2


def contrast_flop(anchors: float, nodes: float, dim: int) -> float:
    """Return the products of one contrastive term: similarities and both gradients, 6 A N d."""
    return 6 * anchors * nodes * dim


def propagation_products(modalities: int, layers: int, *, contrasted: bool) -> tuple[float, float]:
    """Return how many sparse products a recommendation step takes over the real graph and over each generated one.

    X is half a product, since only users need it; then follow X + Y and the layers of H and of each view. Z and a
    view's first product have one direction in common.

    Args:
        modalities: M.
        layers: L.
        contrasted: whether the views are computed.
    """
    return 1.5 + layers * (1 + contrasted * modalities), 1.5 if contrasted else 1.0
