"""Part tokens: how a prompt names them, where they sit among the ids of a text, which vector each of them is."""
