"""The discriminator learns to distinguish, the codec learns from it, and neither learns from the other's loss."""

from __future__ import annotations

import torch

from slipstream.train.adversary import Discriminator, adversarial_losses


def _pair() -> tuple[Discriminator, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    time = torch.arange(4800) / 24_000
    heard = 0.3 * torch.sin(2 * torch.pi * torch.tensor([[220.0], [330.0]]) * time)
    said = heard + 0.1 * torch.randn(heard.shape)
    return Discriminator((512, 128), 4), said, heard


def test_the_discriminator_learns_to_distinguish_a_pair() -> None:
    discriminator, said, heard = _pair()
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = adversarial_losses(discriminator, said, heard).discriminator
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_each_loss_has_a_gradient_where_it_should() -> None:
    discriminator, said, heard = _pair()
    said.requires_grad_()
    losses = adversarial_losses(discriminator, said, heard)
    for name, loss in (("codec", losses.codec), ("features", losses.features)):
        loss.backward(retain_graph=True)
        assert said.grad is not None, name
        assert said.grad.any(), name
        said.grad = None
        assert all(parameter.grad is None for parameter in discriminator.parameters())
    losses.discriminator.backward()
    assert said.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_equal_features_have_no_difference() -> None:
    discriminator, _, heard = _pair()
    assert adversarial_losses(discriminator, heard, heard).features.item() == 0.0


def test_losses_are_means_over_rows() -> None:
    discriminator, said, heard = _pair()
    whole = adversarial_losses(discriminator, said, heard)
    rows = [adversarial_losses(discriminator, said[[i]], heard[[i]]) for i in range(2)]
    for name in ("codec", "features", "discriminator"):
        mean = sum(getattr(row, name) for row in rows) / 2
        torch.testing.assert_close(getattr(whole, name), mean)
