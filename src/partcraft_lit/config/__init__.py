"""From YAML and the command line to typed settings and objects; no other room imports Hydra."""
