"""``btr info``: what a store holds and what its bytes are spent on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from btr.cli.output import JsonOption, StoreArgument, bytes_text, console, printable, write_json

if TYPE_CHECKING:
    from btr.store.format import Manifest


def info(
    store: StoreArgument,
    json: JsonOption = "",
) -> None:
    """Show what a store holds: sizes by part, bytes per token, the reader it belongs to."""
    from btr.store.reader import TokenStore
    from btr.store.sizes import store_sizes

    with TokenStore.open(store) as opened:
        opened.check_sizes()
        manifest, folder = opened.manifest, opened.path
    spec, sizes = manifest.spec, store_sizes(folder, manifest)
    settings = spec.settings
    report = {
        "passages": manifest.passages,
        "tokens": manifest.tokens,
        "dim": spec.dim,
        "split_layer": spec.split_layer,
        "fingerprint": dict(spec.fingerprint),
        "bytes": sizes.by_part,
        "state_bytes_per_token": round(sizes.state_bytes_per_token, 3),
        "ratio_to_continuous": round(sizes.ratio_to_continuous, 3),
        "removed": manifest.removed,
        "generation": manifest.generation,
        "compression": dict(manifest.compression),
    }
    out = console(json)
    for name, value in (
        ("reader", f"{settings.get('reader', '?')}, {settings.get('mode', '?')}, split after layer "
                   f"{spec.split_layer}"),
        ("passages", f"{manifest.passages:,}" + (f", and {manifest.removed:,} removed"
                                                 if manifest.removed else "")),
        ("tokens", f"{manifest.tokens:,}, {manifest.tokens / manifest.ordinals:.1f} a passage"),
        ("cut short", f"{manifest.truncated:,} passages longer than the reader's budget"),
        ("states", f"{spec.kind}, {spec.dim} dimensions, {sizes.state_bytes_per_token:.1f} bytes a "
                   f"token, {sizes.ratio_to_continuous:.1f} times smaller than fp32"),
        *((("compressed", _compression(manifest)),) if manifest.compression else ()),
        ("in all", bytes_text(sum(sizes.by_part.values()))),
        *((f"  {part}", bytes_text(size)) for part, size in sizes.by_part.items() if size),
    ):  # fmt: skip
        out.print(f"{name:<10}  {printable(value)}")
    write_json(json, report)


def _compression(manifest: Manifest) -> str:
    how, every = manifest.compression, max(1, manifest.tokens)
    shared = (f"{how['shared_ids']:,} token ids share their vectors "
              f"({100 * how['shared_tokens'] / every:.1f} % of the tokens)")  # fmt: skip
    if how["neighbours"]:
        shared += f", {100 * how['left_out_tokens'] / every:.1f} % left out, by neighbours"
    else:
        shared += f", ratio {how['ratio']:g} merged into {how['merged_vectors']:,} vectors"
    return shared + (", bits coded" if how["lossless"] else "")
