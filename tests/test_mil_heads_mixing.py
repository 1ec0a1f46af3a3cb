"""Heads whose tiles speak to each other do what their papers say: against equations, loops or torch's own layers."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, conv2d, layer_norm, pad, scaled_dot_product_attention

from mil.heads import build_head
from mil.heads.ilra import LowRankAttention
from mil.heads.nystrom import NystromAttention, pseudo_inverse
from mil.heads.transformer import Distance, sinusoids
from mil.heads.transmil import PyramidPosition
from mil.heads.wikg import _nearest
from mil.spec import HeadSpec

DIM, WIDTH, HEADS = 6, 16, 4


def make(name, **options):
    torch.manual_seed(0)
    return build_head(HeadSpec(name, DIM, 3, hidden=WIDTH, attention=5, options=options)).double().eval()


def bag(tiles=11, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, tiles, DIM, generator=generator, dtype=torch.float64)
    xy = torch.randint(0, 9, (1, tiles, 2), generator=generator).double()
    return features, torch.ones(1, tiles, dtype=torch.bool), xy


def same(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def nystrom_by_hand(layer, tokens):
    """One sequence (T, W), head by head: (T, W), and the first token's row of the attention matrix (T,)."""
    m, count = layer.landmarks, len(tokens)
    front = -count % m
    padded = torch.cat([torch.zeros(front, WIDTH, dtype=tokens.dtype), tokens])
    length, size = len(padded) // m, WIDTH // layer.heads
    query, key, value = (padded @ layer.qkv.weight.T).chunk(3, dim=1)
    kernels, parts = [], []
    for h in range(layer.heads):
        q, k, v = (part[:, h * size : (h + 1) * size] for part in (query / math.sqrt(size), key, value))
        q_mark, k_mark = (
            torch.stack([part[i * length : (i + 1) * length].mean(0) for i in range(m)]) for part in (q, k)
        )
        kernels.append(((q @ k_mark.T).softmax(1), (q_mark @ k_mark.T).softmax(1), (q_mark @ k.T).softmax(1), v))
    scale = max(a.sum(1).max() for _, a, _, _ in kernels) * max(a.sum(0).max() for _, a, _, _ in kernels)
    rows = 0
    for h, (left, middle, right, v) in enumerate(kernels):
        z, unit = middle.T / scale, torch.eye(m, dtype=tokens.dtype)
        for _ in range(layer.iterations):
            az = middle @ z
            z = 0.25 * z @ (13 * unit - az @ (15 * unit - az @ (7 * unit - az)))
        taps = layer.convolve.weight[h, 0, :, 0].expand(size, 1, -1)
        residual = conv1d(v.T[None], taps, padding=16, groups=size)[0].T
        parts.append(left @ z @ right @ v + residual)
        rows = rows + (left @ z @ right)[front] / layer.heads
    return layer.out[0](torch.cat(parts, dim=1))[front:], rows[front:]


@pytest.mark.parametrize("count", [8, 10, 3])
def test_nystrom_attention_is_the_papers_product_of_three_kernels(count):
    torch.manual_seed(0)
    layer = NystromAttention(WIDTH, HEADS, landmarks=4).double().eval()
    tokens = torch.randn(2, count, WIDTH, dtype=torch.float64)
    mixed, first = layer(tokens)
    for i in range(2):  # each bag by itself, though they go together
        expected, row = nystrom_by_hand(layer, tokens[i])
        same(mixed[i], expected)
        same(first[i], row)


