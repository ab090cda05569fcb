"""Compressed models in transformers 5: import this module once, then use transformers as ever.

    import neuzip_rs.hf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("model-nz")   # what `neuzip compress model` wrote
    model.save_pretrained("copy-nz")                           # compressed again, original names

Importing registers the quantization method "neuzip", which `config.json` in a compressed directory
names. Weights are decoded while they are loaded and are ordinary parameters then, bit for bit those
of the original directory. `save_pretrained` in this module writes any model compressed,
`load_state_dict` reads a compressed directory without building a model, and `neuzip_rs.hub` moves
compressed models to and from a hub.
"""

from neuzip_rs.hf.config import NeuzipConfig
from neuzip_rs.hf.quantizer import NeuzipQuantizer
from neuzip_rs.hf.saving import save_pretrained
from neuzip_rs.hf.state import load_state_dict

__all__ = ["NeuzipConfig", "NeuzipQuantizer", "load_state_dict", "save_pretrained"]
