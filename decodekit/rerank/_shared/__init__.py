"""Code that several reranking functions share."""
