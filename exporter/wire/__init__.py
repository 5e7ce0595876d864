"""Sockets whose bytes carry the instant of their arrival, and the protocols on them.

sockets             TCP, unix sockets and TLS; `addresses` finds the address that answers
connection          one socket and the HTTP state on it
exchanges           requests in flight and their answers, read by one thread
http_codec          HTTP/1.1 and HTTP/2 without I/O; `http2_frames` cuts the bytes into frames
message_framing     bytes to server-sent events or gRPC messages
delays              how long this process was stopped, or waited for a CPU
credentials         TLS contexts and tokens
detect              which protocol a server speaks; `connect_errors`: why connecting failed
grpc_env            what gRPC's core reads from the environment
trace_context       the W3C header
"""
