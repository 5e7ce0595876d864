"""A client for streamed answers whose every byte carries the instant at which it arrived.

line        sockets and TLS: bytes with their instant
exchange    HTTP/1.1 and HTTP/2 without I/O: what is said and heard
framing     bytes -> events -> steps
dialects    what TGI and the OpenAI forms say over HTTP; `crowd`: whether users wait, by a router's own metrics
flights     many requests on their way, watched by one thread: reads first, understands later
mistaken    how a server gives away that it speaks another protocol than its target says
trust       certificates and tokens
"""
