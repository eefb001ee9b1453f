"""What a user takes home: a bundle of embeddings and ids, and recommendations from it."""