def test_nystrom_attention_with_a_landmark_for_each_token_is_exact():
    torch.manual_seed(0)
    layer = NystromAttention(WIDTH, HEADS, landmarks=10, iterations=60).double().eval()
    layer.convolve.weight.data.zero_()
    tokens = torch.randn(1, 10, WIDTH, dtype=torch.float64)
    query, key, value = layer.qkv(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    exact = scaled_dot_product_attention(query, key, value)
    same(layer(tokens)[0], layer.out(exact.transpose(1, 2).flatten(2)), 1e-5)


def test_the_iterated_inverse_is_the_pseudo_inverse():
    matrix = torch.randn(3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(3)
    same(pseudo_inverse(matrix, 40), torch.linalg.pinv(matrix), 1e-7)


def test_ppeg_sums_three_convolutions_and_the_square_itself():
    torch.manual_seed(0)
    position = PyramidPosition(WIDTH)
    tokens = torch.randn(1, 1 + 9, WIDTH)
    square = tokens[0, 1:].reshape(3, 3, WIDTH)
    expected = square.clone()
    for convolve, reach in zip(position.convolve, (3, 2, 1), strict=True):
        for row, col in np.ndindex(3, 3):
            expected[row, col] += convolve.bias
            for r, c in np.ndindex(3, 3):
                if max(abs(r - row), abs(c - col)) <= reach:
                    expected[row, col] += convolve.weight[:, 0, r - row + reach, c - col + reach] * square[r, c]
    answer = position(tokens, 3)[0]
    same(answer[0], tokens[0, 0])
    same(answer[1:], expected.reshape(9, WIDTH), 1e-5)


@pytest.mark.parametrize(("tiles", "sharper"), [(11, 1), (9, 1), (2, 1), (11, 8)])
def test_transmil_is_the_authors_forward(tiles, sharper):
    head, (features, mask, _) = make("transmil", heads=HEADS, landmarks=4), bag(tiles)
    head.layers[1].qkv.weight.data *= sharper
    project, side = head.project[0], math.ceil(math.sqrt(tiles))
    hidden = (features[0] @ project.weight.T + project.bias).relu()
    hidden = torch.cat([head.token[0], hidden, hidden[: side**2 - tiles]])

    def norm(x, i):
        return layer_norm(x, (WIDTH,), head.norms[i].weight, head.norms[i].bias)

    hidden = hidden + nystrom_by_hand(head.layers[0], norm(hidden, 0))[0]
    square = hidden[1:].T.reshape(1, WIDTH, side, side)
    square = square + sum(
        conv2d(square, conv.weight, conv.bias, padding=size // 2, groups=WIDTH)
        for conv, size in zip(head.position.convolve, (7, 5, 3), strict=True)
    )
    hidden = torch.cat([hidden[:1], square.reshape(WIDTH, -1).T])
    mixed, row = nystrom_by_hand(head.layers[1], norm(hidden, 1))
    output = head(features, mask)
    same(output.logits[0], head.classify(norm(hidden + mixed, 2)[0]))
    shares = row[1 : tiles + 1].clone()
    for extra, share in enumerate(row[tiles + 1 :]):
        shares[extra] += share
    assert (shares < 0).any() == (sharper > 1)  # the approximation's negative entries are set to 0
    shares = shares.clamp(min=0)
    same(output.attention[0], shares / shares.sum())


def low_rank_by_hand(block, queries, keys):
    """One bag: queries (Q, ·), keys (K, ·) → (Q, W) and the attention (Q, K), mean over heads."""
    asked, inner = block.query(queries), block.attend
    q, k, v = (
        part @ inner.in_proj_weight[i * WIDTH : (i + 1) * WIDTH].T + inner.in_proj_bias[i * WIDTH : (i + 1) * WIDTH]
        for i, part in enumerate((asked, block.key(keys), block.value(keys)))
    )
    size, found, shares = WIDTH // HEADS, [], 0
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        share = (q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(dim=1)
        found.append(share @ v[:, part])
        shares = shares + share / HEADS
    mixed = asked + torch.cat(found, dim=1) @ inner.out_proj.weight.T + inner.out_proj.bias
    mixed = mixed + block.out(mixed).relu()
    if block.gate is not None:
        gate = block.gate[0](queries)
        mixed = mixed * gate * gate.sigmoid()
    return mixed, shares


def test_ilra_passes_tiles_through_latents_and_pools_by_a_query():
    head, (features, mask, _) = make("ilra", heads=HEADS, rank=3), bag()
    tiles = features[0]
    for block in head.blocks:
        latents, _ = low_rank_by_hand(block.gather, block.latent[0], tiles)
        tiles, _ = low_rank_by_hand(block.scatter, tiles, latents)
    pooled, attention = low_rank_by_hand(head.pool, head.seed[0], tiles)
    output = head(features, mask)
    same(output.logits[0], head.classify(pooled)[0])
    same(output.attention[0], attention[0])


def test_only_latent_blocks_are_gated():
    head = make("ilra", layers=3)
    gated = [block.gate is not None for block in head.modules() if isinstance(block, LowRankAttention)]
    assert gated == [True] * 6 + [False]


def test_wikg_updates_each_tile_by_its_nearest_tails():
    head, (features, mask, _) = make("wikg", k=3), bag()
    leaky = nn.LeakyReLU()
    tiles = leaky(head.project[0](features[0]))
    tiles = (tiles + tiles.mean(0)) / 2
    heads, tails = head.head(tiles), head.tail(tiles)
    updated = []
    for one in heads:
        similar = torch.stack([one @ tail / math.sqrt(WIDTH) for tail in tails])
        nearest = similar.argsort(descending=True)[:3]
        shares = similar[nearest].softmax(0)
        edges = [share * tails[i] + (1 - share) * one for share, i in zip(shares, nearest, strict=True)]
        scores = torch.stack([tails[i] @ torch.tanh(one + edge) for i, edge in zip(nearest, edges, strict=True)])
        message = sum(weight * tails[i] for weight, i in zip(scores.softmax(0), nearest, strict=True))
        updated.append(leaky(head.add(one + message)) + leaky(head.multiply(one * message)))
    updated = torch.stack(updated)
    attention = head.score[2](leaky(head.score[0](updated)))[:, 0].softmax(0)
    output = head(features, mask)
    same(output.attention[0], attention)
    same(output.logits[0], head.classify(layer_norm(attention @ updated, (WIDTH,), head.norm.weight, head.norm.bias)))


def test_nearest_tails_do_not_depend_on_the_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    head, tail = (torch.randn(2, 20, 5, generator=generator) for _ in range(2))
    whole = _nearest(head, tail, 4)
    monkeypatch.setattr("mil.heads.wikg.CHUNK", 7)
    assert torch.equal(_nearest(head, tail, 4), whole)
    assert torch.equal(whole, (head @ tail.mT).argsort(dim=2, descending=True)[..., :4])


def torch_layer(block):
    """torch's own encoder layer with the weights of ours."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {"self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "out.", "linear1.": "mlp.0.", "linear2.": "mlp.3."}
    names |= {"norm1.": "norm_attention.", "norm2.": "norm_mlp."}
    state = block.state_dict()
    layer.load_state_dict(
        {f"{theirs}{kind}": state[f"{own}{kind}"] for theirs, own in names.items() for kind in ("weight", "bias")}
    )
    return layer.double().eval()


def transformer_by_torch(head, tokens, bias=None):
    """Class logits and the class token's attention, mean over heads, with torch's layers; bias (heads, T, T)."""
    mask = None if bias is None else bias
    layers = [torch_layer(block) for block in head.blocks]
    for layer in layers[:-1]:
        tokens = layer(tokens, src_mask=mask)
    normed = layers[-1].norm1(tokens)
    _, weights = layers[-1].self_attn(normed, normed, normed, attn_mask=mask)
    token = layers[-1](tokens, src_mask=mask)[:, 0]
    return head.classify(head.norm(token)), weights[0, 0, 1:] / weights[0, 0, 1:].sum()


@pytest.mark.parametrize("layers", [1, 3])
def test_the_transformer_is_torchs_own(layers):
    head, (features, mask, _) = make("transformer", layers=layers, heads=HEADS), bag()
    tokens = torch.cat([head.token, head.project(features)], dim=1)
    logits, attention = transformer_by_torch(head, tokens)
    output = head(features, mask)
    same(output.logits, logits)
    same(output.attention[0], attention)


def test_sinusoids_by_hand():
    found = sinusoids(torch.tensor([3.0, 5.0]), 8)
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    expected += [math.sin(5), math.sin(0.05), math.cos(5), math.cos(0.05)]
    same(found, torch.tensor(expected), 1e-6)


def test_sinusoidal_positions_count_from_the_bags_corner():
    head, (features, mask, xy) = make("transformer-position", heads=HEADS), bag()
    placed = head.project(features) + sinusoids((xy - xy.amin(dim=1)).float(), WIDTH)
    logits, attention = transformer_by_torch(head, torch.cat([head.token, placed], dim=1))
    output = head(features, mask, xy)
    same(output.logits, logits, 1e-6)
    same(output.attention[0], attention, 1e-6)
    same(head(features, mask, xy + 700).logits, output.logits)


def test_alibi_takes_off_by_distance(monkeypatch):
    head, (features, mask, xy) = make("transformer-position", layers=3, heads=HEADS, encoding="alibi"), bag()
    distance = (xy[0][:, None] - xy[0][None]).square().sum(2).sqrt()
    slope = torch.tensor([2.0 ** (-8 * h / HEADS) for h in (1, 2, 3, 4)], dtype=torch.float64)
    bias = -slope[:, None, None] * pad(distance, (1, 0, 1, 0))
    logits, attention = transformer_by_torch(head, torch.cat([head.token, head.project(features)], dim=1), bias)
    for chunk in (512, 5):
        monkeypatch.setattr("mil.heads.transformer.CHUNK", chunk)
        output = head(features, mask, xy)
        same(output.logits, logits, 1e-6)
        same(output.attention[0], attention, 1e-6)


def test_distances_hold_far_from_the_origin():
    xy = 40_000 + torch.arange(60.0).unsqueeze(1).expand(1, -1, 2)
    bias = Distance(xy, heads=1).bias(slice(0, 61), None)
    assert bias[0, 0, 1, 1] == 0
    assert bias[0, 0, 1, 2].item() == pytest.approx(-math.sqrt(2) / 256, rel=1e-5)


def test_alibi_sees_no_padding():
    head, (features, mask, xy) = make("transformer-position", heads=HEADS, encoding="alibi"), bag()
    longer = torch.cat([features, 9 * torch.ones(1, 4, DIM)], dim=1), torch.cat([xy, torch.ones(1, 4, 2)], dim=1)
    output = head(longer[0], pad(mask, (0, 4)), longer[1])
    same(output.logits, head(features, mask, xy).logits, 1e-6)
    assert (output.attention[0, 11:] == 0).all()
