"""A synchronous web handler: one Scrubjay for the process, used by all threads of the server.

Run it with `python examples/web_handler.py`: it starts a threading WSGI server on a free port, sends it some requests
at once, and ends. In Flask, Django or any other framework the handler is the same.
"""

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from typing import Any
from urllib.request import Request, urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from scrubjay import InvalidInput, Scrubjay, Unavailable


def make_app(jay: Scrubjay) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """Return a WSGI application.

    The user comes from whoever authenticated the request (here a proxy that sets a header), never from its body.
    """

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            status, body = "200 OK", answer(environ)
        except InvalidInput as error:
            status, body = "400 Bad Request", {"error": error.code, "message": error.message}
        except Unavailable as error:
            status, body = "503 Service Unavailable", {"error": error.code, "message": error.message}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    def answer(environ: dict[str, Any]) -> dict[str, Any]:
        user = jay.tenant("acme").user(environ.get("HTTP_X_USER", ""))
        session = user.session(environ["PATH_INFO"].strip("/"))
        question = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        session.chat.append(role="user", content=question)
        window = session.assemble(budget=2000)
        # Here the model is called with window.to_openai().
        session.chat.append(role="assistant", content=f"I have read {len(window.messages)} message(s).")
        return {"tokens": window.receipt.total_tokens, "messages": session.chat.count()}

    return app


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """Writes no log."""

    def log_message(self, *args: object) -> None:
        """Write nothing."""


def main() -> None:
    """Run it."""
    with Scrubjay.open() as jay:
        jay.tenant("acme").forget()  # so that each run prints the same
        server = make_server("127.0.0.1", 0, make_app(jay), server_class=Server, handler_class=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(user: str) -> dict[str, Any]:
            url = f"http://127.0.0.1:{server.server_port}/session-1"
            request = Request(url, data=b"Where is my refund?", headers={"X-User": user})
            with urlopen(request) as response:  # noqa: S310 - our own server
                answered: dict[str, Any] = json.load(response)
            return answered

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, ["alice", "bob"] * 8))
        server.shutdown()
        server.server_close()
        print(f"{len(answers)} requests, {max(each['messages'] for each in answers)} messages in the longer chat")
        for user in ("alice", "bob"):
            print(f"{user}: {jay.tenant('acme').user(user).session('session-1').chat.count()} messages")


if __name__ == "__main__":
    main()
