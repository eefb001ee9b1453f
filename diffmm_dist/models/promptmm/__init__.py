"""PromptMM: a prompt-tuned multi-modal teacher, and a small student that learns from it or from any other model."""
