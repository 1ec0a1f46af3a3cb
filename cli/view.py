"""wsi view: the browser viewer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from viewer.serve import ViewSpec

NETWORK = "Network"


def _option(help_text: str, takes: str = "", panel: str | None = None, **more: Any) -> Any:
    return typer.Option(help=help_text, metavar=takes, rich_help_panel=panel, **more)


Shown = Annotated[
    str, typer.Argument(help="A run folder, a slide, a folder of slides or a manifest", metavar="RUN|SLIDE|FOLDER")
]
Slides = Annotated[str | None, _option("Where the slides of a run lie now, where they were moved", "FOLDER|MANIFEST")]
Annotations = Annotated[Path | None, _option("Regions that others drew: one file a slide, named by its id", "FOLDER")]
Urgent = Annotated[str | None, _option("Class whose probability is a slide's urgency; else the model's last", "CLASS")]
Channels = Annotated[str | None, _option("Of fluorescence or 16-bit files: DAPI=0000FF:100-4000", "TEXT")]
Reviewer = Annotated[str | None, _option("Name under which reviews are kept; else the page asks", "NAME")]
ShowLabel = Annotated[
    bool,
    typer.Option("--show-label", help="Show label and macro images, which may name the patient", metavar=""),
]
Open = Annotated[bool, typer.Option("--open", help="Open the browser", metavar="")]
Readers = Annotated[int, _option("Processes that read slides", "N", min=1, max=16)]
Port = Annotated[int, _option("Port; 0 for a free one", "PORT", NETWORK, min=0, max=65535)]
Host = Annotated[str, _option("Address to listen on; one that others can reach needs TLS", "ADDRESS", NETWORK)]
Certificate = Annotated[Path | None, _option("Certificate, PEM", "FILE", NETWORK)]
Key = Annotated[Path | None, _option("Its key, PEM", "FILE", NETWORK)]
Proxy = Annotated[str | None, _option("Name, and port, by which browsers reach a proxy that encrypts", "NAME", NETWORK)]


def view(
    source: Shown,
    slides: Slides = None,
    annotations: Annotations = None,
    urgent: Urgent = None,
    channels: Channels = None,
    reviewer: Reviewer = None,
    show_label: ShowLabel = False,
    readers: Readers = 3,
    open_browser: Open = False,
    port: Port = 0,
    host: Host = "127.0.0.1",
    tls_cert: Certificate = None,
    tls_key: Key = None,
    behind_proxy: Proxy = None,
) -> None:
    """Show slides, heatmaps and predictions in the browser, and take down what a reviewer says. Ctrl-C ends it.

    It listens on this machine only. The link that it prints lets in who has it, and nobody else.
    """
    from viewer.serve import ViewSpec
    from wsi.errors import SpecError

    if (tls_cert is None) != (tls_key is None):
        raise SpecError("--tls-cert", "certificate and key belong together", "give both --tls-cert and --tls-key")
    spec = ViewSpec(
        source=source,
        slides=slides,
        annotations=annotations,
        urgent=urgent,
        channels=channels,
        reviewer=reviewer,
        show_label=show_label,
        readers=readers,
        host=host,
        port=port,
        tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        behind_proxy=behind_proxy,
    )
    _serve(spec, open_browser)


def _serve(spec: "ViewSpec", open_browser: bool) -> None:
    from viewer.serve import view as serve

    from .console import say

    def ready(link: str) -> None:
        say(link)
        say("Ctrl-C ends the viewer. For research; not for diagnosis.", style="dim")
        if open_browser:
            import webbrowser

            webbrowser.open(link)

    serve(spec, ready)
