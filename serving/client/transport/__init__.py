"""How a client's bytes reach a server: gRPC over HTTP/2 on sockets of our own, or through grpcio.

No thread runs here. The threads that call a ``Client`` read its sockets in turn; ``AsyncClient`` uses its event loop.
A call costs less than a fifth of grpcio's time, and a program that asks one thing need not import grpcio. What the
messages mean is not known here.

choice        which transport an address gets
target        the address: where to connect
credentials   TLS and tokens
opening       the headers of a request, and its message in a frame
answers       what the headers of an answer mean; gRPC's status for one of HTTP's, and for a reset
exchange      one call: the part of it that has come
connection    the client's end of a connection, without a socket
control       its frames that carry neither data nor headers
retries       whether a failed call is sent again, and when
tls           TLS between a socket and a connection
dialling      from an address to a connected socket
blocking      calls that block; the threads that wait read the socket in turn
sharing       the connections of a ``Client``
looping       calls on an event loop
streaming     one stream of messages each way, on an event loop
through_grpcio    the same by channels of grpcio
"""
