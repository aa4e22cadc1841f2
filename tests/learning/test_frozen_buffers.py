"""What a checkpoint of a model on quantised weights holds: the adapter, and nothing that never changes."""

from ludus.adapters.lora import lora
from ludus.adapters.quantised import quantise_model
from ludus.adapters.settings import LoraSettings
from ludus.learning.loop import _learned
from ludus.model.architecture import Experts


def test_a_checkpoint_leaves_quantised_weights_out(tiny):
    model = lora(quantise_model(tiny(), "nf4"), LoraSettings(rank=2), seed=0)
    held = _learned(model)
    assert held
    assert all(".lora_" in name for name in held)


def test_lasting_buffers_of_others_stay_in(tiny):
    model = tiny(experts=Experts(count=4, chosen=2, shared=1, hidden=16))
    buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
    assert buffers
    assert buffers <= _learned(model).keys()
