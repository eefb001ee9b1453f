"""Small charts without a drawing library: lists of shapes, drawn as SVG for a page or as PNG for TensorBoard."""
