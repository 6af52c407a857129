"""A TCP proxy that cuts connections at a bad moment."""

from __future__ import annotations

import socket
import threading


class Proxy:
    """Forwards to a port of this machine; loses the answers to the next `lose` messages that hold `word`.

    The message itself arrives: the server does what it says, and the client is cut off before it hears of it.
    """

    def __init__(self, port: int, word: bytes) -> None:
        self._target, self._word = port, word
        self.lose = 0
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            deaf = threading.Event()
            back = threading.Thread(target=self._pass_back, args=(server, client, deaf), daemon=True)
            back.start()
            while data := _receive(client):
                if self.lose and self._word in data:
                    self.lose, self.lost = self.lose - 1, self.lost + 1
                    deaf.set()
                server.sendall(data)
            server.close()

    @staticmethod
    def _pass_back(server: socket.socket, client: socket.socket, deaf: threading.Event) -> None:
        while data := _receive(server):
            if deaf.is_set():
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(data)


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""
