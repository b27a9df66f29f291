"""Residual VQ-VAE: codes of the middle of an autoencoder (RQ-VAE; TIGER, arXiv 2305.05065, section 3.1).

The residual quantizer is that of vector-quantize-pytorch (extra `recommend`): codebooks begin with k-means on the first batch,
follow by exponential moving averages, and a code that hardly any vector takes is moved to one of the batch. The result is a
Quantizer: its codes need neither torch nor the package.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss
from vector_quantize_pytorch import ResidualVQ

from lore.engines.loading import default_device
from lore.recommend.quantize import Quantizer, codes_per_level
from lore.support.progress import track

LATENT, BATCH, RATE = 32, 1024, 1e-3
LEAST_TAKEN = 2
"""Vectors of a batch, on average, below which a code is dead."""


def fit_rqvae(vectors: np.ndarray, levels: int, size: int, epochs: int, seed: int) -> Quantizer:
    """Autoencoder and codebooks of vectors [N, D]. The same vectors, seed and machine give the same books."""
    size, width = codes_per_level(len(vectors), levels, size), vectors.shape[1]
    middle, latent, device = max(2 * LATENT, width // 2), min(LATENT, width), default_device()
    rows = torch.from_numpy(np.asarray(vectors, dtype=np.float32))
    spread = rows.std(dim=0).mean().clamp(min=1e-6)  # the loss does not depend on the scale of the vectors
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, latent)).to(device)
        decoder = nn.Sequential(nn.Linear(latent, middle), nn.ReLU(), nn.Linear(middle, width)).to(device)
        quantizer = ResidualVQ(
            dim=latent,
            num_quantizers=levels,
            codebook_size=size,
            kmeans_init=True,
            kmeans_iters=20,
            decay=0.95,
            commitment_weight=0.25,
            threshold_ema_dead_code=LEAST_TAKEN,
        ).to(device)
        optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=RATE)
        for _ in track(range(epochs), "autoencoder", total=epochs):
            for places in torch.randperm(len(rows)).split(BATCH):
                batch = rows[places].to(device)
                quantized, _, commitment = quantizer(encoder(batch))
                loss = mse_loss(decoder(quantized) / spread, batch / spread) + commitment.sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    layers = [(layer.weight, layer.bias) for layer in encoder if isinstance(layer, nn.Linear)]
    arrays = tuple(tuple(part.detach().cpu().numpy() for part in layer) for layer in layers)
    return Quantizer(quantizer.codebooks.detach().float().cpu().numpy(), arrays)
