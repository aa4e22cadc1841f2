"""What is worked out from weights may be kept as long as their version says that they are the same."""

import pytest
import torch

from ludus.optim import groups
from ludus.optim.settings import AdamWSettings, MuonSettings


@pytest.mark.parametrize("settings", [AdamWSettings(learning_rate=0.1), AdamWSettings(state="8bit"), MuonSettings()])
def test_every_optimizer_raises_the_version_of_what_it_changes(settings, tiny):
    model = tiny(vocabulary=200)  # large enough for moments of 8 bits
    if settings.kind == "adamw":
        settings = settings.model_copy(update={"learning_rate": 0.1})
    optimizer = groups.build(model.named_parameters(), settings, precision=torch.float32)
    model(torch.arange(12).view(1, 12)).square().sum().backward()
    before = {name: (value._version, value.detach().clone()) for name, value in model.named_parameters()}
    optimizer.set_rate(1.0)
    optimizer.step()
    for name, value in model.named_parameters():
        version, old = before[name]
        assert not torch.equal(value, old), name
        assert value._version > version, name
