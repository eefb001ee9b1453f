"""The command that makes features of raw content."""

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from diffmm_dist.cli_options import Force, folder_to_write, place
from diffmm_dist.monitoring.log import say

if TYPE_CHECKING:
    from diffmm_dist.preparation.content.request import Kind

Images = Annotated[str | None, typer.Option(help="Folder of images, on a disk or a store.", callback=place)]
Audio = Annotated[str | None, typer.Option(help="Folder of sounds.", callback=place)]
Texts = Annotated[str | None, typer.Option(help="Table of texts: a file, a folder or a pattern.")]
Model = Annotated[str, typer.Option(help="Folder of a model, or its name on the Hugging Face hub, perhaps @REVISION.")]
OutFile = Annotated[str, typer.Option(help="Parquet file to write.", callback=folder_to_write)]
Id = Annotated[str, typer.Option(help="Column of item ids: of --texts or --ids, and of --out.")]
Text = Annotated[str | None, typer.Option(help="Columns of --texts that are put together, such as title,description.")]
Ids = Annotated[str | None, typer.Option(help="Table that says which item each file is of, if not its name.")]
File = Annotated[str, typer.Option(help="Its column of paths within the folder.")]
IdFrom = Annotated[str, typer.Option(help="name of the file without ending, or folder around it.")]
Prompt = Annotated[str, typer.Option(help="Put before every text, such as 'query: ', if the model wants it.")]
SkipDamaged = Annotated[
    bool, typer.Option("--skip-damaged", help="Leave out what cannot be read or is empty, and count it.")
]


def prepare_features(
    model: Model,
    out: OutFile,
    images: Images = None,
    texts: Texts = None,
    audio: Audio = None,
    id: Id = "item_id",
    text: Text = None,
    ids: Ids = None,
    file: File = "file",
    id_from: IdFrom = "name",
    prompt: Prompt = "",
    batch_size: Annotated[int, typer.Option(help="Contents that go through the model at once.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_seconds: Annotated[float, typer.Option(help="Of each sound, from its beginning, that count.")] = 300.0,
    skip_damaged: SkipDamaged = False,
    string_ids: Annotated[bool, typer.Option("--string-ids", help="Ids are text, such as 0042.")] = False,
    delimiter: Annotated[str | None, typer.Option(help="Between the columns of CSV files, if not , or a tab.")] = None,
    encoding: Annotated[str, typer.Option(help="Of CSV files.")] = "utf-8",
    force: Force = False,
) -> None:
    """Make item features of images, texts or sounds; the same command again goes on where it has stopped."""
    from diffmm_dist.errors import UserError
    from diffmm_dist.preparation.content.features import make_features
    from diffmm_dist.preparation.content.request import ContentRequest

    given = {"images": images, "texts": texts, "audio": audio}
    sources = [(kind, source) for kind, source in given.items() if source is not None]
    if len(sources) != 1:
        raise UserError(f"give one of --images, --texts and --audio; {len(sources) or 'none'} of them are given")
    kind, source = sources[0]
    request = ContentRequest(
        cast("Kind", kind),
        source,
        model,
        id_column=id,
        text_columns=tuple(name.strip() for name in text.split(",")) if text else (),
        ids=ids,
        file_column=file,
        id_from=cast(Any, id_from),
        prompt=prompt,
        batch_size=batch_size,
        device=cast(Any, device),
        max_seconds=max_seconds,
        skip_damaged=skip_damaged,
        text_ids=string_ids,
        delimiter={"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter),
        encoding=encoding,
    )
    report = make_features(request, out, force=force)
    say(f"features of {report.num_items:,} items, {report.width:,} wide, in {out} (on {report.device})")
    for note in report.notes:
        say(f"note: {note}")
    modality = {"images": "visual", "texts": "textual", "audio": "acoustic"}[kind]
    say(f"next: prepare tables ... --features {modality}={out} --feature-item {modality}={id}")
