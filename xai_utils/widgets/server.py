"""The inspector as a page of its own:  python -m xai_utils.widgets.server [FOLDER ...] [--host NAME ...]

Who gets in: whoever has the token of the printed address, under a name of this machine (localhost, NAMEs). The page
reads files by their path from the project and from FOLDERs. What else is set stands in voila.json; further options
(--port=8000, --no-browser) are voila's.
"""

import argparse
import json
import os
import sys
import threading
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

from jupyter_server.utils import url_path_join
from tornado.routing import Matcher
from tornado.web import RequestHandler
from voila.app import Voila

from xai_utils.widgets import FOLDERS

NOTEBOOK = "notebooks/inspect.ipynb"
LOCAL = ("localhost", "127.0.0.1", "::1")


class _Foreign(Matcher):
    """Requests to none of `hosts`: those of a page elsewhere whose name was made to lead to this machine."""

    def __init__(self, hosts):
        self.hosts = hosts

    def match(self, request):
        return None if request.host_name.strip("[]") in self.hosts else {}


class _Refusal(RequestHandler):
    """The answer 403 and `reason`, whatever is asked for."""

    def initialize(self, reason):
        self.reason = reason

    def prepare(self):
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.reason + "\n")


def _allow_its_end(handler, notebook, cwd):
    """A page that is closed ends its kernel by a POST, for which it must have the cookie that this word sets."""
    _ = handler.xsrf_token


class Server(Voila):
    """Voila, which opens the browser with the token and answers under the names of this machine and `hosts` alone."""

    hosts: tuple[str, ...] = ()

    def init_settings(self):
        self.voila_configuration.prelaunch_hook = _allow_its_end
        return super().init_settings()

    def init_handlers(self):
        hosts = tuple(dict.fromkeys((*LOCAL, urlsplit(self.display_url).hostname, *self.hosts)))
        foreign = f"this page answers to {', '.join(hosts)}; another name of this machine: make inspect HOSTS=name"
        unknown = "open the address that `make inspect` has printed: it ends in the token that opens this page"
        return [
            (_Foreign(hosts), _Refusal, {"reason": foreign}),
            (url_path_join(self.base_url, "login"), _Refusal, {"reason": unknown}),  # where all else is sent to
            *super().init_handlers(),
        ]

    def launch_browser(self):
        # by a file of this user's: everybody on the machine can read the arguments of a browser
        page = Path(self.connection_dir) / "open.html"
        page.touch(mode=0o600)
        address = f"{self.connection_url}?token={self.identity_provider.token}"
        page.write_text(f'<meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
        try:
            browser = webbrowser.get(self.browser or None)
        except webbrowser.Error as error:
            self.log.warning("no browser was found (%s); open the address above", error)
            return
        threading.Thread(target=browser.open, args=(page.as_uri(),), daemon=True).start()


def main():
    parser = argparse.ArgumentParser(prog="make inspect", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="images may be read from there, too")
    parser.add_argument("--host", action="append", default=[], help="a further name of this machine")
    chosen, others = parser.parse_known_args()
    for folder in chosen.folders:
        if not Path(folder).is_dir():
            sys.exit(f'{folder} is no folder; make inspect FOLDERS="…" takes folders of images, separated by blanks')
    os.environ[FOLDERS] = json.dumps([os.path.abspath(folder) for folder in chosen.folders])
    Server.hosts = tuple(urlsplit(f"//{name}").hostname for name in chosen.host)
    Server.launch_instance([NOTEBOOK, *others])


if __name__ == "__main__":
    main()
