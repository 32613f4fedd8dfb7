"""Finding passages: a lexical index, a dense index, and their fusion."""
