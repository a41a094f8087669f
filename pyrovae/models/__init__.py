"""The pair: model, guide and the modules they are made of."""
