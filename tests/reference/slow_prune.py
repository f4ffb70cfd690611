"""Step-specific lottery pruning, transcribed literally from the paper's appendix G: one graft after the other, masks
applied by hand.

Nothing here is shared with the code under test but the model's block and the names of its weights.
"""

import copy

import torch
import torch.nn.functional as F

PRUNABLE = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def mask_of(name, row, config):
    """The part of a flat mask row that belongs to one parameter; 1 for what is never pruned."""
    if name not in PRUNABLE:
        return torch.tensor(1.0)
    d, hidden = config.d_model, config.d_mlp
    shapes = dict(zip(PRUNABLE, ((3 * d, d), (d, d), (hidden, d), (d, hidden)), strict=True))
    first = sum(a * b for other, (a, b) in shapes.items() if PRUNABLE.index(other) < PRUNABLE.index(name))
    rows, columns = shapes[name]
    return row[first : first + rows * columns].view(rows, columns).to(torch.get_default_dtype())


def masked_copy(block, row, config):
    """A copy of the block whose matrices are multiplied by the mask."""
    block = copy.deepcopy(block)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.mul_(mask_of(name, row, config))
    return block


def run(model, blocks, images):
    """Logits of a model whose step t uses blocks[t]."""
    z = model.embed(images)
    for t, block in enumerate(blocks):
        z = block(z, model.blocks[t], model.step_embedding(t))  # the block itself, past the step's masks
    return model.read_out(z)


def graft_loss(model, t, rows, images, labels):
    """A graft at step t and the loss of the frozen model around it."""
    cores = [model.core[model.config.block_of(s)] for s in range(model.config.n_steps)]
    blocks = [masked_copy(core, row, model.config) for core, row in zip(cores, rows, strict=True)]
    blocks[t].requires_grad_(True)
    return blocks[t], F.cross_entropy(run(model, blocks, images), labels)


def smallest(graft, row, rate, config, scope):
    """The mask without the smallest floor(rate * n) weights that it keeps, over the whole block or in each matrix."""
    magnitude = torch.cat([dict(graft.named_parameters())[name].detach().abs().flatten() for name in PRUNABLE])
    sizes = [dict(graft.named_parameters())[name].numel() for name in PRUNABLE]
    groups = [range(len(row))] if scope == "global" else [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(4)]
    row = row.clone()
    for group in groups:
        kept = sorted((i for i in group if row[i]), key=lambda i: (float(magnitude[i]), i))
        for i in kept[: int(rate * len(kept))]:
            row[i] = False
    return row


def rounds(model, init, rows, n_rounds, rate, scope, batches_of, graft_batches_of, optimizer_of, limit):
    """Yields (masks, logits function's blocks) after every round: masks [step weight].

    `init` is the untrained model; `batches_of(p)` and `graft_batches_of(p)` give lists of (images, labels, lr);
    `optimizer_of(named parameters)` makes an optimiser.
    """
    config = model.config
    for p in range(n_rounds):
        model.load_state_dict(init.state_dict())
        dead = ~rows.any(0)
        with torch.no_grad():
            for name, parameter in model.core[0].named_parameters():
                parameter.mul_(1 - mask_of(name, dead, config) if name in PRUNABLE else 1)
        train_whole(model, rows, batches_of(p), optimizer_of, limit)
        frozen = copy.deepcopy(model).requires_grad_(False)
        after = []
        for t in range(config.n_steps):
            graft = masked_copy(init.core[0], rows[t], config).requires_grad_(True)
            train_graft(frozen, graft, t, rows, graft_batches_of(p), optimizer_of, limit)
            after.append(smallest(graft, rows[t], rate, config, scope))
        rows = torch.stack(after)
        yield rows


def train_whole(model, rows, batches, optimizer_of, limit):
    """Step t runs with the shared weights times M_t; gradients sum over the steps."""
    config, core = model.config, model.core[0]
    optimizer = optimizer_of(dict(model.named_parameters()))
    for images, labels, lr in batches:
        z = model.embed(images)
        for t in range(config.n_steps):
            weights = {name: value * mask_of(name, rows[t], config) for name, value in core.named_parameters()}
            z = torch.func.functional_call(core, weights, (z, model.blocks[t], model.step_embedding(t)))
        descend(optimizer, F.cross_entropy(model.read_out(z), labels), model.parameters(), lr, limit)


def train_graft(frozen, graft, t, rows, batches, optimizer_of, limit):
    config = frozen.config
    blocks = [masked_copy(frozen.core[0], row, config).requires_grad_(False) for row in rows]
    blocks[t] = graft
    optimizer = optimizer_of(dict(graft.named_parameters()))
    for images, labels, lr in batches:
        loss = F.cross_entropy(run(frozen, blocks, images), labels)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in graft.named_parameters():
            parameter.grad.mul_(mask_of(name, rows[t], config))
        step(optimizer, graft.parameters(), lr, limit)


def descend(optimizer, loss, parameters, lr, limit):
    optimizer.zero_grad()
    loss.backward()
    step(optimizer, parameters, lr, limit)


def step(optimizer, parameters, lr, limit):
    torch.nn.utils.clip_grad_norm_(list(parameters), limit)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
