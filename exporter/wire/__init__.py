"""Sockets whose bytes carry the instant of their arrival, and the protocols on them.

sockets     TCP, unix sockets and TLS
exchange    HTTP/1.1 and HTTP/2 without I/O: `frames` checks what arrives
framing     bytes -> events of a stream -> steps
client      many requests in flight, read by one thread
delays      how late this process may have read: it was stopped, or waited for a CPU
"""
