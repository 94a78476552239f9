"""decodekit against `model.generate()`, on tiny random models of many families, offline."""
