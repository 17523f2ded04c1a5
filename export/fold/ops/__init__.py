"""The operators that folding knows, a module a family; each class states its identity and its side conditions."""
