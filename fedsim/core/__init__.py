"""What everything else stands on: keys, errors, the registry, shared types. No third-party import but numpy."""
