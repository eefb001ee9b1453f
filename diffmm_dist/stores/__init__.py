"""The stores behind addresses, of which ``registry`` knows all.

``store`` has what all of them do, through fsspec; ``s3`` and the others what their clients do otherwise. ``access`` is
how the rest of the program reaches them.
"""
