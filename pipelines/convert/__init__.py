"""From a model source to the unified checkpoint: what the model is, its weights' names and layouts, its tokenizer."""
