"""A VAE in the place of diffusers' ``AutoencoderKL``."""

import pytest
import torch

from resvae import VAE, HierarchicalVAE, ImageDataModule, LatentMap, load
from resvae.errors import ResvaeError


@pytest.fixture
def vae() -> HierarchicalVAE:
    torch.manual_seed(0)
    made = HierarchicalVAE((1, 1), (1, 0), 4, (3, 16, 16), (8, 16), (1, 2), patch=2).eval()
    made.requires_grad_(False)
    return made


def images(num: int = 8) -> torch.Tensor:
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_latents_are_those_of_the_vae_and_pictures_its_means(vae):
    adapter, x = LatentMap(vae), images()
    posterior = adapter.encode(2 * x - 1).latent_dist
    mean, std = vae.latents(x)[0]
    assert mean.shape == (8, *adapter.latent_shape) == (8, 4, 4, 4)
    torch.testing.assert_close((posterior.mode(), posterior.std), (mean, std))
    draws = torch.stack([posterior.sample(torch.Generator().manual_seed(seed)) for seed in range(2000)])
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=6 * std.max().item() / 2000**0.5)
    torch.testing.assert_close(draws.std(0), std, rtol=0.12, atol=0)
    assert posterior.sample(torch.Generator().manual_seed(3)).equal(draws[3])
    torch.testing.assert_close(adapter.decode(mean).sample, 2 * vae(x) - 1)
    torch.testing.assert_close(adapter(2 * x - 1).sample, 2 * vae(x) - 1)
    assert adapter.encode(2 * x - 1, return_dict=False)[0].mode().equal(posterior.mode())
    assert adapter.decode(mean, return_dict=False)[0].equal(adapter.decode(mean).sample)


def test_the_measured_factor_gives_latents_a_deviation_of_1(vae):
    torch.manual_seed(2)
    for factor in (1.0, 5.0):
        vae.stages[0][0].posterior_net[1].weight.mul_(factor)
        adapter = LatentMap.measured(vae, images(300))
        latents = adapter.encode(2 * images(300) - 1).latent_dist.sample()
        assert (latents * adapter.config.scaling_factor).std().item() == pytest.approx(1, rel=0.02)


def test_it_tells_what_pipelines_ask_for_and_follows_the_type_of_its_input(vae):
    adapter = LatentMap(vae, 0.5)
    config = adapter.config
    assert (config.scaling_factor, config.latent_channels, config.sample_size, config.in_channels) == (0.5, 4, 16, 3)
    assert config.sample_size // 2 ** (len(config.block_out_channels) - 1) == adapter.latent_shape[1]
    assert (adapter.dtype, adapter.device.type) == (torch.float32, "cpu")
    x = (2 * images(2) - 1).half()
    latents = adapter.encode(x).latent_dist.sample()
    assert latents.dtype == adapter.decode(latents).sample.dtype == torch.float16
    pictures = LatentMap(vae).to(torch.bfloat16).decode(latents.bfloat16()).sample
    torch.testing.assert_close(pictures.float(), adapter.decode(latents).sample.float(), rtol=0, atol=0.05)
    adapter.to(torch.bfloat16)
    assert adapter.encode(x.bfloat16()).latent_dist.mode().dtype == torch.bfloat16
    adapter.to(torch.float32)
    assert adapter.encode(1.001 * torch.ones(1, 3, 16, 16)).latent_dist.mode().isfinite().all()  # a rounding off


def test_models_without_one_map_are_refused():
    for made, told in (
        (HierarchicalVAE((1, 1), (1, 1), 4, (1, 8, 8), (8, 8), (1, 2)), "this model has 2 levels"),
        (VAE(16, 4, (1, 8, 8), (8, 8), (1, 2)), "this model has a vector"),
    ):
        with pytest.raises(ResvaeError, match=told):
            LatentMap(made)


def test_a_diffusion_model_of_diffusers_trains_on_it_and_draws_through_it(vae):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    adapter = LatentMap.measured(vae, images(64))
    network = diffusers.UNet2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        latents = adapter.encode(2 * images(32) - 1).latent_dist.sample() * adapter.config.scaling_factor
        noise, steps = torch.randn_like(latents), torch.randint(50, (32,))
        predicted = network(scheduler.add_noise(latents, noise, steps), steps).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    pipeline = diffusers.LDMPipeline(vqvae=adapter, unet=network, scheduler=diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    assert drawn.shape == (2, 16, 16, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn[0].std() > 0


def test_latents_are_a_step_of_a_pipeline_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    vae = load("digits")
    data = ImageDataModule("digits")
    x, y = data.images("train", 600).numpy(), data.labels("train", 600)
    latents = FunctionTransformer(lambda x: vae.posterior(torch.as_tensor(x)).mean.detach().numpy())
    classifier = make_pipeline(latents, LogisticRegression(max_iter=1000)).fit(x, y)
    assert classifier.score(data.images("test").numpy(), data.labels("test")) > 0.8
