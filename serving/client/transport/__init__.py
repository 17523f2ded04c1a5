"""How a client's bytes reach a server: gRPC over HTTP/2 on sockets of our own, or through grpcio.

No thread runs here. The threads that call a ``Client`` read its sockets in turn; ``AsyncClient`` uses its event loop.
A call costs less than a fifth of grpcio's time, and a program that asks one thing need not import grpcio. What the
messages mean is not known here.

choice          which transport carries the calls of a client
destination     from an address to the places where to connect
opening         the headers of a request, and its message as it is sent
answers         what the headers of an answer mean; gRPC's status for one of HTTP's, and for a reset
remote_call     one call: the part of its answer that has come
connection      the client's end of a connection, without a socket
outgoing        its frames to the server, and the server's windows
control         the server's frames that carry neither data nor headers
retries         whether a failed call is sent again, and when
failures        why no connection came about, in words
tls             TLS between a socket and a connection
dialling        from an address to a connected socket
blocking        a connection of calls that block; the threads that wait read the socket in turn
sharing         the connections of a ``Client``
looping         a connection on an event loop
pooling         the connections of an ``AsyncClient``, and streams of messages
through_grpcio  the same calls by channels of grpcio
"""
