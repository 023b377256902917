"""Settings: one YAML file is one frozen, validated object."""
