"""Stage `demo`: a browser page that captions pictures and searches others."""

import contextlib
import sys
from collections.abc import Sequence

from decoder.captioning.access import is_loopback, read_password, trusted_hosts
from decoder.captioning.options import DemoOptions
from decoder.runs.packaged import captioner_folder
from features.extras import need
from pipeline.command import run as run_command
from pipeline.work import WorkFolder


def demo(options: DemoOptions) -> None:
    """Serve a web page that captions pictures, and searches a folder or a work directory.

    It needs no internet. Only this machine can reach it unless you set --host, which needs a
    password: in the environment variable DEMO_PASSWORD, in --password-file, or on the terminal.
    """
    need("starlette")
    need("uvicorn")
    from decoder.captioning.page import AlbumSearch, PageCaptioner, Search, WorkSearch
    from decoder.captioning.page_server import listen, serve
    from decoder.captioning.search_stage import indexed
    from decoder.ranking.searcher import Searcher
    from features.devices import choose_device

    with contextlib.closing(listen(options.host, options.port)) as listening:
        address, port = listening.getsockname()[:2]
        hosts = trusted_hosts(address, port, options.allow_host)
        password = read_password(options.password_file, needed=not is_loopback(address))
        run = captioner_folder(options.run)
        device = choose_device(options.device)
        captioner = PageCaptioner(run, options.unsure, device)
        search: Search | None = None
        if options.work is not None:
            # A decoder from before REINFORCE models human captions better.
            weights = run.best_xe if run.best_xe.exists() else run.best
            searcher = Searcher(run, weights, WorkFolder(options.work), device)
            search = WorkSearch(searcher, options.work)
        elif options.folder is not None:
            album = indexed(options.folder, run, device, "demo")
            search = AlbumSearch(album, options.folder)
        serve(
            captioner,
            search,
            options.folder if options.save else None,
            listening=listening,
            hosts=hosts,
            password=password,
            max_upload=options.max_upload,
            max_queue=options.max_queue,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(demo, DemoOptions, "decoder.demo", argv)


if __name__ == "__main__":
    sys.exit(main())
