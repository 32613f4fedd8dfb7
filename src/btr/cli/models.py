"""``btr models``: readers and encoders, what is here, and how to get others."""

from __future__ import annotations

from btr.cli.output import JsonOption, console, write_json

OTHERS = (
    "A reader of your own is a folder with up to three checkpoints, plain/, decomposed/ and btr/, "
    "or a single\ncheckpoint: give its path. A Hugging Face Hub id (organisation/model) is "
    "downloaded on first use."
)


def models(json: JsonOption = "") -> None:
    """List the readers that ship and the encoders, and say how to get others."""
    from rich.table import Table

    from btr.errors import BtrError
    from btr.models import PACKAGED, SHIPPED, reader_folder, reader_modes, resolve

    readers, encoders = [], []
    for name, summary in SHIPPED.items():
        try:
            folder, present = str(reader_folder(name)), list(reader_modes(name))
        except BtrError:
            folder, present = "", []
        readers.append({"name": name, "summary": summary, "modes": present, "folder": folder})
    for model in PACKAGED.values():
        try:
            folder, fault = resolve(model.name), ""
        except BtrError as error:
            folder, fault = "", error.what
        encoders.append(
            {
                "name": model.name,
                "summary": model.summary,
                "licence": model.licence,
                "present": not fault,
                "fault": fault,
                "folder": folder,
                "install": model.pip_line,
            }
        )
    out = console(json)
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "kind", "what it is", "here"):
        table.add_column(heading)
    for reader in readers:
        here = ", ".join(reader["modes"]) or "no weights found"
        table.add_row(str(reader["name"]), "reader", str(reader["summary"]), here)
    for encoder in encoders:
        here = "yes" if encoder["present"] else f"{encoder['fault']}; run: {encoder['install']}"
        table.add_row(str(encoder["name"]), "encoder", str(encoder["summary"]), here)
    out.print(table)
    out.print(f"\n{OTHERS}")
    write_json(json, {"readers": readers, "encoders": encoders})
