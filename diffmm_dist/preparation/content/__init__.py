"""Features of items from what they are: images, texts and sounds, through a model that others have trained."""
