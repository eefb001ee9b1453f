"""What a run leaves to be used: reading a bundle, ranking with it, and the users and items that it has never seen.

Nothing here needs torch: a bundle is read and ranked with numpy and pyarrow.
"""
