"""Training of the phantom checkpoint: procedural cases in, safetensors out, in pieces that can be interrupted."""
