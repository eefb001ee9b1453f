"""AdaGCL: two learned view generators, and contrast of what they see."""
