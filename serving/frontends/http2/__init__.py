"""gRPC over HTTP/2 on the event loop itself: no thread, no copy and no wake-up between the socket and a method.

frontend    binds, accepts, stops
connection  frames of one connection: streams, settings, flow control of what comes
sending     flow control of what goes
headers     HPACK (RFC 7541)
requests    what a block of headers asks for
messages    length-prefixed messages, compression
call        one call: its method, deadline, status
"""
