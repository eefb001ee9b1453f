"""Recommendations over HTTP: answers to requests from a bundle, and the application of Ray Serve."""
