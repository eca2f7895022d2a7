"""The parts of the validator. Only the scripts in the top folder wire them together."""
